"""The HTTP server on the job's socket."""

import os
import socket
import time
from pathlib import Path
from typing import Final

import uvicorn

from hypha_bridge.api import create_app
from hypha_bridge.bridge import Bridge
from hypha_contracts.bridge_config import BridgeConfig

MAX_CONNECTIONS: Final = 128
"""Above it the bridge answers 503, because its own memory is not part of the job's limits."""
_START_FIELD: Final = 19
"""Of /proc/self/stat, counted from the field after the name: when the process started, in ticks since the boot."""
_REQUESTS_END_S: Final = 2
_KEEP_ALIVE_S: Final = 86_400  # closing a connection between two batches would race with the next report


class BridgeServer(uvicorn.Server):
    """Serves a bridge until a signal or a caller sets `should_exit`."""

    def __init__(self, config: BridgeConfig) -> None:
        self.bridge = Bridge(config)
        self._path = config.socket
        super().__init__(
            uvicorn.Config(
                create_app(self.bridge),
                log_config=None,
                access_log=False,
                lifespan="on",
                http="h11",  # it limits the size of request heads
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_REQUESTS_END_S,
            )
        )

    async def run_until_stopped(self) -> int:
        """Serve and return how many of the last files no peer received; OSError if it cannot listen."""
        with listen(self._path) as listener:
            await self.serve([listener])
        self._path.unlink(missing_ok=True)
        return self.bridge.undelivered

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve."""
        await super().startup(sockets)
        self.bridge.telemetry.record("bridge ready", process_started_ns())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the event streams first, because they would never end by themselves."""
        await self.bridge.inbox.close()
        await super().shutdown(sockets)


def process_started_ns() -> int:
    """Return when this process started, in nanoseconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[_START_FIELD])
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time_ns() - int(age_s * 1e9)


def listen(path: Path) -> socket.socket:
    """Listen on a socket to which only this user may connect. Replace a socket that an earlier bridge left.

    Raises:
        OSError: listening is impossible, or `path` is a file that is not a socket.
    """
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(umask)
    return listener
