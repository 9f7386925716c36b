"""The rates of pushes over slow paths: QUIC, TCP with the muxer, and TCP of the kernel alone."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio

from support.certs import Pki
from support.nat_lab import QUIC, TCP, Laboratory, SlowPath, laboratory

PATHS: Final = (SlowPath(200, 0.05), SlowPath(200, 0.05, loss=0.005))
ALGORITHMS: Final = ("reno", "cubic")
SECONDS: Final = 10.0
HEAD: Final = "| path | QUIC, Mbit/s | TCP | the kernel's TCP, reno | cubic |\n| --- | --- | --- | --- | --- |"


def lines(seconds: float = SECONDS) -> Iterator[str]:
    """Measure, and yield the lines of the table. The rates are in Mbit/s."""
    yield HEAD
    for path in PATHS:
        with TemporaryDirectory(prefix="nat-table-") as directory, laboratory(Pki(), Path(directory)) as lab:
            rates = trio.run(_rates, lab, path, seconds)
        cells = (f"{path.mbit_per_s:g} Mbit/s, {path.round_trip_s * 1000:g} ms, {path.loss:.1%} lost", *rates)
        yield f"| {' | '.join(cells)} |"


async def _rates(lab: Laboratory, path: SlowPath, seconds: float) -> list[str]:
    rates = [await of_nodes(lab, path, end, seconds) for end in (QUIC, TCP)]
    rates += [await of_kernel(lab, path, algorithm, seconds) for algorithm in ALGORITHMS]
    return [f"{rate * 8 / 1e6:.0f}" for rate in rates]


async def of_nodes(lab: Laboratory, path: SlowPath, end: str, seconds: float) -> float:
    """Return the bytes per second of a push from one node to another."""
    one, other = await lab.apart(path)
    listening = lab.run(one, "support.link_node", "serve", *lab.certificate("receiver"), f"/ip4/{one.host}/{end}")
    address = str((await listening.line())["address"])
    pushing = lab.run(other, "support.link_node", "push", *lab.certificate("sender"), address, str(seconds))
    return float((await pushing.line())["bytes_per_s"])


async def of_kernel(lab: Laboratory, path: SlowPath, algorithm: str, seconds: float) -> float:
    """Return the bytes per second of a TCP connection."""
    one, other = await lab.apart(path)
    await lab.run(one, "support.link_node", "kernel-serve", one.host, "4001").line()
    pushing = lab.run(other, "support.link_node", "kernel-push", one.host, "4001", str(seconds), algorithm)
    return float((await pushing.line())["bytes_per_s"])
