"""The muxer between two processes on this machine, compared with bare TLS between them."""

import multiprocessing
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import TypeVar

import trio

from benchmarks.figures import Figure, percentile
from hypha_devnet.certs import create_node, create_organisation, create_root
from hypha_network.identity import Identity
from hypha_network.wire.addresses import Address
from hypha_network.wire.tls import SecureConnection, TlsTransport
from hypha_network.wire.transport import RawConnection
from hypha_network.wire.yamux import Yamux, YamuxStream
from hypha_network.wire.yamux_frames import Limits

_PIECE = bytes(1024 * 1024)
_REQUEST = bytes(200)

T = TypeVar("T")
Credentials = tuple[bytes, bytes, bytes]


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        mebibytes: Size of each transfer.
        frame_kib: Frame sizes.
        repeats: Transfers for each frame size. The best counts, because other load can only slow a transfer.
        requests: Number of small requests, alone and beside a bulk transfer.
    """

    mebibytes: int
    frame_kib: tuple[int, ...]
    repeats: int
    requests: int


FULL = Scale(mebibytes=512, frame_kib=(8, 16, 64, 256), repeats=3, requests=300)
SMALL = Scale(mebibytes=1, frame_kib=(16,), repeats=1, requests=3)


def run(scale: Scale) -> list[Figure]:
    """Return rates in MB/s, the receiver's processor time in seconds per GB, and times in ms."""
    figures: list[Figure] = []
    size_gb = scale.mebibytes * 1024 * 1024 / 1e9
    for kib in scale.frame_kib:
        for name, peer, receive in (("bare TLS", send_plain, receive_plain), ("muxer", send_muxed, receive_muxed)):
            times = [with_peer(peer, (scale.mebibytes, kib * 1024), receive) for _ in range(scale.repeats)]
            elapsed_s, busy_s = map(min, zip(*times, strict=True))
            figures.append(Figure(f"{name}, {kib} KiB frames", size_gb * 1000 / elapsed_s, "MB/s"))
            figures.append(Figure(f"{name}, {kib} KiB frames, receiver", busy_s / size_gb, "s/GB"))
    for name, bulk in (("alone", False), ("beside a bulk transfer", True)):
        times_s = with_peer(answer, (bulk,), partial(ask, bulk, scale.requests))
        figures += [
            Figure(f"request {name}, p{percent}", percentile(times_s, percent) * 1000, "ms") for percent in (50, 99)
        ]
    return figures


def with_peer(
    peer: Callable[..., Awaitable[None]],
    arguments: tuple[object, ...],
    here: Callable[[SecureConnection], Awaitable[T]],
) -> T:
    """Run `peer(connection, *arguments)` in another process and `here(connection)` in this one."""
    organisation = create_organisation(create_root(), "benchmark")
    nodes = [create_node(organisation, name) for name in ("here", "peer")]
    ours, theirs = [(node.cert_pem, node.key_pem, node.trust_pem) for node in nodes]
    context = multiprocessing.get_context("spawn")
    pipe, other_end = context.Pipe()
    process = context.Process(target=serve, args=(other_end, theirs, peer, arguments))
    process.start()
    try:
        result: T = trio.run(dial, pipe.recv(), ours, here)
    finally:
        process.terminate()
        process.join()
    return result


def serve(
    pipe: Pipe, credentials: Credentials, peer: Callable[..., Awaitable[None]], arguments: tuple[object, ...]
) -> None:
    async def accept() -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        pipe.send(port)
        raw = RawConnection(await listener.accept(), Address("ip4", "127.0.0.1", port), is_initiator=False)
        await peer(await TlsTransport(Identity.from_pem(*credentials)).secure(raw), *arguments)

    trio.run(accept)


async def dial(port: int, credentials: Credentials, here: Callable[[SecureConnection], Awaitable[T]]) -> T:
    raw = RawConnection(
        await trio.open_tcp_stream("127.0.0.1", port), Address("ip4", "127.0.0.1", port), is_initiator=True
    )
    return await here(await TlsTransport(Identity.from_pem(*credentials)).secure(raw))


async def send_plain(connection: SecureConnection, mebibytes: int, piece_bytes: int) -> None:
    for _ in range(mebibytes * 1024 * 1024 // piece_bytes):
        await connection.write(_PIECE[:piece_bytes])
    await connection.close()


async def receive_plain(connection: SecureConnection) -> tuple[float, float]:
    await connection.read_some()
    start_s, start_busy_s = time.perf_counter(), time.process_time()
    while await connection.read_some():
        pass
    return time.perf_counter() - start_s, time.process_time() - start_busy_s


async def send_muxed(connection: SecureConnection, mebibytes: int, frame_bytes: int) -> None:
    muxed = Yamux(connection, connection.peer_id, limits=Limits(frame_bytes=frame_bytes))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        stream = await muxed.accept_stream()
        for _ in range(mebibytes):
            await stream.send_all(_PIECE)
        await stream.send_eof()


async def receive_muxed(connection: SecureConnection) -> tuple[float, float]:
    muxed = Yamux(connection, connection.peer_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        stream = await muxed.open_stream()
        await stream.receive_some()
        start_s, start_busy_s = time.perf_counter(), time.process_time()
        await drain(stream)
        elapsed_s, busy_s = time.perf_counter() - start_s, time.process_time() - start_busy_s
        await muxed.close()
    return elapsed_s, busy_s


async def drain(stream: YamuxStream) -> None:
    while await stream.receive_some():
        pass


async def answer(connection: SecureConnection, bulk: bool) -> None:
    muxed = Yamux(connection, connection.peer_id)

    async def pour(stream: YamuxStream) -> None:
        while True:
            await stream.send_all(_PIECE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        if bulk:
            nursery.start_soon(pour, await muxed.accept_stream())
        while True:
            stream = await muxed.accept_stream()
            await drain(stream)
            await stream.send_all(_REQUEST)
            await stream.aclose()


async def ask(bulk: bool, requests: int, connection: SecureConnection) -> list[float]:
    muxed = Yamux(connection, connection.peer_id)
    times_s = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxed.start)
        if bulk:
            nursery.start_soon(drain, await muxed.open_stream())
        for _ in range(requests):
            start_s = time.perf_counter()
            stream = await muxed.open_stream()
            await stream.send_all(_REQUEST)
            await stream.send_eof()
            await drain(stream)
            times_s.append(time.perf_counter() - start_s)
        nursery.cancel_scope.cancel()
    return times_s
