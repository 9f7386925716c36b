"""Authenticates bridges. The API server knows for which pod it made a token."""

import hashlib
import logging
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from hypha_contracts.connector_api import ErrorCode
from hypha_contracts.kubernetes_errors import ApiError, Refused
from hypha_network.fairness import FairRate
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_worker.connector.http_server import HttpError
from hypha_worker.runtimes.kubernetes.api import KubernetesApi

_rate_limited_log = RateLimitedLogger(logging.getLogger(__name__))

_PATH: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
_DEADLINE_S: Final = 4.0
_VALID_S: Final = 60.0
_REFUSED_S: Final = 5.0
_MAX_CACHED: Final = 4096
_MAX_REVIEWS: Final = 8
"""Reviews of unknown tokens at a time. Valid tokens are reviewed again beside them."""
_UNKNOWN_PER_S: Final = 20.0
_MAX_UNKNOWN_AT_ONCE: Final = 40
_UNKNOWN_OF_SOURCE_PER_S: Final = 1.0
_MAX_UNKNOWN_OF_SOURCE_AT_ONCE: Final = 8
"""Unknown tokens that are reviewed at once, and then in each second: of all sources, and of one."""
_JWT: Final = re.compile(r"[\w-]{1,1024}(\.[\w-]{1,4096}){2}", re.ASCII)
"""The shape of the tokens that an API server makes for pods."""
_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True)
class Pod:
    """The pod that a token was made for."""

    name: str
    uid: str


@dataclass
class _Verdict:
    """What the API server said of a token, until when that counts, and the review that is under way."""

    pod: Pod | None = None
    until: float = 0.0
    lock: trio.Lock = field(default_factory=trio.Lock)


class TokenReviewer:
    """Lets the API server review tokens and caches the answers for a while.

    Reviews of unknown tokens are limited in number and rate. A token that was valid is reviewed again without these
    limits, so that bridges never wait behind wrong tokens.

    Args:
        user: the service account that the tokens must belong to, `system:serviceaccount:<namespace>:<name>`.
        audience: the audience that the tokens must be made for.
    """

    def __init__(self, api: KubernetesApi, user: str, audience: str) -> None:
        self._api = api
        self._user = user
        self._audience = audience
        self._valid: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._others: OrderedDict[bytes, _Verdict] = OrderedDict()
        self._reviews = trio.CapacityLimiter(_MAX_REVIEWS)
        self._rate = FairRate(_UNKNOWN_PER_S, _MAX_UNKNOWN_AT_ONCE)
        self._rate_of_source = FairRate(_UNKNOWN_OF_SOURCE_PER_S, _MAX_UNKNOWN_OF_SOURCE_AT_ONCE)

    async def pod(self, token: str, source: str) -> Pod | None:
        """Return the pod that a token was made for, or None. HttpError (503) if it cannot be reviewed now.

        `source` is where the token came from.
        """
        if _JWT.fullmatch(token) is None:
            return None
        key = hashlib.sha256(token.encode()).digest()
        verdict = self._valid.get(key) or self._others.get(key) or self._remember(self._others, key, _Verdict())
        try:
            with trio.fail_after(2 * _DEADLINE_S):  # up to one deadline to wait for its turn
                async with verdict.lock:
                    if trio.current_time() >= verdict.until:
                        await self._renew(verdict, key, token, source)
        except (ApiError, trio.TooSlowError) as error:
            reason = str(error) or "too many tokens are being reviewed"
            remedy = (
                ". Check that the ClusterRoleBinding for token reviews exists." if isinstance(error, Refused) else ""
            )
            _rate_limited_log.warning("TokenReview", "the API server cannot review a token: %s%s", reason, remedy)
            raise HttpError(ErrorCode.UNAVAILABLE, f"the token cannot be reviewed right now: {reason}") from error
        return verdict.pod

    async def _renew(self, verdict: _Verdict, key: bytes, token: str, source: str) -> None:
        """Have the token reviewed. HttpError (503) if there are too many unknown tokens. ApiError."""
        if key in self._valid:
            verdict.pod = await self._review(token)
        else:
            self._spend(source)
            async with self._reviews:
                verdict.pod = await self._review(token)
        verdict.until = trio.current_time() + (_VALID_S if verdict.pod else _REFUSED_S)
        for cache in (self._valid, self._others):
            cache.pop(key, None)
        self._remember(self._valid if verdict.pod else self._others, key, verdict)

    def _spend(self, source: str) -> None:
        """Count the review of an unknown token. HttpError (503) if there are too many."""
        now = trio.current_time()
        if not self._rate_of_source.take(source, now):
            raise HttpError(ErrorCode.UNAVAILABLE, "too many unknown tokens came from this address. Try again later.")
        if not self._rate.take("all", now):
            raise HttpError(ErrorCode.UNAVAILABLE, "too many unknown tokens came. Try again later.")

    def _remember(self, cache: OrderedDict[bytes, _Verdict], key: bytes, verdict: _Verdict) -> _Verdict:
        cache[key] = verdict
        if len(cache) > _MAX_CACHED:
            cache.popitem(last=False)
        return verdict

    async def _review(self, token: str) -> Pod | None:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        answer = await self._api.create(_PATH, review, deadline_s=_DEADLINE_S)
        return self._judge(dict(answer.get("status") or {}))

    def _judge(self, status: dict[str, Any]) -> Pod | None:
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        names, uids = extra.get(_POD_NAME) or [], extra.get(_POD_UID) or []
        good = (
            status.get("authenticated") is True
            and self._audience in (status.get("audiences") or [])
            and user.get("username") == self._user
            and len(names) == len(uids) == 1
        )
        if not good:
            reason = status.get("error") or f"it belongs to {user.get('username') or 'nobody'}"
            _rate_limited_log.info("TokenReview", "refused a token: %s", reason)
            return None
        return Pod(names[0], uids[0])
