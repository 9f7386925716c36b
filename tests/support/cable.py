"""A connection to a server that a test can cut."""

import asyncio
import threading
from contextlib import suppress
from urllib.parse import urlsplit


class Cable:
    """Forwards connections to a server.

    While it is cut, connections stay open and nothing passes. Mending closes the connections that were open, because
    what a program sent into a network that is cut, and did not take back, would arrive late at most for as long as the
    program keeps the connection.
    """

    def __init__(self, server: str) -> None:
        self._host, self._port = urlsplit(server).hostname, urlsplit(server).port
        self._open = {"to": asyncio.Event(), "from": asyncio.Event()}
        self._connections: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(self._serve())
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self, *, answers_only: bool = False) -> None:
        """Let nothing pass, or only what goes to the server."""
        self._run(self._set(to=answers_only, from_=False))

    def mend(self) -> None:
        """Close the open connections, and forward new ones."""
        self._run(self._renew())

    def close(self) -> None:
        self._run(self._renew())
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, action):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(action, self._loop).result(30)

    async def _serve(self) -> asyncio.Server:
        await self._set(to=True, from_=True)
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _set(self, *, to: bool, from_: bool) -> None:
        for direction, passes in (("to", to), ("from", from_)):
            (self._open[direction].set if passes else self._open[direction].clear)()

    async def _renew(self) -> None:
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._set(to=True, from_=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._open["to"].wait()
            upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
            pumps = [
                asyncio.create_task(self._pump("to", reader, upstream_writer)),
                asyncio.create_task(self._pump("from", upstream_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                upstream_writer.transport.abort()
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._open[direction].wait()
                writer.write(data)
                await writer.drain()
