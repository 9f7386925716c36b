"""A client of the API server. Every call has a deadline and is retried where that may help."""

import json
import logging
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import trio

from hypha_contracts.backoff import Backoff
from hypha_contracts.kubernetes_errors import ApiError, Conflict, Refused, Unavailable, from_answer
from hypha_contracts.watching import LIST_PAGE, SILENCE_S, watch_query
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_worker.errors import NodeError

logger = logging.getLogger(__name__)
_rate_limited_log = RateLimitedLogger(logger)

_T = TypeVar("_T")
Object = dict[str, Any]

FIELD_MANAGER: Final = "hypha-worker"
DEADLINE_S: Final = 10.0
_ATTEMPT_S: Final = 5.0
_BACKOFF: Final = Backoff(first_s=0.1, max_s=5.0)
_RIGHTS: Final = frozenset({401, 403})
_IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MERGE_PATCH: Final = "application/merge-patch+json"
_APPLY_PATCH: Final = "application/apply-patch+yaml"
_JSON_PATCH: Final = "application/json-patch+json"


@dataclass(frozen=True)
class ApiAccess:
    """The address of the API server and the node's credentials. The files are read for every request."""

    url: str
    token_file: Path
    ca_file: Path

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> "ApiAccess":
        """Return the access of this pod, or that in `HYPHA_KUBE_*`. NodeError if there is none."""
        if url := environ.get("HYPHA_KUBE_URL"):
            try:
                return cls(url, Path(environ["HYPHA_KUBE_TOKEN_FILE"]), Path(environ["HYPHA_KUBE_CA_FILE"]))
            except KeyError as error:
                raise NodeError(f"HYPHA_KUBE_URL is set, but {error.args[0]} is not. Set all three.") from error
        host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise NodeError(
                "the configuration has a table [kubernetes], but this is no pod (KUBERNETES_SERVICE_HOST is not set). "
                "Remove the table to run jobs as processes."
            )
        return cls(
            f"https://{f'[{host}]' if ':' in host else host}:{port}", _IN_CLUSTER / "token", _IN_CLUSTER / "ca.crt"
        )


