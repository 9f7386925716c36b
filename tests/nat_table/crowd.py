"""Many idle workers behind one address on one gateway, and a public scheduler that joins at last."""

import os
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio

from benchmarks.nodes import SMALL_RESOURCES, Kind, Node, Stage, rust_binaries
from hypha_devnet import certs
from hypha_devnet.client import Offer, SchedulerClient, Wanted
from hypha_devnet.config import NodeConfig
from hypha_devnet.roles.node import healthy, join
from hypha_messages.advertisement import WorkerSpec
from hypha_messages.job import ExecutorDescriptor
from nat_table.job import PRIVATE, all_stopped
from support.certs import Pki
from support.nat_lab import KEPT, TCP, Laboratory, in_a_process, inside, laboratory

WORKERS: Final = int(os.environ.get("CROWD", "70"))
IDLE_S: Final = float(os.environ.get("CROWD_S", "600"))
OFFERS_S: Final = 10.0
_TOGETHER: Final = 5
"""How many workers start at once."""
_STARTED_S: Final = 60.0
_EXECUTOR: Final = {"class": "train", "name": "crowd", "runtime": "process", "cmd": "true"}
_RELAY_EVENTS: Final = ("CircuitReqAccepted", "CircuitReqDenied", "ReservationReqAccepted", "ReservationReqDenied")


def lines() -> list[str]:
    """Run them in a process of its own; return what was seen."""
    return in_a_process(_run)


def _run() -> list[str]:
    with TemporaryDirectory(prefix="nat-crowd-") as directory, laboratory(Pki(), Path(directory)) as lab:
        return _lines(lab, Path(directory))


def _lines(lab: Laboratory, directory: Path) -> list[str]:
    gateway, scheduler, home = lab.public(), lab.public(), lab.behind_nat(KEPT)
    places = {"gateway": gateway, "scheduler": scheduler}
    stage = Stage(directory, certs.create_organisation(certs.create_root(), "laboratory"))
    stage.prefix = lambda name: places.get(name, home).command
    stage.exclude_cidr = PRIVATE
    with inside(scheduler), all_stopped(stage):
        kind: Kind = "rust" if rust_binaries() else "ours"
        stage.listen_addresses = [f"/ip4/0.0.0.0/{TCP}"]
        # The reference's gateway writes what its relay does at this level.
        node = stage.start_gateway(
            kind, [f"/ip4/{gateway.host}/{TCP}"], environment={"RUST_LOG": "hypha_gateway=debug"}
        )
        return trio.run(_watch, stage, node)


async def _watch(stage: Stage, gateway: Node) -> list[str]:
    stage.listen_addresses = ["/ip4/0.0.0.0/tcp/0"]
    workers = []
    for number in range(WORKERS):
        workers.append(stage.start_worker(f"worker-{number}", "ours", None, executors=[_EXECUTOR]))
        if number % _TOGETHER == _TOGETHER - 1:
            with trio.move_on_after(_STARTED_S):
                await _until_ready(workers[-_TOGETHER:])
    await trio.sleep(IDLE_S)
    counts = _relay_events(gateway)
    reach = Counter(_last(worker, "peers reach this node: ") for worker in workers)
    stage.listen_addresses = [f"/ip4/0.0.0.0/{TCP}"]
    async with join(NodeConfig.model_validate(stage.common("scheduler"))) as network, trio.open_nursery() as nursery:
        await network.wait_ready()
        executor = ExecutorDescriptor.model_validate({"class": "train", "name": "crowd"})
        wanted = Wanted(WorkerSpec(resources=SMALL_RESOURCES, executor=[executor]), bid=10, role="train")
        client = SchedulerClient(network)
        began_s = time.monotonic()
        offers: dict[str, float] = {}

        def note(request: list[Offer]) -> list[Offer]:
            for offer in request:
                offers.setdefault(offer.peer_id, offer.arrived - began_s)
            return request if len(offers) == WORKERS else []

        with trio.move_on_after(OFFERS_S):
            while len(offers) < WORKERS:
                await client.collect(wanted, note)
        fit = [await healthy(network, worker.peer_id) for worker in workers]
        nursery.cancel_scope.cancel()
    later = _relay_events(gateway)
    return [
        f"{WORKERS} workers behind one address, idle for {IDLE_S:g} s",
        f"events of the gateway's relay: {dict(counts)}, and while the scheduler joined {dict(later - counts)}",
        f"peers reach the workers: {dict(reach)}",
        f"offers within {OFFERS_S:g} s: {len(offers)}, the last after {max(offers.values(), default=0):.2f} s",
        f"healthy at the end: {sum(fit)}",
    ]


async def _until_ready(workers: list[Node]) -> None:
    while not all("ready: gateways" in worker.log.read_text() for worker in workers):  # noqa: ASYNC110
        await trio.sleep(0.2)


def _relay_events(gateway: Node) -> Counter[str]:
    text = gateway.log.read_text(errors="replace")
    return Counter({name: text.count(f"{name} {{") for name in _RELAY_EVENTS if f"{name} {{" in text})


def _last(worker: Node, beginning: str) -> str:
    """Return the rest of the last line of the log that has this text."""
    found = [line for line in worker.log.read_text(errors="replace").splitlines() if beginning in line]
    return found[-1].rpartition(beginning)[2].strip('"') if found else "unknown"
