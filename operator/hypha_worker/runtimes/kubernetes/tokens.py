"""Authenticates bridges by the tokens that the API server issues to their pods.

The node verifies them with the keys that the API server publishes to every service account. So, unlike for a
TokenReview, it needs no right outside of its namespace.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt
import trio

from hypha_contracts.connector_api import ErrorCode
from hypha_contracts.kubernetes_errors import ApiError, Refused
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_worker.connector.http_server import HttpError
from hypha_worker.runtimes.kubernetes.api import KubernetesApi

_rate_limited_log = RateLimitedLogger(logging.getLogger(__name__))

_PATH: Final = "/openid/v1/jwks"
_DEADLINE_S: Final = 4.0
_FRESH_S: Final = 600.0
"""How long the node uses keys before it reads them again. If the API server does not answer, it goes on using them."""
_PAUSE_S: Final = 10.0
"""The least time between two readings, because anybody can name an unknown key."""
_LEEWAY_S: Final = 60.0
"""How much the clocks of the API server and of the node may differ."""
_ALGORITHMS: Final = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"]
_JWT: Final = re.compile(r"[\w-]{1,256}(\.[\w-]{1,4096}){2}", re.ASCII)
"""The shape of the tokens that an API server makes for pods."""


@dataclass(frozen=True)
class Pod:
    """The pod that a token was made for."""

    name: str
    uid: str


class TokenVerifier:
    """Verifies tokens.

    A token is valid until it expires, even if its pod is gone. So the caller has to know that the pod's job lives.

    Args:
        user: the service account that the tokens must belong to, `system:serviceaccount:<namespace>:<name>`.
        audience: the audience that the tokens must be made for.
    """

    def __init__(self, api: KubernetesApi, user: str, audience: str) -> None:
        self._api, self._user, self._audience = api, user, audience
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._read_at = self._tried_at = -_FRESH_S
        self._lock = trio.Lock()

    async def pod(self, token: str) -> Pod | None:
        """Return the pod that a token was made for, or None. HttpError (503) if the keys cannot be read right now."""
        try:
            key_id = key_id_of(token)
            if (key := await self._key(key_id)) is None:
                _rate_limited_log.info("token", "refused a token: the API server has no key %s", key_id)
                return None
            return pod_of(token, key, self._user, self._audience)
        except jwt.InvalidTokenError as error:
            _rate_limited_log.info("token", "refused a token: %s", error)
            return None

    async def _key(self, key_id: str) -> jwt.PyJWK | None:
        """Return a key of the API server. HttpError (503) if there are no keys, or perhaps others by now."""
        async with self._lock:
            now = trio.current_time()
            due = key_id not in self._keys or now - self._read_at >= _FRESH_S
            if due and now - self._tried_at >= _PAUSE_S:
                self._tried_at = now
                await self._read(now)
        if key_id not in self._keys and self._read_at < self._tried_at:
            raise HttpError(ErrorCode.UNAVAILABLE, "the API server's keys cannot be read right now. Try again later.")
        return self._keys.get(key_id)

    async def _read(self, now: float) -> None:
        try:
            with trio.fail_after(_DEADLINE_S):
                self._keys = keys_of(await self._api.get(_PATH))
        except (ApiError, trio.TooSlowError, ValueError) as error:
            remedy = (
                ". Check that the API server publishes its keys there, and that the ClusterRoleBinding "
                "system:service-account-issuer-discovery exists."
                if isinstance(error, Refused)
                else ""
            )
            problem = str(error) or "no answer in time"
            _rate_limited_log.warning("keys", "cannot read the API server's keys: %s%s", problem, remedy)
        else:
            self._read_at = now


def keys_of(published: Mapping[str, Any]) -> dict[str, jwt.PyJWK]:
    """Return the keys in a JSON Web Key Set, by id. ValueError if there is none that the node can use."""
    try:
        keys = jwt.PyJWKSet.from_dict(dict(published)).keys
    except (jwt.PyJWTError, TypeError, AttributeError) as error:
        raise ValueError(f"{_PATH}: {error}") from error
    return {key.key_id: key for key in keys if key.key_id and key.algorithm_name in _ALGORITHMS}


def key_id_of(token: str) -> str:
    """Return the id of the key that a token names. jwt.InvalidTokenError if no API server makes such tokens."""
    if _JWT.fullmatch(token) is None:
        raise jwt.InvalidTokenError("it does not have the shape of a pod's token")
    return str(jwt.get_unverified_header(token).get("kid"))


def pod_of(token: str, key: jwt.PyJWK, user: str, audience: str) -> Pod:
    """Return the pod that a token was made for. jwt.InvalidTokenError if the token is not for user and audience."""
    options: Any = {"require": ["exp", "aud", "sub"]}
    claims = jwt.decode(token, key, algorithms=_ALGORITHMS, audience=audience, leeway=_LEEWAY_S, options=options)
    if claims["sub"] != user:
        raise jwt.InvalidTokenError(f"it belongs to {claims['sub']}")
    try:
        pod = claims["kubernetes.io"]["pod"]
        return Pod(str(pod["name"]), str(pod["uid"]))
    except (KeyError, TypeError):
        raise jwt.InvalidTokenError("it is bound to no pod") from None
