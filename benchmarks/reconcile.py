"""Many HyphaWorkers and HyphaJobs on a real control plane. kwok simulates the kubelets, this process the nodes.

RECONCILE_WORKERS (1000) and RECONCILE_JOBS (10000) set their numbers. RECONCILE_TURNS (5) is the number of turns in
which the operator and a plain script create them, each on a control plane of its own. The API server's audit log counts
the operator's calls.
"""

import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure
from benchmarks.nodes import BenchmarkError
from benchmarks.reconcile_load import Board, Load
from benchmarks.reconcile_operator import Operator, Release, calm_since, until
from benchmarks.reconcile_plain import PlainScript, recorded
from benchmarks.reconcile_plane import Audit, control_plane, queued
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.kwok import kwok, owner_of, pod_placement
from e2e.cluster.processes import StartError
from e2e.cluster.tools import ToolError

MEMORY_MB = 300
SLOWER = 1.5
"""How much longer than a plain script the operator may take."""
READS, CHECKS, WRITES = ("get", "list"), ("check",), ("create", "patch", "delete")
Calls = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        workers: HyphaWorkers to create.
        jobs: HyphaJobs to create.
        turns: How often operator and script take turns.
        nodes: Nodes that kwok simulates.
        calm_s: The operator has reconciled all objects once it has had nothing to do for so long.
        timeout_s: How long to wait for each step.
    """

    workers: int
    jobs: int
    turns: int
    nodes: int
    calm_s: float
    timeout_s: float

    def until_turn(self, turn: int) -> tuple[int, int]:
        """Return how many workers and jobs there are after this turn."""
        return self.workers * turn // self.turns, self.jobs * turn // self.turns


FULL = Scale(
    workers=int(os.environ.get("RECONCILE_WORKERS", "1000")),
    jobs=int(os.environ.get("RECONCILE_JOBS", "10000")),
    turns=int(os.environ.get("RECONCILE_TURNS", "5")),
    nodes=10,
    calm_s=5.0,
    timeout_s=3600.0,
)
SMALL = Scale(workers=2, jobs=4, turns=2, nodes=1, calm_s=1.0, timeout_s=90.0)


@dataclass
class Spent:
    """What all turns took together.

    Attributes:
        workers_s: From the first worker created until all are Ready.
        created_s: From the first job created until the last one is.
        jobs_s: From the first job created until all run.
        operator_s: From the first worker created until no controller has work left.
        script_s: The same for the script.
        worker_calls: The operator's calls until the workers are Ready.
        job_calls: Its calls after that.
    """

    workers_s: float = 0.0
    created_s: float = 0.0
    jobs_s: float = 0.0
    operator_s: float = 0.0
    script_s: float = 0.0
    worker_calls: Calls = field(default_factory=Counter)
    job_calls: Calls = field(default_factory=Counter)


def run(scale: Scale) -> list[Figure]:
    """Return seconds, numbers of API calls, memory and processor time."""
    try:
        with TemporaryDirectory(prefix="hypha-benchmark-") as directory, ExitStack() as stack:
            return _measured(stack, Path(directory), scale)
    except (ToolError, StartError) as error:
        raise BenchmarkError(str(error)) from error


def _measured(stack: ExitStack, directory: Path, scale: Scale) -> list[Figure]:
    """Return all figures. In each turn the script creates what the operator has just created."""
    audit, spent = Audit(directory / "audit.log"), Spent()
    plane = stack.enter_context(control_plane(directory / "plane", audit))
    release = Release(plane)
    nodes = stack.enter_context(kwok(plane, directory, nodes=scale.nodes))
    script = _script(stack, directory / "script", scale, owner_of(nodes))
    load, board = Load(plane, pod_placement(nodes)), Board(plane)
    with release.operator(directory) as operator:
        side = _Side(load, board, audit, operator, scale)
        for turn in range(1, scale.turns + 1):
            namespaces = side.take_turn(turn, spent)
            spent.script_s += script.run(*recorded(plane, namespaces), scale.calm_s, scale.timeout_s)
        figures = [*_of_turns(spent, scale), *_costs("", operator)]
    with release.operator(directory) as operator:
        figures += _restart(audit, operator, plane, scale)
    figures += [
        Figure("a plain script creates the same objects, no controller has work left", spent.script_s, "s"),
        Figure("all reconciled / plain script", spent.operator_s / spent.script_s, "x", at_most=SLOWER),
    ]
    return figures


def _script(stack: ExitStack, directory: Path, scale: Scale, recorded_owner: str) -> PlainScript:
    """Start a control plane without an operator, and return the script that creates objects there."""
    directory.mkdir()
    plane = stack.enter_context(control_plane(directory / "plane", Audit(directory / "audit.log")))
    Release(plane)  # for its definitions; its operator does not run
    nodes = stack.enter_context(kwok(plane, directory, nodes=scale.nodes))
    return PlainScript(plane, (recorded_owner, owner_of(nodes)))


@dataclass(frozen=True)
class _Side:
    """The operator's side: what creates its objects, what watches them, and what counts its calls."""

    load: Load
    board: Board
    audit: Audit
    operator: Operator
    scale: Scale

    def take_turn(self, turn: int, spent: Spent) -> list[str]:
        """Create the workers of a turn, then their jobs, and add what that took. Return the new namespaces."""
        workers, jobs = self.scale.until_turn(turn)
        workers_before, jobs_before = self.scale.until_turn(turn - 1)
        calls, started = self.audit.calls(), time.monotonic()
        namespaces = self.load.make_workers(workers - workers_before)
        until(lambda: len(self.board.ready) >= workers, "all workers are ready", self.scale.timeout_s)
        calls_when_ready, ready = self.audit.calls(), time.monotonic()
        self.load.make_jobs(jobs - jobs_before)
        created = time.monotonic()
        until(lambda: len(self.board.running) >= jobs, "all jobs run", self.scale.timeout_s)
        running = time.monotonic()
        calm = _calm_since(self.operator, self.load.plane, workers + jobs, self.scale)
        spent.workers_s += ready - started
        spent.created_s += created - ready
        spent.jobs_s += running - ready
        spent.operator_s += calm - started
        spent.worker_calls += calls_when_ready - calls
        spent.job_calls += self.audit.calls() - calls_when_ready
        return namespaces


