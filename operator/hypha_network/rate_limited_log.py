"""Log lines about peers that misbehave: one per peer and interval, so that they cannot fill the log."""

import logging
import time
from collections import OrderedDict

INTERVAL_S = 10.0
_MAX_PEERS = 1024


class Quiet:
    """A logger that says how many lines about the same peer it left out."""

    def __init__(self, logger: logging.Logger, interval_s: float = INTERVAL_S) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._peers: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def warning(self, peer_id: str, message: str, *args: object) -> None:
        """Log a warning about a peer, unless there has been a line within the interval."""
        self._log(logging.WARNING, peer_id, message, args)

    def info(self, peer_id: str, message: str, *args: object) -> None:
        """Log a piece of information about a peer, unless there has been a line within the interval."""
        self._log(logging.INFO, peer_id, message, args)

    def _log(self, level: int, peer_id: str, message: str, args: tuple[object, ...]) -> None:
        now = time.monotonic()
        last, left_out = self._peers.get(peer_id, (float("-inf"), 0))
        if now - last < self._interval_s:
            self._peers[peer_id] = last, left_out + 1
            return
        self._peers[peer_id] = now, 0
        self._peers.move_to_end(peer_id)
        if len(self._peers) > _MAX_PEERS:
            self._peers.popitem(last=False)
        suffix = f" ({left_out} more like this were not logged)" if left_out else ""
        self._logger.log(level, "peer %s: " + message + suffix, peer_id, *args)
