"""The HTTP server on the job's socket."""

import os
import socket
from pathlib import Path
from typing import Final

import uvicorn

from hypha_bridge.api import create_app
from hypha_bridge.bridge import Bridge
from hypha_contracts.bridge_config import BridgeConfig

MAX_CONNECTIONS: Final = 128
"""More are answered 503: the bridge's memory is outside of the job's limits."""
_REQUESTS_END_S: Final = 2
_KEEP_ALIVE_S: Final = 86_400  # a connection closed between two batches would race with the next report


class BridgeServer(uvicorn.Server):
    """Serves a bridge until `should_exit` is set, by a signal or otherwise."""

    def __init__(self, config: BridgeConfig) -> None:
        self.bridge = Bridge(config)
        self._path = config.socket
        super().__init__(
            uvicorn.Config(
                create_app(self.bridge),
                log_config=None,
                access_log=False,
                lifespan="on",
                http="h11",  # which bounds the heads of requests
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_REQUESTS_END_S,
            )
        )

    async def run_until_stopped(self) -> int:
        """Serve; return how many of the last files that were to be sent reached nobody. OSError without a socket."""
        with listen(self._path) as listener:
            await self.serve([listener])
        self._path.unlink(missing_ok=True)
        return self.bridge.undelivered

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop in order: event streams first, which would go on for ever."""
        await self.bridge.inbox.close()
        await super().shutdown(sockets)


def listen(path: Path) -> socket.socket:
    """Listen where only this user may connect, in place of the socket that a former bridge left.

    Raises:
        OSError: listening is impossible, or `path` is a file that is no socket.
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
