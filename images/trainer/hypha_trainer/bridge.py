"""The job bridge as a trainer sees it: HTTP over a Unix socket, in the spelling of the stock executor."""

import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from hypha_trainer.errors import BridgeError
from hypha_trainer.log import log

RETRY_FOR_S = 60.0
"""How long a bridge may be away before training ends."""

_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)
_SILENCE_S = 30.0  # a bridge sends a keep-alive every 5 s
_ANSWER_S = 6 * 3600.0
"""How long a bridge may take to answer: it waits for slow senders, and for its node as long as the job's lease lives.

One that ends meanwhile breaks the connection. A report that was only given up on would be delivered all the same.
"""
_TIMEOUT = httpx.Timeout(_ANSWER_S, connect=5.0)


@dataclass(frozen=True)
class Answer:
    """The scheduler's answer to a progress report: `Ok`, `Continue`, `ScheduleUpdate`, `Done` or `Error`."""

    kind: str
    counter: int | None = None


@dataclass(frozen=True)
class Fetched:
    """A file that the bridge put into the work directory."""

    path: Path
    size_bytes: int


class Bridge:
    """Requests to the job bridge. Safe to use from several threads.

    What fails for a passing reason (no connection, a 5xx answer) is tried again for `retry_for_s`; but not what the
    bridge gives up on after longer than that: it is the one to decide when its node is lost.
    """

    def __init__(self, socket: Path, work_dir: Path, retry_for_s: float = RETRY_FOR_S):
        self.work_dir = work_dir
        self._socket = socket
        self._retry_for_s = retry_for_s
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://bridge", timeout=_TIMEOUT
        )

    def close(self) -> None:
        """Closes the connections; requests under way in other threads fail."""
        self._client.close()

    def fetch(self, reference: Mapping[str, Any]) -> list[Fetched]:
        """Has the bridge fetch what `reference` names.

        Raises:
            BridgeError: The bridge is gone or cannot get it.
        """
        entries = self._post("/resources/fetch", reference)
        try:
            return [Fetched(self.inside(entry["path"]), int(entry["size"])) for entry in entries]
        except (KeyError, TypeError, ValueError):
            raise BridgeError(f"the bridge's answer to a fetch lists no files: {entries!r}"[:300]) from None

    def send(self, reference: Mapping[str, Any], path: Path) -> None:
        """Has the bridge send a file of the work directory; the file must stay as it is until the peers have it."""
        self._post("/resources/send", {"resource": reference, "path": str(path.relative_to(self.work_dir))})

    def report(self, progress: Mapping[str, Any] | str) -> Answer:
        """Reports progress to the scheduler and returns its answer."""
        answer = self._post("/status/send", progress)
        if not isinstance(answer, dict) or not isinstance(answer.get("type"), str):
            raise BridgeError(f"the scheduler's answer is not understood: {answer!r}"[:300])
        kind, counter = answer["type"], answer.get("counter")
        if kind == "ScheduleUpdate" and (not isinstance(counter, int) or counter < 0):
            raise BridgeError(f"the scheduler's ScheduleUpdate has no usable counter: {answer!r}"[:300])
        return Answer(kind, counter)

    def events(self, reference: Mapping[str, Any], folder: str, since: str | None) -> Iterator[tuple[str, str]]:
        """Subscribes once to what peers push, beyond event `since`; yields fields of the events and their values.

        First comes an empty field, once the subscription stands. Ends or raises `httpx.HTTPError` with the connection.
        """
        timeout = httpx.Timeout(_SILENCE_S)
        body = {"resource": reference, "path": folder}
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": since} if since else {})
        with self._client.stream("POST", "/resources/receive", json=body, headers=headers, timeout=timeout) as response:
            response.raise_for_status()
            yield "", ""
            for line in response.iter_lines():
                field, _, value = line.partition(":")
                yield field or "comment", value.strip()

    def inside(self, path: str) -> Path:
        """The absolute path of a file that the bridge names relative to the work directory."""
        absolute = (self.work_dir / path).resolve()
        if not absolute.is_relative_to(self.work_dir.resolve()):
            raise BridgeError(f"the bridge names {path!r}, which is outside the work directory")
        return absolute

    def gone(self) -> bool:
        """Whether the socket itself has been removed: the job is over."""
        return not self._socket.exists()

    def _post(self, path: str, body: object) -> Any:
        pauses, failing_since = iter(_PAUSES_S), None
        while True:
            asked = time.monotonic()
            try:
                response = self._client.post(path, json=body)
                if response.status_code < 400:
                    return response.json() if response.content else None
                problem = f"answered {response.status_code}: {response.text[:300]}"
                final = response.status_code < 500 or time.monotonic() - asked > self._retry_for_s
            except httpx.HTTPError as error:
                problem, final = f"{type(error).__name__}: {error}", self.gone()
            except ValueError:
                problem, final = "answered something that is not JSON", True
            failing_since = failing_since or time.monotonic()
            if final or time.monotonic() - failing_since > self._retry_for_s:
                raise BridgeError(f"job bridge, POST {path}: {problem}; see the log of the worker")
            log(f"job bridge, POST {path}: {problem}; trying again")
            time.sleep(next(pauses, _PAUSES_S[-1]))


