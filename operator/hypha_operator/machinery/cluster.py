"""The client of the API server. Every call except the watches, which kopf runs, goes through this module."""

import logging
import math
import os
import socket
import struct
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from pydantic_core import from_json

from hypha_contracts.backoff import Backoff
from hypha_contracts.kinds import EVENT, HYPHA_JOB, WORKER, Kind, Manifest, kind_of
from hypha_contracts.kubernetes_errors import ApiError, Conflict, NotFound, Unavailable, from_answer
from hypha_contracts.text import escaped
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.conditions import timestamp
from hypha_operator.machinery.ownership import FIELD_MANAGER
from hypha_operator.machinery.turns import Turns

_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_CALL_S: Final = 15.0
_ATTEMPTS: Final = 4
_BACKOFF: Final = Backoff(first_s=0.25, max_s=4.0, factor=4.0)
_PAGE: Final = 250
_SAME_EVENT_S: Final = 60.0
_MAX_EVENTS: Final = 4096
_MAX_EVENT_CHARS: Final = 1024
MAX_EVENTS_PER_MINUTE: Final = 20
"""The most Events about one object."""

_log = logging.getLogger(__name__)


class Cluster:
    """Reads and writes objects of any kind.

    If the server is busy or does not answer, a call makes up to four attempts. It ends within about a minute. All
    methods except `event` raise `ApiError`.

    Args:
        client: an authenticated client.
        clock: the source of time for retries.
        on_write: receives every object that a write returned, so that the operator knows its own writes immediately.
        on_call: receives method and status of every call. The status is 0 if there was no answer.
        writes_until_s: returns the monotonic time until which this replica may write. Every write ends by then.
        attempts: the maximum number of attempts of a call.
        attempt_s: the deadline of each.
    """

    def __init__(
        self,
        client: ApiClient,
        clock: Clock,
        on_write: Callable[[Kind, Manifest], object],
        on_call: Callable[[str, int], object] = lambda _method, _status: None,
        *,
        writes_until_s: Callable[[], float] = lambda: math.inf,
        attempts: int = _ATTEMPTS,
        attempt_s: float = _CALL_S,
    ) -> None:
        self._client, self._clock, self._on_write, self._on_call = client, clock, on_write, on_call
        self._writes_until_s, self._attempts, self._attempt_s = writes_until_s, attempts, attempt_s
        self._turns = Turns()
        self._events: OrderedDict[str, tuple[int, float, datetime]] = OrderedDict()
        self._posted: OrderedDict[str, deque[float]] = OrderedDict()

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Return the current version of an object, or None."""
        try:
            return await self._call("GET", kind.path(namespace, name))
        except NotFound:
            return None

    async def find(
        self, kind: Kind, namespace: str | None, *, label_selector: str = "", field_selector: str = ""
    ) -> list[Manifest]:
        """Return the current versions of all objects of a namespace, or of the cluster if the namespace is None."""
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        return [item async for page in self.pages(kind, namespace, selectors) for item in page]

    async def pages(
        self, kind: Kind, namespace: str | None, selectors: dict[str, str], *, metadata_only: bool = False
    ) -> AsyncIterator[list[Manifest]]:
        """Yield all objects in pages. There are none of a kind that the API server does not serve."""
        query = {"limit": str(_PAGE), **{key: value for key, value in selectors.items() if value}}
        accept = _METADATA_ONLY if metadata_only else "application/json"
        while True:
            try:
                answer = await self._call("GET", kind.path(namespace), query, accept=accept)
            except NotFound:  # the API server does not serve this kind (any more)
                return
            yield [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in answer["items"] or ()]
            if not (token := answer["metadata"].get("continue")):
                return
            query["continue"] = token

    async def missing(self) -> list[str]:
        """Return which of HyphaWorkers and HyphaJobs the API server does not serve."""
        try:
            served = await self._call("GET", f"/apis/{WORKER.api_version}")
        except NotFound:
            served = {"resources": []}
        names = {resource["name"] for resource in served["resources"]}
        return [kind.plural for kind in (WORKER, HYPHA_JOB) if kind.plural not in names]

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object. Raises `Conflict` if the name is taken, and `Invalid` also for an unknown field."""
        kind, metadata = kind_of(manifest), manifest["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self._write("POST", kind.path(metadata.get("namespace")), query, manifest)

    async def check(self, manifest: Manifest) -> None:
        """Have the API server check whether it would create an object (dry run). Raises as `create` does."""
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "dryRun": "All"}
        await self._call("POST", kind_of(manifest).path(manifest["metadata"].get("namespace")), query, manifest)

    async def apply(self, manifest: Manifest, *, force: bool = True) -> Manifest:
        """Create an object, or set the manifest's fields of an existing object and keep the others (server-side apply).

        Raises `Conflict` if the manifest has a `metadata.uid` that differs from the object's. Without force, it also
        raises `Conflict` if another field manager has set one of the fields to another value.
        """
        return await self._patch(manifest, _APPLY, force=str(force).lower())

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Apply the fields of an object's `status`, with force."""
        return await self._patch(manifest, _APPLY, "status", force="true")

    async def merge(self, manifest: Manifest) -> Manifest:
        """Replace fields of any field manager (merge patch).

        Raises `Conflict` if the manifest has a `metadata.resourceVersion` that differs from the object's.
        """
        return await self._patch(manifest, _MERGE)

    async def _patch(
        self, manifest: Manifest, content_type: str, subresource: str | None = None, **query: str
    ) -> Manifest:
        kind, metadata = kind_of(manifest), manifest["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"], subresource)
        return await self._write("PATCH", path, {"fieldManager": FIELD_MANAGER, **query}, manifest, content_type)

    async def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
        uid: str | None = None,
    ) -> bool:
        """Delete an object, and return False if it does not exist. With a uid, delete only the object with that uid."""
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._call("DELETE", kind.path(namespace, name), body=body)
        except NotFound:
            return False
        except Conflict:
            if uid is None:
                raise
            return False  # another object has the name now
        return True

    async def event(self, about: Manifest, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Post an Event. A repeated Event raises its count, at most once a minute. A failure is only logged.

        Further Events about an object that had many within a minute are dropped, because a job can cause Events.
        """
        metadata, now_s = about["metadata"], self._clock.monotonic()
        digest = sha256(f"{metadata['uid']}/{reason}/{message}".encode()).hexdigest()[:16]
        count, last_s, first = self._events.pop(digest, (0, float("-inf"), self._clock.now()))
        due = now_s - last_s >= _SAME_EVENT_S and self._may_post(metadata["uid"], now_s)
        self._events[digest] = (count + due, now_s if due else last_s, first)
        while len(self._events) > _MAX_EVENTS:
            self._events.popitem(last=False)
        if not due:
            return
        manifest: Manifest = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.name,
            "metadata": {"name": f"{metadata['name']}.{digest}", "namespace": metadata.get("namespace", "default")},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                **{key: metadata[key] for key in ("name", "namespace", "uid", "resourceVersion") if key in metadata},
            },
            "type": type_,
            "reason": reason,
            "message": escaped(message, _MAX_EVENT_CHARS),
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": FIELD_MANAGER,
            "firstTimestamp": timestamp(first),
            "lastTimestamp": timestamp(self._clock.now()),
            "count": count + 1,
        }
        try:
            await self._put_event(manifest)
        except ApiError as error:
            _log.warning("event %s about %s %s: %s", reason, about["kind"], metadata["name"], error)

    async def _put_event(self, event: Manifest) -> None:
        """Create an Event, or apply it to the one of its name. An earlier process may have posted that one."""
        namespace, query = event["metadata"]["namespace"], {"fieldManager": FIELD_MANAGER}
        if event["count"] == 1:
            with suppress(Conflict):
                await self._call("POST", EVENT.path(namespace), query, event)
                return
        path = EVENT.path(namespace, event["metadata"]["name"])
        await self._call("PATCH", path, {**query, "force": "true"}, event, content_type=_APPLY)

    def _may_post(self, uid: str, now_s: float) -> bool:
        """Whether an object has had few Events within the last minute. If so, count one more."""
        posted = self._posted.pop(uid, deque[float](maxlen=MAX_EVENTS_PER_MINUTE))
        few = len(posted) < MAX_EVENTS_PER_MINUTE or now_s - posted[0] >= 60
        if few:
            posted.append(now_s)
        self._posted[uid] = posted
        while len(self._posted) > _MAX_EVENTS:
            self._posted.popitem(last=False)
        return few

    async def _write(
        self, method: str, path: str, query: dict[str, str], body: Manifest, content_type: str = "application/json"
    ) -> Manifest:
        _log.debug("%s %s: %s", method, path, body)
        answer = await self._call(method, path, query, body, content_type=content_type)
        self._on_write(kind_of(body), answer)
        return answer

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Manifest | None = None,
        *,
        accept: str = "application/json",
        content_type: str = "application/json",
    ) -> Manifest:
        headers = {"Accept": accept, "Content-Type": content_type}
        for pause_s in islice(_BACKOFF.pauses(), self._attempts - 1):
            try:
                return await self._in_turn(method, path, query, body, headers)
            except Unavailable as error:
                _log.info("%s; the next attempt is in %.1f s", error, pause_s)
                await self._clock.sleep(pause_s)
        return await self._in_turn(method, path, query, body, headers)

    async def _in_turn(self, *call: Any) -> Manifest:
        async with self._turns.turn():
            return await self._once(*call)

    async def _once(
        self, method: str, path: str, query: dict[str, str] | None, body: Manifest | None, headers: dict[str, str]
    ) -> Manifest:
        call = f"{method} {path}"
        left_s = self._attempt_s
        if method != "GET":
            left_s = min(left_s, self._writes_until_s() - self._clock.monotonic())
            if left_s <= 0:
                raise ApiError(call, 0, "NotLeading", "another replica of the operator may lead by now")
            query = {**(query or {}), "timeout": f"{math.ceil(left_s)}s"}  # then the API server abandons it too
        try:
            _, url, sent_headers, *_ = await self._client.param_serialize(
                method,
                quote(path),
                query_params=list((query or {}).items()),
                header_params=dict(headers),
                auth_settings=["BearerToken"],
            )
            timeout = aiohttp.ClientTimeout(total=left_s)
            # Only the call gets the body. The client would search it for other types than JSON's, and it has none.
            response = await self._client.call_api(method, url, sent_headers, body, _request_timeout=timeout)
            text = await response.response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._on_call(method, 0)
            raise Unavailable(call, 0, type(error).__name__, f"no answer from the API server: {error!r}") from error
        self._on_call(method, response.status)
        try:
            answer = from_json(text)
        except ValueError:
            answer = text.decode(errors="replace")
        if not 200 <= response.status < 300:
            raise from_answer(call, response.status, answer)
        if not isinstance(answer, dict):
            raise Unavailable(call, response.status, "NotJson", f"the answer is not a JSON object: {answer[:200]!r}")
        return answer


class _Connections(RESTClientObject):
    """Connections that drop what was not sent when they are closed, so that no request arrives after its deadline."""

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=self.maxsize, ssl=self.ssl_context, socket_factory=_socket)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, type_, protocol, *_ = address
    made = socket.socket(family, type_, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return made


def open_client(configuration: Configuration, name: str) -> ApiClient:
    """Return a client of the API server. Close it after use.

    Args:
        configuration: the access to the API server.
        name: the name of this replica, which the API server's audit log then shows with each call.
    """
    client = ApiClient(configuration)
    client.rest_client = _Connections(configuration)
    client.user_agent = f"{FIELD_MANAGER}/{version('hypha-worker')} ({name})"
    return client


class NoClusterError(Exception):
    """Neither a service account nor a kubeconfig names an API server."""


async def load_configuration() -> Configuration:
    """Return the access to the API server, from the pod's service account or from the kubeconfig.

    No proxy of the environment is used. Its NO_PROXY may name networks, which the client does not understand.

    Raises:
        NoClusterError: there is neither.
    """
    configuration = Configuration(client_session_kwargs={"trust_env": False})
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            files = os.environ.get("KUBECONFIG") or "~/.kube/config"
            _check_kubeconfig(files)
            await load_kube_config(config_file=files, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError) as error:
        raise NoClusterError(
            f"no API server is configured: {error}. Run in a pod with a service account, or set KUBECONFIG."
        ) from error
    return configuration


def _check_kubeconfig(files: str) -> None:
    """Raise FileNotFoundError if none of the files exists, because the loader then reports an empty configuration."""
    if not any(Path(file).expanduser().exists() for file in files.split(os.pathsep)):
        raise FileNotFoundError(f"{files}: no such file")
