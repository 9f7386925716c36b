"""One job in the laboratory. This process is its scheduler, and runs it from within the scheduler's namespace."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio

from benchmarks.executor import make_gradient
from benchmarks.nodes import BenchmarkError, Kind, Node, Scheduler, Stage
from hypha_devnet import certs
from hypha_devnet.config import NodeConfig
from hypha_devnet.roles.node import join
from nat_table.cases import DATA, HIDDEN, PORTS, SCHEDULER, SERVER, TRAINERS, TRANSPORTS, WORKERS, Case, Outcome
from support.certs import Pki
from support.nat_lab import Laboratory, Place, in_a_process, inside, laboratory

ROUNDS: Final = 3
SIZE_BYTES: Final = 4_000_000
"""Of a slice, and of a pseudo-gradient: many times what a limited relay passes on."""
JOB_S: Final = 100.0
"""Long enough for nodes that try in vain to punch a hole, for 20 s per pair, before a gateway relays bulk data."""
READY_S: Final = 60.0
PRIVATE: Final = ("192.168.0.0/16", "127.0.0.0/8")
_REASONS: Final = {
    "only the relay": "bulk data fails: only a limited relay leads from one node to the other",
    "is not healthy": "a node does not join",
    "offers nothing": "a worker offers nothing",
}
"""What the table says, by a part of an error or of a node's log."""


def run(case: Case) -> Outcome:
    """Run a job, in a laboratory and a process of its own."""
    return in_a_process(_run, case)


def _run(case: Case) -> Outcome:
    with TemporaryDirectory(prefix="nat-table-") as directory, laboratory(Pki(), Path(directory)) as lab:
        places = {name: _place(lab, case, name) for name in (*TRAINERS, SERVER, DATA, SCHEDULER)}
        places["gateway"] = lab.public()
        stage = Stage(Path(directory), certs.create_organisation(certs.create_root(), "laboratory"))
        stage.prefix = lambda name: places[name].command
        stage.exclude_cidr = PRIVATE
        ends = TRANSPORTS[case.transport]
        stage.listen_addresses = [f"/ip4/0.0.0.0/{end}" for end in ends]
        with inside(places[SCHEDULER]), all_stopped(stage):
            bulk = {"relay": {"peer_mb_per_s": 100}} if case.gateway == "ours, bulk" else {}
            kind: Kind = "rust" if case.gateway == "reference" else "ours"
            stage.start_gateway(kind, [f"/ip4/{places['gateway'].host}/{end}" for end in ends], **bulk)
            return trio.run(_schedule, stage, case)


def _place(lab: Laboratory, case: Case, name: str) -> Place:
    return lab.behind_nat(PORTS[case.ports]) if name in HIDDEN[case.hidden] else lab.public()


@contextmanager
def all_stopped(stage: Stage) -> Iterator[None]:
    try:
        yield
    finally:
        trio.run(stage.stop)


async def _schedule(stage: Stage, case: Case) -> Outcome:
    meeting = stage.directory / "meeting"
    meeting.mkdir()
    (meeting / "size").write_text(str(SIZE_BYTES))
    reports = [stage.directory / f"{name}.json" for name in TRAINERS]
    async with join(NodeConfig.model_validate(stage.common(SCHEDULER))) as network, trio.open_nursery() as nursery:
        problem = ""
        try:
            with trio.fail_after(READY_S):
                await network.wait_ready()
            scheduler = Scheduler(nursery, network)
            data = _start_data(stage)
            await scheduler.until_ready(data)
            workers = await _start_workers(stage, scheduler, case)
            scheduler.provider = data.peer_id
            await scheduler.train([workers[name] for name in TRAINERS], workers[SERVER], "slices")
            for report in reports:
                await scheduler.report(report, *workers.values(), timeout_s=JOB_S)
        except (BenchmarkError, trio.TooSlowError) as error:
            problem = str(error) or "the scheduler does not join"
        nursery.cancel_scope.cancel()
    return Outcome(_steps_s(reports), problem and _reason(problem, stage))


async def _start_workers(stage: Stage, scheduler: Scheduler, case: Case) -> dict[str, Node]:
    """Start the workers, and return them once they have joined.

    The reference's come last, because they ask for the addresses of other nodes only when they start.
    """
    workers: dict[str, Node] = {}
    theirs = WORKERS[case.workers]
    for name in sorted((*TRAINERS, SERVER), key=theirs.__contains__):
        report, meeting = stage.directory / f"{name}.json", stage.directory / "meeting"
        arguments = None if name == SERVER else ["rounds", str(report), str(ROUNDS), str(meeting)]
        if name in theirs:
            await scheduler.until_ready(*workers.values())
        workers[name] = stage.start_worker(name, "rust" if name in theirs else "ours", arguments)
    await scheduler.until_ready(*workers.values())
    return workers


def _start_data(stage: Stage) -> Node:
    dataset = stage.directory / "slices"
    dataset.mkdir()
    make_gradient(dataset / "0.safetensors", SIZE_BYTES)
    return stage.start_data_node(DATA, "ours", dataset)


def _steps_s(reports: Sequence[Path]) -> tuple[float, ...]:
    """Return the seconds of each outer step that both trainers completed."""
    written = [report if report.exists() else report.with_name(f"{report.name}.part") for report in reports]
    if not all(path.exists() for path in written):
        return ()
    steps = zip(*(json.loads(path.read_text()) for path in written), strict=False)
    return tuple(max(received for _, received in step) - min(sent for sent, _ in step) for step in steps)


def _reason(problem: str, stage: Stage) -> str:
    logs = (path.read_text(errors="replace") for path in stage.directory.rglob("*.log"))
    texts = "\n".join([problem, *logs])
    known = (reason for part, reason in _REASONS.items() if part in texts)
    return next(known, problem.splitlines()[0])
