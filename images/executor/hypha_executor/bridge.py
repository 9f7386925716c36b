"""The client of the job bridge: HTTP over a Unix socket."""

import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx

from hypha_executor.errors import BridgeError
from hypha_executor.resources import Resources
from hypha_executor.telemetry import HEADER, Telemetry

log = logging.getLogger(__name__)

RETRY_FOR_S: Final = 120.0
"""How long a bridge may be unavailable before the executor ends."""

_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 2.0
MAX_EVENT_BYTES: Final = 64 * 1024
"""Maximum length of an event of the event stream. An event names a file in about 2 KiB."""
_MIN_DATA_BYTES: Final = len('{"from_peer":"","path":""}')
_EVENT: Final = re.compile(
    rb"^(?:id:[ ]*+(.*)\n)?data:[ ]*+(.{%d,%d})\n" % (_MIN_DATA_BYTES, MAX_EVENT_BYTES), re.MULTILINE
)
"""One expression finds all events, because a loop over lines takes too long if they are short. It skips comments."""
_SILENCE_S: Final = 30.0  # the bridge sends a comment every 5 s
_ANSWER_S: Final = 6 * 3600.0
"""How long a bridge may take to answer. It waits for slow peers, and for its node for as long as the job's lease lasts.

A bridge that ends meanwhile breaks the connection. A shorter limit would abandon reports that are delivered after all.
"""
_TELEMETRY_S: Final = 5.0

Reference = Mapping[str, Any]
"""A reference from the job specification, such as `executor.config.data`."""


@dataclass(frozen=True)
class Slice:
    """A slice of a dataset that the scheduler has assigned to the job.

    Attributes:
        index: Its place in the dataset, by the data node's numbering.
        path: Its file, which the executor may delete.
    """

    index: int
    path: Path


class _NoSliceError(BridgeError):
    """The scheduler has no slice for the job."""


class Retries:
    """Pauses between the attempts of one request, up to `RETRY_FOR_S` seconds from the first failure."""

    def __init__(self, request: str) -> None:
        self._request = request
        self.succeeded()

    def succeeded(self) -> None:
        """Start counting anew at the next failure."""
        self._failing_since: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def failed(self, problem: str, *, final: bool) -> None:
        """Sleep until the next attempt is due.

        Raises:
            BridgeError: The failure is final, or the request has failed for longer than the limit.
        """
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if final or now - self._failing_since > RETRY_FOR_S:
            raise BridgeError(f"job bridge, {self._request}: {problem}; see the log of the worker")
        log.warning("job bridge, %s: %s; trying again", self._request, problem)
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)