def _of_turns(spent: Spent, scale: Scale) -> list[Figure]:
    return [
        Figure(f"{scale.workers} workers: the first is created, all are Ready", spent.workers_s, "s"),
        Figure(f"{scale.jobs} jobs: the first is created, the last is", spent.created_s, "s"),
        Figure(f"{scale.jobs} jobs: the first is created, all run", spent.jobs_s, "s"),
        Figure("all reconciled, no controller has work left", spent.operator_s, "s"),
        *_per_object("worker", spent.worker_calls, scale.workers),
        *_per_object("job", spent.job_calls, scale.jobs),
    ]


def _restart(audit: Audit, operator: Operator, plane: ControlPlane, scale: Scale) -> list[Figure]:
    """Measure what a restart costs when nothing has changed."""
    calls, started = audit.calls(), time.monotonic()
    calm_s = _calm_since(operator, plane, scale.workers + scale.jobs, scale) - started
    made = audit.calls() - calls
    return [
        Figure("restart: all reconciled", calm_s, "s"),
        Figure("restart: reads", _of_verbs(made, *READS), "calls"),
        Figure("restart: dry runs", _of_verbs(made, *CHECKS), "calls"),
        Figure("restart: writes", _of_verbs(made, *WRITES), "calls", at_most=0),
        *_costs("restart: ", operator),
    ]


def _per_object(kind: str, calls: Calls, count: int) -> list[Figure]:
    figures = [Figure(f"calls per {kind}", _of_verbs(calls, *READS, *CHECKS, *WRITES) / count, "")]
    figures += [
        Figure(f"... {verb} {resource}", number / count, "")
        for (verb, resource), number in calls.most_common()
        if number > count / 50 and verb in WRITES
    ]
    return figures


def _of_verbs(calls: Calls, *verbs: str) -> int:
    return sum(number for (verb, _), number in calls.items() if verb in verbs)


def _costs(when: str, operator: Operator) -> list[Figure]:
    return [
        Figure(f"{when}most memory", operator.peak_memory_bytes() / 1e6, "MB", at_most=MEMORY_MB),
        Figure(f"{when}processor time", operator.processor_s(), "s"),
    ]


def _calm_since(operator: Operator, plane: ControlPlane, objects: int, scale: Scale) -> float:
    """Wait until the operator has seen all objects, and for a while neither it nor a controller had work left.

    Return the monotonic time since which this has been so. The operator looks at each object again after some minutes,
    which does not count as work.
    """

    def is_calm() -> bool:
        seen = operator.metrics("hypha_operator_reconcile_seconds_count")
        left = operator.metrics("hypha_operator_queue") + queued(plane)
        return seen >= objects and not left

    return calm_since(is_calm, scale.calm_s, scale.timeout_s)
