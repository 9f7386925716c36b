"""The one module that asks the API server for things and writes to it (the watches are kopf's)."""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from hashlib import sha256
from itertools import islice
from typing import Any, Final, Literal
from urllib.parse import quote

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from hypha_contracts.backoff import Backoff
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.errors import ApiError, Conflict, NotFound, Unavailable, from_answer
from hypha_operator.machinery.kinds import EVENT, Kind, Manifest, kind_of

FIELD_MANAGER: Final = "hypha-operator"
_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_CALL_S: Final = 15.0
_ATTEMPTS: Final = 4
_BACKOFF: Final = Backoff(first_s=0.25, max_s=4.0, factor=4.0)
_PAGE: Final = 250
_SAME_EVENT_S: Final = 60.0
_MOST_EVENTS_KEPT: Final = 4096

_log = logging.getLogger(__name__)


class Cluster:
    """Reads and writes objects of any kind.

    Each call is made up to four times when the server is busy or gone, and ends within about a minute. All but
    `event` raise `ApiError`.

    Args:
        client: an authenticated client.
        clock: what retries wait by.
        wrote: is given every object that came back from a write, so that what one has written is known at once.
        called: is told method and status (0: no answer) of every call.
    """

    def __init__(
        self,
        client: ApiClient,
        clock: Clock,
        wrote: Callable[[Kind, Manifest], object],
        called: Callable[[str, int], object] = lambda _method, _status: None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._wrote = wrote
        self._called = called
        self._events: OrderedDict[str, tuple[int, float, datetime]] = OrderedDict()

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Return an object as it is now, or None."""
        try:
            return await self._call("GET", kind.path(namespace, name))
        except NotFound:
            return None

    async def find(
        self, kind: Kind, namespace: str | None, *, label_selector: str = "", field_selector: str = ""
    ) -> list[Manifest]:
        """Return all objects of a namespace (None: of the cluster) as they are now."""
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        return [item async for page in self.pages(kind, namespace, selectors) for item in page]

    async def pages(
        self, kind: Kind, namespace: str | None, selectors: dict[str, str], *, metadata_only: bool = False
    ) -> AsyncIterator[list[Manifest]]:
        """Yield all objects, some hundred at a time."""
        query = {"limit": str(_PAGE), **{key: value for key, value in selectors.items() if value}}
        accept = _METADATA_ONLY if metadata_only else "application/json"
        while True:
            answer = await self._call("GET", kind.path(namespace), query, accept=accept)
            yield [{"apiVersion": kind.api_version, "kind": kind.name, **item} for item in answer["items"] or ()]
            if not (token := answer["metadata"].get("continue")):
                return
            query["continue"] = token

    async def create(self, manifest: Manifest) -> Manifest:
        """Create an object; `Conflict` if there is one of this name, `Invalid` also for a field that there is not."""
        kind, metadata = kind_of(manifest), manifest["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        return await self._write("POST", kind.path(metadata.get("namespace")), query, manifest)

    async def apply(self, manifest: Manifest, *, force: bool = True) -> Manifest:
        """Create an object or make its fields what the manifest says; other fields stay as they are.

        With `metadata.uid` in the manifest only that very object is changed, else `Conflict`. Without force it is also
        a `Conflict` if somebody else made one of the fields something else.
        """
        return await self._apply(manifest, None, force=force)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """The same for the fields of `status`."""
        return await self._apply(manifest, "status")

    async def merge(self, manifest: Manifest) -> Manifest:
        """Replace fields of an object, whoever owns them; with `metadata.resourceVersion` only of this version."""
        kind, metadata = kind_of(manifest), manifest["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"])
        return await self._write("PATCH", path, {"fieldManager": FIELD_MANAGER}, manifest, _MERGE)

    async def _apply(self, manifest: Manifest, subresource: str | None, *, force: bool = True) -> Manifest:
        kind, metadata = kind_of(manifest), manifest["metadata"]
        path = kind.path(metadata.get("namespace"), metadata["name"], subresource)
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()}
        return await self._write("PATCH", path, query, manifest, _APPLY)

    async def delete(
        self,
        kind: Kind,
        namespace: str | None,
        name: str,
        *,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
        uid: str | None = None,
    ) -> bool:
        """Delete an object (with a uid: only that very one); False if it was gone already."""
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
            return False  # another one has the name by now
        return True

    async def event(self, about: Manifest, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Post a Kubernetes Event; the same one is counted, at most once a minute. A failure is only logged."""
        metadata = about["metadata"]
        digest = sha256(f"{metadata['uid']}/{reason}/{message}".encode()).hexdigest()[:16]
        count, last_s, first = self._events.pop(digest, (0, float("-inf"), self._clock.now()))
        due = self._clock.monotonic() - last_s >= _SAME_EVENT_S
        self._events[digest] = (count + due, self._clock.monotonic() if due else last_s, first)
        while len(self._events) > _MOST_EVENTS_KEPT:
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
            "message": message[:1024],
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": FIELD_MANAGER,
            "reportingInstance": FIELD_MANAGER,
            "firstTimestamp": _time(first),
            "lastTimestamp": _time(self._clock.now()),
            "count": count + 1,
        }
        try:
            path = EVENT.path(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
            query = {"fieldManager": FIELD_MANAGER, "force": "true"}
            await self._call("PATCH", path, query, manifest, content_type=_APPLY)
        except ApiError as error:
            _log.warning("event %s about %s %s: %s", reason, about["kind"], metadata["name"], error)

    async def _write(
        self, method: str, path: str, query: dict[str, str], body: Manifest, content_type: str = "application/json"
    ) -> Manifest:
        _log.debug("%s %s: %s", method, path, body)
        answer = await self._call(method, path, query, body, content_type=content_type)
        self._wrote(kind_of(body), answer)
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
        for pause_s in islice(_BACKOFF.pauses(), _ATTEMPTS - 1):
            try:
                return await self._once(method, path, query, body, headers)
            except Unavailable as error:
                _log.info("%s; trying again in %.1f s", error, pause_s)
                await self._clock.sleep(pause_s)
        return await self._once(method, path, query, body, headers)

    async def _once(
        self, method: str, path: str, query: dict[str, str] | None, body: Manifest | None, headers: dict[str, str]
    ) -> Manifest:
        call = f"{method} {path}"
        try:
            request = await self._client.param_serialize(
                method,
                quote(path),
                query_params=list((query or {}).items()),
                header_params=dict(headers),
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._client.call_api(*request, _request_timeout=aiohttp.ClientTimeout(total=_CALL_S))
            text = await response.response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._called(method, 0)
            raise Unavailable(call, 0, type(error).__name__, f"no answer from the API server: {error!r}") from error
        self._called(method, response.status)
        try:
            answer = json.loads(text)
        except ValueError:
            answer = text.decode(errors="replace")
        if not 200 <= response.status < 300:
            raise from_answer(call, response.status, answer)
        if not isinstance(answer, dict):
            raise Unavailable(call, response.status, "NotJson", f"the answer is no JSON object: {answer[:200]!r}")
        return answer


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


class NoClusterError(Exception):
    """There is no API server to talk to; the message says where it was looked for."""


async def load_configuration() -> Configuration:
    """Return how to reach the API server: as the pod's service account, or as the kubeconfig says.

    Raises:
        NoClusterError: there is neither.
    """
    configuration = Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError) as error:
        raise NoClusterError(
            f"no API server is configured: {error}; run in a pod with a service account, or set KUBECONFIG"
        ) from error
    return configuration


@asynccontextmanager
async def open_cluster(
    configuration: Configuration,
    clock: Clock,
    wrote: Callable[[Kind, Manifest], object],
    called: Callable[[str, int], object],
) -> AsyncIterator[Cluster]:
    """Connect; see `Cluster` for the arguments."""
    async with ApiClient(configuration) as client:
        yield Cluster(client, clock, wrote, called)