class Bridge:
    """Requests to the job bridge. Safe to use from several threads.

    Failures that may pass (no connection, a 5xx answer) are retried for `RETRY_FOR_S` seconds, with two exceptions. An
    error answer that took longer than that is final, because the bridge has retried for the executor. A failed
    connection is final if the socket is gone, because the worker removes it at the end of the job.

    Attributes:
        work_dir: The job's work directory, absolute.
        telemetry: Records spans and metrics, which the worker exports.
    """

    def __init__(self, socket: Path, work_dir: Path) -> None:
        self.work_dir = work_dir.resolve()
        self._socket = socket
        transport = httpx.HTTPTransport(uds=str(socket))
        timeout = httpx.Timeout(_ANSWER_S, connect=5.0)
        self._client = httpx.Client(transport=transport, base_url="http://bridge", timeout=timeout)
        self.telemetry = Telemetry(self._send_telemetry, measure=Resources().measure)

    def fetch(self, reference: Reference) -> list[Path]:
        """Make the bridge fetch the files of a reference into the work directory; return their paths.

        A scheduler's reference returns the next slice of its dataset at each call, possibly under the same name.

        Raises:
            BridgeError: The bridge is gone or cannot fetch the files.
        """
        entries = self._post("/resources/fetch", reference)
        try:
            return [self.inside(entry["path"]) for entry in entries]
        except (KeyError, TypeError):
            raise BridgeError(f"the bridge's answer to a fetch lists no files: {entries!r}"[:300]) from None

    def next_slice(self, reference: Reference) -> Slice | None:
        """Make the bridge fetch the next slice of a scheduler's dataset; None if the scheduler has none for this job.

        Needs the bridge of this project: the reference implementation's does not say that there is no slice.

        Raises:
            BridgeError: The bridge is gone or cannot fetch the slice.
        """
        try:
            (path,) = self.fetch(reference)
            return Slice(int(path.name), path)  # the bridge names a slice's file by the slice's index
        except _NoSliceError:
            return None
        except ValueError:
            raise BridgeError("the bridge's answer to a fetch names no slice; is data a scheduler's dataset?") from None

    def send(self, reference: Reference, path: Path, *, wait: bool = False) -> None:
        """Make the bridge push a file of the work directory to the peers of a reference.

        Returns once the bridge has taken the request. The file must not change until the peers have it. With `wait`,
        which needs the bridge of this project, it returns once they have it.

        Raises:
            BridgeError: The bridge is gone or refuses, or with `wait`, a peer did not receive the file.
            ValueError: The file is outside the work directory.
        """
        body = {"resource": reference, "path": str(path.relative_to(self.work_dir))}
        self._post("/resources/send", {**body, "wait": True} if wait else body)

    def report(self, progress: object) -> Any:
        """Report progress (JSON) to the scheduler; return its answer (JSON). See `hypha_executor.progress`.

        Raises:
            BridgeError: The bridge is gone or refuses.
        """
        return self._post("/status/send", progress)

    def events(self, reference: Reference, directory: str, last_event_id: str | None) -> Iterator[tuple[str, str]]:
        """Subscribe once to the pushes of peers; yield the id and the data of each event.

        The first event names no file. It means that the subscription is open.

        Raises:
            httpx.HTTPError: The subscription was refused or the stream broke.
        """
        timeout = httpx.Timeout(_SILENCE_S)
        body = {"resource": reference, "path": directory}
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_event_id} if last_event_id else {})
        with self._client.stream("POST", "/resources/receive", json=body, headers=headers, timeout=timeout) as response:
            if not response.is_success:
                response.read()
                raise httpx.HTTPError(_describe(response))
            yield "", "[]"
            yield from parse_events(response.iter_bytes())

    def inside(self, path: str) -> Path:
        """Return the absolute path of a file that the bridge names relative to the work directory.

        Raises:
            BridgeError: The path leads out of the work directory.
        """
        absolute = (self.work_dir / path).resolve()
        if not absolute.is_relative_to(self.work_dir):
            raise BridgeError(f"the bridge names {path!r}, which is outside the work directory")
        return absolute

    def gone(self) -> bool:
        """Return whether the socket has been removed, which ends the job."""
        return not self._socket.exists()

    def _send_telemetry(self, batch: object) -> None:
        self._client.post("/telemetry", json=batch, timeout=_TELEMETRY_S)

    def _post(self, path: str, body: object) -> Any:
        traceparent = self.telemetry.traceparent
        headers = {HEADER: traceparent} if traceparent else {}
        retries = Retries(f"POST {path}")
        while True:
            started = time.monotonic()
            try:
                response = self._client.post(path, json=body, headers=headers)
                if response.is_success:
                    return response.json() if response.content else None
                if response.status_code == HTTPStatus.GONE:
                    raise _NoSliceError(_describe(response))
                problem = _describe(response)
                final = response.status_code < 500 or time.monotonic() - started > RETRY_FOR_S
            except httpx.HTTPError as error:
                problem, final = f"{type(error).__name__}: {error}", self.gone()
            except (ValueError, RecursionError):
                problem, final = "answered something that is not JSON", True
            retries.failed(problem, final=final)


def parse_events(pieces: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Yield the id and the data of each event of an event stream. Skip events whose data cannot name a file.

    The id is empty if the event has none.

    Raises:
        httpx.HTTPError: An event is longer than `MAX_EVENT_BYTES`.
    """
    unread = b""
    for piece in pieces:
        complete, _, unread = (unread + piece).replace(b"\r\n", b"\n").rpartition(b"\n\n")
        for event in _EVENT.finditer(complete + b"\n"):
            yield (event[1] or b"").decode(errors="replace"), event[2].decode(errors="replace")
        if len(unread) > MAX_EVENT_BYTES:
            raise httpx.HTTPError(f"an event of the event stream is longer than {MAX_EVENT_BYTES} bytes")


def _describe(response: httpx.Response) -> str:
    return f"answered {response.status_code}: {response.text[:300]}"
