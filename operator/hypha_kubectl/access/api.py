"""Ask the API server. Every call has a deadline. The calls block, and threads may make them at once."""

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from importlib.metadata import version
from threading import Lock, Thread, get_ident
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx

from hypha_contracts.kinds import Kind, Manifest
from hypha_contracts.kubernetes_errors import ApiError, Unavailable, from_answer
from hypha_contracts.watching import LIST_PAGE, SILENCE_S, watch_query
from hypha_kubectl.access.credentials import Login, proxy_of, tls_context
from hypha_kubectl.access.kubeconfig import Context

FIELD_MANAGER: Final = "kubectl-hypha"
_CALL_S: Final = 30.0
_CONNECT_S: Final = 10.0
_SAME_CLOCK: Final = timedelta(seconds=2)
"""Smaller differences between this machine's clock and that of the API server may be the time of an answer."""
_JOIN_S: Final = 0.02
_JOINS: Final = 50
"""How often to wait for the end of a thread. One that connects to a server that does not answer is abandoned."""
_MERGE: Final = "application/merge-patch+json"
_THREADS: Final = 8

_T = TypeVar("_T")


class Api:
    """The API server of a context. `open_api` makes one."""

    def __init__(self, context: Context, client: httpx.Client) -> None:
        self.context = context
        self._client = client
        self._ahead = timedelta(0)
        self._streams: dict[int | None, socket.socket] = {}
        self._streams_lock = Lock()
        name = context.cluster.get("tls-server-name")
        self._extensions = {"sni_hostname": name} if name else {}

    def now(self) -> datetime:
        """Return the time by the clock of the API server, once it has answered. This machine's may be wrong."""
        return datetime.now(UTC) + self._ahead

    def read(self, path: str) -> Manifest:
        """Return what a path holds, from JSON. ApiError."""
        return self._call("GET", path)

    def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest:
        """Return an object. NotFound, ApiError."""
        return self._call("GET", kind.path(namespace, name))

    def find(self, kind: Kind, namespace: str | None, **selectors: str) -> list[Manifest]:
        """Return all objects of a namespace, or of the cluster if it is None. ApiError."""
        return self.snapshot(kind, namespace, **selectors)[0]

    def snapshot(self, kind: Kind, namespace: str | None, **selectors: str) -> tuple[list[Manifest], str]:
        """Return all objects, and the version to watch from.

        Args:
            kind: the kind of the objects.
            namespace: their namespace; None for the complete cluster.
            selectors: `labelSelector` or `fieldSelector`.

        Raises:
            NotFound: the cluster does not serve this kind.
            ApiError: the API server did not answer, or refused.
        """
        items: list[Manifest] = []
        query = {"limit": str(LIST_PAGE), **selectors}
        while True:
            page = self._call("GET", kind.path(namespace), query)
            items += page.get("items") or []
            listed = page.get("metadata") or {}
            if not listed.get("continue"):
                return items, str(listed.get("resourceVersion", ""))
            query["continue"] = listed["continue"]

    def watch(
        self, kind: Kind, namespace: str | None, version: str, **selectors: str
    ) -> Iterator[tuple[str, Manifest]]:
        """Yield each change since a version (ADDED, MODIFIED, DELETED or BOOKMARK), until the server ends the watch.

        Raises:
            Gone: the version is too old. List again.
            ApiError: the watch broke or was silent for too long.
        """
        call = f"WATCH {kind.plural}"
        for line in self.lines(kind.path(namespace), watch_query(version, selectors), silence_s=SILENCE_S):
            try:
                event = json.loads(line)
                type_, object_ = event["type"], dict(event["object"])
            except (ValueError, KeyError, TypeError) as error:
                raise Unavailable(call, 0, "NotJson", "the watch broke off within a change") from error
            if type_ == "ERROR":
                raise from_answer(call, int(object_.get("code") or 0), object_)
            yield type_, object_

    def lines(self, path: str, query: Mapping[str, str], *, silence_s: float | None) -> Iterator[str]:
        """Yield the lines of an answer while they arrive. ApiError, also after a silence of so many seconds."""
        call = f"GET {path}"
        timeout = httpx.Timeout(_CALL_S, connect=_CONNECT_S, read=silence_s)
        try:
            with self._client.stream(
                "GET", quote(path), params=query, timeout=timeout, extensions=self._extensions
            ) as answer:
                self._note_time(answer)
                if answer.status_code != HTTPStatus.OK:
                    answer.read()
                    raise _error(call, answer)
                with self._interruptible(answer):
                    yield from answer.iter_lines()
        except (httpx.HTTPError, OSError) as error:
            raise _unavailable(call, error) from error

    @contextmanager
    def _interruptible(self, answer: httpx.Response) -> Iterator[None]:
        with self._streams_lock:
            self._streams[get_ident()] = answer.extensions["network_stream"].get_extra_info("socket")
        try:
            yield
        finally:
            with self._streams_lock:
                del self._streams[get_ident()]

    def interrupt(self, thread: Thread) -> None:
        """Break off the stream that a thread reads now, if it reads one. The thread gets an ApiError."""
        with self._streams_lock:  # held while the socket is open, so that no other can have its descriptor
            if found := self._streams.get(thread.ident):
                with suppress(OSError):  # the peer has closed it
                    socket.socket.shutdown(found, socket.SHUT_RDWR)

    def merge(self, kind: Kind, namespace: str, name: str, change: Manifest) -> Manifest:
        """Change fields of an object, and return it. Conflict if the change names another resourceVersion. ApiError."""
        query = {"fieldManager": FIELD_MANAGER}
        return self._call("PATCH", kind.path(namespace, name), query, change, _MERGE)

    def create(self, path: str, body: Manifest) -> Manifest:
        """Create an object, such as a question about rights. ApiError."""
        return self._call("POST", path, None, body)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content: str = "application/json",
    ) -> Manifest:
        call = f"{method} {path}"
        headers = {"Accept": "application/json, */*", "Content-Type": content}
        data = None if body is None else json.dumps(body)
        try:
            answer = self._client.request(
                method, quote(path), params=query, content=data, headers=headers, extensions=self._extensions
            )
        except (httpx.HTTPError, OSError) as error:
            raise _unavailable(call, error) from error
        self._note_time(answer)
        if not answer.is_success:
            raise _error(call, answer)
        try:
            return dict(answer.json())
        except (ValueError, TypeError) as error:
            raise Unavailable(call, 0, "NotJson", "the answer is no object in JSON; this is no API server") from error

    def _note_time(self, answer: httpx.Response) -> None:
        with suppress(KeyError, ValueError, TypeError):  # a proxy may write no date or a wrong one
            ahead = parsedate_to_datetime(answer.headers["Date"]) - datetime.now(UTC)
            self._ahead = ahead if abs(ahead) > _SAME_CLOCK else timedelta(0)


