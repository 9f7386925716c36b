"""The files that peers push, announced by the bridge's event stream."""

import json
import logging
import queue
import threading
from dataclasses import dataclass, replace
from typing import Final

import httpx

from hypha_executor.bridge import RETRY_FOR_S, Bridge, Reference, Retries
from hypha_executor.errors import BridgeError

log = logging.getLogger(__name__)

DIRECTORY: Final = "incoming"
"""Where the bridge puts pushed files, relative to the work directory."""

_MAX_WAITING: Final = 1024


@dataclass(frozen=True)
class Received:
    """A file that a peer has pushed.

    Attributes:
        peer: The id of the peer that sent it.
        path: Where the file is, relative to the work directory; `Bridge.inside` returns the absolute path.
        event_id: The event that announced it. Empty if the bridge numbers no events.
    """

    peer: str
    path: str
    event_id: str = ""


class Incoming:
    """The files that the peers of a reference push, in the order of their arrival.

    A thread subscribes to the bridge's event stream at once. When the stream breaks, it subscribes again after the last
    event that it has read.

    Args:
        bridge: The job's bridge.
        reference: The peers.
        after: The last event that an earlier process of this executor has dealt with. The bridge repeats later ones.
    """

    def __init__(self, bridge: Bridge, reference: Reference, after: str | None = None) -> None:
        self._bridge = bridge
        self._reference = reference
        self._after = after
        self._queue: queue.Queue[Received | BridgeError] = queue.Queue(_MAX_WAITING)
        self._opened = threading.Event()
        threading.Thread(target=self._follow, name="incoming", daemon=True).start()

    def wait_open(self, timeout_s: float = RETRY_FOR_S) -> None:
        """Wait until the subscription is open, so that no push can be missed.

        Raises:
            BridgeError: The bridge opened no subscription in time.
        """
        if not self._opened.wait(timeout_s):
            raise BridgeError(f"the job bridge opened no /resources/receive within {timeout_s:.0f} s")

    def next(self, timeout_s: float | None = None) -> Received | None:
        """Return the next file, or None if no file arrives within `timeout_s` seconds. Without a timeout, wait forever.

        Raises:
            BridgeError: The bridge is gone for good.
        """
        try:
            item = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, BridgeError):
            raise item
        return item

    def _follow(self) -> None:
        retries = Retries("POST /resources/receive")
        last_id = self._after
        while True:
            problem = "the stream ended"
            try:
                for event_id, data in self._bridge.events(self._reference, DIRECTORY, last_id):
                    retries.succeeded()
                    self._opened.set()
                    for received in parse_event(data):
                        self._queue.put(replace(received, event_id=event_id))
                    last_id = event_id or last_id
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            try:
                retries.failed(problem, final=self._bridge.gone())
            except BridgeError as error:
                return self._queue.put(error)


def parse_event(data: str) -> list[Received]:
    """Parse the data of an event: a pointer to a file, or a list of them. Skip other pointers, with one log line."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = data
    pointers = event if isinstance(event, list) else [event]
    received = [Received(p["from_peer"], p["path"]) for p in pointers if _announces_file(p)]
    if len(received) < len(pointers):
        log.warning("job bridge: an event that announces no file was ignored: %.300s", data[:300])
    return received


def _announces_file(pointer: object) -> bool:
    return isinstance(pointer, dict) and all(isinstance(pointer.get(key), str) for key in ("from_peer", "path"))
