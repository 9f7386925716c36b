"""Authenticates bridges. The API server knows for which pod it made a token."""

import hashlib
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import trio

from hypha_contracts.connector_api import ErrorCode
from hypha_contracts.kubernetes_errors import ApiError, Refused
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_worker.connector.http_server import HttpError
from hypha_worker.runtimes.kubernetes.api import KubernetesApi

_rate_limited_log = RateLimitedLogger(logging.getLogger(__name__))

_PATH: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
_DEADLINE_S: Final = 4.0
_KNOWN_S: Final = 60.0
_REFUSED_S: Final = 5.0
_MAX_CACHED: Final = 4096
_MAX_REVIEWS: Final = 8
"""Reviews at a time, so that a job with wrong tokens cannot overload the node or the API server."""
_MAX_TOKEN_CHARS: Final = 16 * 1024
_POD_NAME: Final = "authentication.kubernetes.io/pod-name"
_POD_UID: Final = "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True)
class Pod:
    """The pod that a token was made for."""

    name: str
    uid: str


class TokenReviewer:
    """Lets the API server review tokens and caches the answers for a while.

    Args:
        user: the service account that the tokens must belong to, `system:serviceaccount:<namespace>:<name>`.
        audience: the audience that the tokens must be made for.
    """

    def __init__(self, api: KubernetesApi, user: str, audience: str) -> None:
        self._api = api
        self._user = user
        self._audience = audience
        self._known: OrderedDict[bytes, tuple[Pod | None, float]] = OrderedDict()
        self._reviews = trio.CapacityLimiter(_MAX_REVIEWS)

    async def pod(self, token: str) -> Pod | None:
        """Return the pod that a token was made for, or None. HttpError (503) if no API server answers."""
        if not token or len(token) > _MAX_TOKEN_CHARS:
            return None
        key = hashlib.sha256(token.encode()).digest()
        pod, until = self._known.get(key, (None, 0.0))
        if trio.current_time() < until:
            return pod
        pod = self._judge(await self._review(token))
        self._known[key] = pod, trio.current_time() + (_KNOWN_S if pod else _REFUSED_S)
        self._known.move_to_end(key)
        if len(self._known) > _MAX_CACHED:
            self._known.popitem(last=False)
        return pod

    async def _review(self, token: str) -> dict[str, Any]:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            with trio.fail_after(2 * _DEADLINE_S):  # up to one deadline to wait for its turn
                async with self._reviews:
                    answer = await self._api.create(_PATH, review, deadline_s=_DEADLINE_S)
        except (ApiError, trio.TooSlowError) as error:
            reason = str(error) or "too many tokens are being reviewed"
            remedy = (
                ". Check that the ClusterRoleBinding for token reviews exists." if isinstance(error, Refused) else ""
            )
            _rate_limited_log.warning("TokenReview", "the API server cannot review a token: %s%s", reason, remedy)
            raise HttpError(ErrorCode.UNAVAILABLE, f"the token cannot be reviewed right now: {reason}") from error
        return dict(answer.get("status") or {})

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