def _unavailable(call: str, error: Exception) -> Unavailable:
    return Unavailable(call, 0, type(error).__name__, str(error) or type(error).__name__)


def _error(call: str, answer: httpx.Response) -> ApiError:
    try:
        body = answer.json()
    except ValueError:
        body = answer.text
    return from_answer(call, answer.status_code, body)


@contextmanager
def open_api(context: Context, environ: Mapping[str, str]) -> Iterator[Api]:
    """Open connections to the API server of a context. UsageError."""
    login = Login(context, environ)
    tls: Any = tls_context(context, login) if context.server.startswith("https") else False
    with httpx.Client(
        base_url=context.server,
        verify=tls,
        auth=login,
        proxy=proxy_of(context, environ),
        trust_env=False,
        timeout=httpx.Timeout(_CALL_S, connect=_CONNECT_S),
        headers={"User-Agent": f"{FIELD_MANAGER}/{version('hypha-worker')}"},
    ) as client:
        yield Api(context, client)


def at_once(*calls: Callable[[], _T]) -> list[_T]:
    """Make several calls at the same time, and return their results in order. Raises the first error."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@contextmanager
def reading(api: Api, read: Callable[[], None], drain: Callable[[], None]) -> Iterator[None]:
    """Run a function that reads streams in a thread while the block runs, and end it with the block.

    Args:
        api: the API server from which it reads.
        read: ends soon after its stream is broken off.
        drain: makes room where `read` puts what it reads, so that it does not wait for it.
    """
    thread = Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        for _ in range(_JOINS):
            if not thread.is_alive():
                break
            api.interrupt(thread)
            drain()
            thread.join(_JOIN_S)
