"""How many the connector's server lets in."""

import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from hypha_worker.connector.http_server import Exchange, listen_unix, serve_unix
from hypha_worker.runtimes.kubernetes.cluster import raise_descriptor_limit

pytestmark = pytest.mark.anyio

PATIENCE_S = 20


@pytest.fixture
def descriptors() -> Iterator[int]:
    """How many this process may have, which is fewer than it could."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
    yield 128
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@asynccontextmanager
async def server(path: Path) -> AsyncIterator[trio.Event]:
    """A server whose requests are admitted and answered once the event is set."""
    go_on = trio.Event()

    async def answer(exchange: Exchange) -> None:
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


async def test_authenticated_connections_leave_half_of_the_descriptors_to_the_node(
    tmp_path: Path, descriptors: int
) -> None:
    path = tmp_path / "socket"
    async with server(path) as go_on:
        raise_descriptor_limit()  # for the clients, which are of the same process
        admitted = [await ask(path) for _ in range(descriptors // 2)]
        await trio.testing.wait_all_tasks_blocked()
        assert await status(await ask(path)) == 503
        await admitted.pop().aclose()
        go_on.set()
        assert [await status(stream) for stream in admitted] == [204] * len(admitted)
        assert await status(await ask(path)) == 204


def test_a_node_in_a_cluster_raises_its_descriptor_limit_to_the_maximum(descriptors: int) -> None:
    raise_descriptor_limit()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard
    assert soft > descriptors
