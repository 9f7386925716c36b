"""How many the connector's server lets in."""

import contextlib
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from hypha_contracts.connector_api import ErrorCode
from hypha_contracts.descriptors import raise_limit
from hypha_worker.connector import connections
from hypha_worker.connector.http_server import Exchange, HttpError, listen_unix, serve_unix

pytestmark = pytest.mark.anyio

PATIENCE_S = 20


@pytest.fixture
def descriptors() -> Iterator[int]:
    """How many this process may have, which is fewer than it could."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 128 + len(list(Path("/proc/self/fd").iterdir()))  # those of earlier tests may still be open
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@asynccontextmanager
async def server(path: Path) -> AsyncIterator[trio.Event]:
    """A server whose requests are admitted and answered once the event is set."""
    go_on = trio.Event()

    async def answer(exchange: Exchange) -> None:
        if exchange.path == "/unknown":
            raise HttpError(ErrorCode.UNAUTHORIZED, "unknown")
        exchange.mark_authenticated()
        await go_on.wait()
        await exchange.answer_empty()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_unix, listen_unix(path), answer)
            await trio.testing.wait_all_tasks_blocked()
            yield go_on
            nursery.cancel_scope.cancel()


async def ask(path: Path) -> trio.SocketStream:
    stream = await trio.open_unix_socket(path)
    await stream.send_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
    return stream


async def status(stream: trio.SocketStream) -> int:
    async with stream:
        return int((await stream.receive_some()).split()[1])


async def answer_to(path: Path, request: bytes) -> bytes:
    """All that the server answers to these bytes."""
    async with await trio.open_unix_socket(path) as stream:
        answer = b""
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(request)
            while data := await stream.receive_some():
                answer += data
        return answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: n\r\n" + b"".join(b"X-%d: x\r\n" % n for n in range(40_000)),
        b"GET / HTTP/1.1\r\nHost: n\r\n" + b"a:\r\n" * 100,
        b"GET / HTTP/1.1\r\nHost: n\r\nX: " + b"x" * 20_000 + b"\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: n\r\n",
        b"POST / HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n",
        b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
        b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 5\r\ncontent-length: 5\r\n",
        b"POST / HTTP/1.1\r\nHost: n\r\nContent-Length: 5, 6\r\n",
        b"POST / HTTP/1.1\r\nHost: n\r\nTransfer-Encoding : chunked\r\n",
        b"POST / HTTP/1.1\r\nHost: n\r\nX: x\r\n Transfer-Encoding: chunked\r\nContent-Length: -5\r\n",
    ],
    ids=lambda head: head[33:60].decode().strip() + f"... {len(head)}",
)
async def test_a_request_that_no_bridge_makes_is_refused_at_little_cost(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "socket"
    async with server(path) as go_on:
        go_on.set()
        assert await answer_to(path, b"GET / HTTP/1.1\r\nHost: n\r\n\r\n")
        began = time.thread_time()
        for _ in range(10):
            assert await answer_to(path, head + b"\r\n") == b""
        assert (time.thread_time() - began) / 10 < 0.02


async def test_connections_of_one_process_are_limited_in_rate_unless_they_authenticate(tmp_path: Path) -> None:
    path, burst = tmp_path / "socket", connections.MAX_UNAUTHENTICATED_AT_ONCE
    async with server(path) as go_on:
        go_on.set()
        for _ in range(burst + 100):
            assert await answer_to(path, b"GET / HTTP/1.1\r\nHost: n\r\n\r\n")
        began, answered = trio.current_time(), 0
        for _ in range(1000):
            answered += bool(await answer_to(path, b"GET /unknown HTTP/1.1\r\nHost: n\r\n\r\n"))
        assert answered <= burst + 1 + connections.UNAUTHENTICATED_PER_S * (trio.current_time() - began)


async def test_authenticated_connections_leave_half_of_the_descriptors_to_the_node(
    tmp_path: Path, descriptors: int
) -> None:
    path = tmp_path / "socket"
    async with server(path) as go_on:
        raise_limit()  # for the clients, which are of the same process
        admitted = [await ask(path) for _ in range(descriptors // 2)]
        await trio.testing.wait_all_tasks_blocked()
        assert await status(await ask(path)) == 503
        await admitted.pop().aclose()
        go_on.set()
        assert [await status(stream) for stream in admitted] == [204] * len(admitted)
        assert await status(await ask(path)) == 204


def test_a_process_raises_its_descriptor_limit_to_the_maximum(descriptors: int) -> None:
    raise_limit()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
    assert soft > descriptors