class KubernetesApi:
    """Calls the API server. `open_api` makes one."""

    def __init__(self, access: ApiAccess, client: httpx.AsyncClient) -> None:
        self._access = access
        self._client = client

    async def get(self, path: str) -> Object:
        """Return an object. ApiError."""
        return await self._call("GET", path)

    async def list(self, path: str, selector: str) -> tuple[list[Object], str]:
        """Return all objects that match a label selector, and the resource version to watch from. ApiError."""
        items: list[Object] = []
        query = {"labelSelector": selector, "limit": str(LIST_PAGE)}
        while True:
            page = await self._call("GET", path, query=query)
            items += page.get("items") or []
            following = page["metadata"].get("continue")
            if not following:
                return items, page["metadata"]["resourceVersion"]
            query["continue"] = following

    async def create(self, path: str, body: Object, *, deadline_s: float = DEADLINE_S) -> Object:
        """Create an object. Conflict if the name exists, perhaps because an attempt of this call created it."""
        return await self._call("POST", path, body=body, deadline_s=deadline_s)

    async def apply(self, path: str, body: Object, *, deadline_s: float = DEADLINE_S) -> Object:
        """Apply the node's part of an object or its status, and return the object. ApiError."""
        query = {"force": "true"}
        return await self._call("PATCH", path, body=body, query=query, content=_APPLY_PATCH, deadline_s=deadline_s)

    async def merge(self, path: str, body: Object, *, deadline_s: float = DEADLINE_S) -> Object:
        """Change fields of an existing object, and return the object. ApiError."""
        return await self._call("PATCH", path, body=body, content=_MERGE_PATCH, deadline_s=deadline_s)

    async def patch(self, path: str, operations: Sequence[Object]) -> Object:
        """Apply a JSON patch to an existing object, and return the object. Invalid if a test fails."""
        return await self._call("PATCH", path, body=operations, content=_JSON_PATCH)

    async def watch(
        self, path: str, selector: Mapping[str, str], version: str, record: Callable[[str, Object], None]
    ) -> str:
        """Call `record` with each change (ADDED, MODIFIED, DELETED) since a version, until the server ends the watch.

        `selector` is a `labelSelector` or a `fieldSelector` with its value.

        Returns:
            The version to continue from.

        Raises:
            Gone: the version is too old. List again.
            ApiError: the watch broke or was silent for too long.
        """
        query = watch_query(version, selector)
        call, timeout = f"WATCH {path}", httpx.Timeout(_ATTEMPT_S, read=SILENCE_S)
        try:
            async with self._client.stream(
                "GET", path, params=query, headers=self._headers(), timeout=timeout
            ) as response:
                if response.status_code != HTTPStatus.OK:
                    await response.aread()
                    raise _error_of(call, response)
                async for line in response.aiter_lines():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise from_answer(call, int(event["object"].get("code") or 0), event["object"])
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        record(event["type"], event["object"])
        except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
            raise Unavailable(call, 0, "", f"the watch broke: {error or type(error).__name__}") from error
        return version

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Object | Sequence[Object] | None = None,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
        deadline_s: float = DEADLINE_S,
    ) -> Object:
        """Make a request, repeatedly if necessary. Unavailable if no answer came before the deadline."""
        data = json.dumps(body).encode() if body is not None else None
        parameters = {**({"fieldManager": FIELD_MANAGER} if data else {}), **(query or {})}
        call, problem = f"{method} {path}", "no answer"
        with trio.move_on_after(deadline_s):
            for pause_s in _BACKOFF.pauses():
                try:
                    headers = self._headers() | ({"Content-Type": content} if data else {})
                    response = await self._client.request(
                        method, path, params=parameters, content=data, headers=headers, timeout=_ATTEMPT_S
                    )
                    if response.is_success:
                        answer: Object = response.json()
                        return answer
                    error = _error_of(call, response)
                    if not _is_worth_another_attempt(method, error):
                        raise error
                    problem = f"{error.status} {error.message}"
                    await trio.sleep(_retry_after_s(response))
                except (httpx.HTTPError, OSError, ValueError) as failure:
                    problem = str(failure) or type(failure).__name__
                logger.debug("%s: %s; trying again", call, problem)
                await trio.sleep(pause_s)
        raise Unavailable(call, 0, "", f"the API server did not answer within {deadline_s:g} s: {problem}")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._access.token_file.read_text().strip()}"}


async def retry_until_done(what: str, action: Callable[[], Awaitable[_T]]) -> _T:
    """Repeat an action while the API server is unavailable or denies access. Refused for any other refusal."""
    for pause_s in _BACKOFF.pauses():
        try:
            return await action()
        except Unavailable as error:
            _rate_limited_log.warning(what, "%s; trying again", error)
        except Refused as error:
            if error.status not in _RIGHTS:
                raise
            _rate_limited_log.warning(
                what, "%s; trying again. Check that the node's Role and its binding exist.", error
            )
        await trio.sleep(pause_s)
    raise AssertionError  # the pauses do not end


def _is_worth_another_attempt(method: str, error: ApiError) -> bool:
    """Whether the server is busy. A patch without a version conflicts only with concurrent patches."""
    return isinstance(error, Unavailable) or (method == "PATCH" and isinstance(error, Conflict))


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("Retry-After", 0))
    except ValueError:
        return 0.0


def _error_of(call: str, response: httpx.Response) -> ApiError:
    try:
        body = response.json()
    except ValueError:
        body = response.text
    return from_answer(call, response.status_code, body)


@asynccontextmanager
async def open_api(access: ApiAccess) -> AsyncIterator[KubernetesApi]:
    """Open a client of the API server without sending anything. NodeError if its files cannot be read."""
    try:
        access.token_file.read_text()
        context = ssl.create_default_context(cafile=os.fspath(access.ca_file))
    except OSError as error:
        raise NodeError(
            f"{error.filename or access.ca_file}: {error.strerror}. Check that the pod has a service account's token."
        ) from error
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=8, keepalive_expiry=60)
    async with httpx.AsyncClient(base_url=access.url, verify=context, limits=limits, trust_env=False) as client:
        yield KubernetesApi(access, client)