class Updates:
    """The updates that the parameter server pushes, listened for from the start.

    A thread holds the subscription and takes it up again when it breaks, after the last event that it saw.
    """

    def __init__(self, bridge: Bridge, reference: Mapping[str, Any], folder: str = "incoming"):
        self._bridge = bridge
        self._reference = reference
        self._folder = folder
        self._arrived: queue.Queue[Path | BridgeError] = queue.Queue(maxsize=16)
        self._opened = threading.Event()
        threading.Thread(target=self._listen, name="updates", daemon=True).start()

    def wait_open(self, timeout_s: float = RETRY_FOR_S) -> None:
        """Returns once the subscription stands, so that no update can be missed."""
        if not self._opened.wait(timeout_s):
            raise BridgeError(f"the job bridge opened no /resources/receive within {timeout_s:.0f} s")

    def next(self, timeout_s: float) -> Path:
        """The next update, as the bridge received it.

        Raises:
            BridgeError: None came in time, or the bridge is gone.
        """
        try:
            arrived = self._arrived.get(timeout=timeout_s)
        except queue.Empty:
            raise BridgeError(
                f"no update came within {timeout_s:.0f} s; is the parameter server alive? "
                "(--update-timeout-s waits longer)"
            ) from None
        if isinstance(arrived, BridgeError):
            raise arrived
        return arrived

    def _listen(self) -> None:
        pauses, contact, last_id = iter(_PAUSES_S), time.monotonic(), None
        while True:
            problem = "the stream ended"
            try:
                for field, value in self._bridge.events(self._reference, self._folder, last_id):
                    contact = time.monotonic()
                    if field == "":
                        pauses = iter(_PAUSES_S)
                        self._opened.set()
                    elif field == "id":
                        last_id = value
                    elif field == "data":
                        self._take(json.loads(value))
            except (httpx.HTTPError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            except BridgeError as error:
                return self._arrived.put(error)
            if self._bridge.gone() or time.monotonic() - contact > RETRY_FOR_S:
                return self._arrived.put(BridgeError(f"job bridge, POST /resources/receive: {problem}"))
            log(f"job bridge, POST /resources/receive: {problem}; subscribing again")
            time.sleep(next(pauses, _PAUSES_S[-1]))

    def _take(self, event: object) -> None:
        for pointer in event if isinstance(event, list) else [event]:
            path = pointer.get("path") if isinstance(pointer, dict) else None
            if isinstance(path, str):
                self._arrived.put(self._bridge.inside(path))
            else:
                log(f"job bridge: an event without a path was ignored: {pointer!r}"[:300])
