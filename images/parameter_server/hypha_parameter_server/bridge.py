"""The job bridge: its HTTP API on the job's Unix socket."""

import json
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from hypha_parameter_server.errors import BridgeError

log = logging.getLogger(__name__)

# The bridge sends a comment every 5 s; silence for longer than this means that it is gone.
_SILENCE_S: Final = 30.0
# A bridge waits for its node as long as the job's lease lives; one that ends meanwhile breaks the connection. A report
# that was only given up on would be delivered all the same.
_ANSWER_S: Final = 6 * 3600.0
_TIMEOUT: Final = httpx.Timeout(_ANSWER_S, connect=5.0)
_GIVE_UP_S: Final = 120.0
_ANNOUNCED: Final = 1024


@dataclass(frozen=True)
class Arrival:
    """A file that a peer has pushed; the path is relative to the work directory."""

    peer: str
    path: str


class Bridge:
    """A client of the bridge; not for several threads."""

    def __init__(self, socket: Path) -> None:
        transport = httpx.HTTPTransport(uds=str(socket))
        self._client = httpx.Client(transport=transport, base_url="http://bridge", timeout=_TIMEOUT)

    def send(self, resource: Mapping[str, Any], path: str) -> None:
        """Has the bridge push a file to the peers of a reference; the bridge goes on with it in the background.

        Raises:
            BridgeError: refused, or the bridge can't be reached.
        """
        self._post("/resources/send", {"resource": resource, "path": path})

    def report_updated(self) -> bool:
        """Tells the scheduler that an outer step is done; whether that was the last one.

        Raises:
            BridgeError: refused, or the bridge or the scheduler can't be reached.
        """
        response = self._post("/status/send", "updated")
        try:
            answer = response.json()
        except ValueError:
            answer = None
        kind = answer.get("type") if isinstance(answer, dict) else None
        if kind not in ("Ok", "Continue", "Done"):
            log.warning("The scheduler answered 'updated' with %r; going on", response.text[:200])
        return kind == "Done"

    def _post(self, path: str, body: Any) -> httpx.Response:
        failing_since: float | None = None
        pause_s = 0.1
        while True:
            asked = time.monotonic()
            try:
                response = self._client.post(path, json=body)
                if response.is_success:
                    return response
                problem = f"status {response.status_code}: {response.text[:500]}"
                if response.status_code < 500 or time.monotonic() - asked > _GIVE_UP_S:  # it has given its node up
                    raise BridgeError(f"the bridge refused {path}: {problem}")
            except httpx.TransportError as error:
                problem = repr(error)
            failing_since = failing_since or time.monotonic()
            if time.monotonic() - failing_since + pause_s > _GIVE_UP_S:
                raise BridgeError(f"{path} failed for {_GIVE_UP_S:.0f} s, last with {problem}")
            log.warning("%s failed (%s); trying again in %.1f s", path, problem, pause_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5)


class Arrivals:
    """What peers push, announced by the bridge's event stream, which a thread of its own follows."""

    def __init__(self, socket: Path, resource: Mapping[str, Any], directory: str) -> None:
        self._socket = socket
        self._body = {"resource": resource, "path": directory}
        self._queue: queue.Queue[Arrival | BridgeError] = queue.Queue(_ANNOUNCED)
        threading.Thread(target=self._follow, name="arrivals", daemon=True).start()

    def get(self, timeout_s: float | None) -> Arrival | None:
        """The next arrival, or None after `timeout_s`.

        Raises:
            BridgeError: the bridge is gone for good.
        """
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, BridgeError):
            raise item
        return item

    def _follow(self) -> None:
        last_heard = time.monotonic()
        last_id = None
        while True:
            try:
                for line in self._lines(last_id):
                    last_heard = time.monotonic()
                    if line.startswith("id:"):
                        last_id = line.removeprefix("id:").strip()
                    arrival = parse_event(line)
                    if arrival is not None:
                        self._queue.put(arrival)
                problem = "the stream ended"
            except (httpx.TransportError, BridgeError) as error:
                problem = repr(error)
            if time.monotonic() - last_heard > _GIVE_UP_S:
                self._queue.put(BridgeError(f"/resources/receive failed for {_GIVE_UP_S:.0f} s, last with {problem}"))
                return
            log.warning("/resources/receive broke off (%s); subscribing again", problem)
            time.sleep(1)

    def _lines(self, last_id: str | None) -> Iterator[str]:
        timeout = httpx.Timeout(_SILENCE_S)
        transport = httpx.HTTPTransport(uds=str(self._socket))
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        with (
            httpx.Client(transport=transport, base_url="http://bridge", timeout=timeout) as client,
            client.stream("POST", "/resources/receive", json=self._body, headers=headers) as response,
        ):
            if not response.is_success:
                response.read()
                raise BridgeError(f"the bridge answered status {response.status_code}: {response.text[:500]}")
            yield from response.iter_lines()


def parse_event(line: str) -> Arrival | None:
    """The arrival in a line of the event stream; None for comments and what isn't one."""
    if not line.startswith("data:"):
        return None
    try:
        event = json.loads(line.removeprefix("data:"))
        peer, path = event["from_peer"], event["path"]
    except (ValueError, TypeError, KeyError):
        log.warning("The bridge announced something that is no arrival: %.200r", line)
        return None
    if not isinstance(peer, str) or not isinstance(path, str):
        log.warning("The bridge announced something that is no arrival: %.200r", line)
        return None
    return Arrival(peer, path)
