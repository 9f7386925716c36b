"""Many HyphaWorkers and HyphaJobs on a real control plane. kwok simulates the kubelets, this process the nodes.

RECONCILE_WORKERS (1000) and RECONCILE_JOBS (10000) set their numbers. The API server's audit log counts the
operator's calls.
"""

import os
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure
from benchmarks.nodes import BenchmarkError
from benchmarks.reconcile_load import Board, Load
from benchmarks.reconcile_operator import Operator, Release, calm_since, until
from benchmarks.reconcile_plain import Objects, PlainScript, recorded
from benchmarks.reconcile_plane import Audit, control_plane, queued
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.kwok import kwok, owner_of, pod_placement
from e2e.cluster.processes import StartError
from e2e.cluster.tools import ToolError

MEMORY_MB = 300
SLOWER = 1.5
"""How much longer than a plain script the operator may take."""
READS, CHECKS, WRITES = ("get", "list"), ("check",), ("create", "patch", "delete")


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        workers: HyphaWorkers to create.
        jobs: HyphaJobs to create.
        nodes: Nodes that kwok simulates.
        calm_s: The operator has reconciled all objects once it has had nothing to do for so long.
        timeout_s: How long to wait for each step.
    """

    workers: int
    jobs: int
    nodes: int
    calm_s: float
    timeout_s: float


FULL = Scale(
    workers=int(os.environ.get("RECONCILE_WORKERS", "1000")),
    jobs=int(os.environ.get("RECONCILE_JOBS", "10000")),
    nodes=10,
    calm_s=5.0,
    timeout_s=3600.0,
)
SMALL = Scale(workers=2, jobs=3, nodes=1, calm_s=1.0, timeout_s=90.0)


def run(scale: Scale) -> list[Figure]:
    """Return seconds, numbers of API calls, memory and processor time."""
    try:
        with TemporaryDirectory(prefix="hypha-benchmark-") as directory:
            with ExitStack() as stack:
                figures, both_s, objects, nodes = _measured(stack, Path(directory), scale)
            plain_s = _plain(Path(directory), scale, objects, nodes)
        return [
            *figures,
            Figure("a plain script creates the same objects, all pods run, no controller has work left", plain_s, "s"),
            Figure("all reconciled / plain script", both_s / plain_s, "x", at_most=SLOWER),
        ]
    except (ToolError, StartError) as error:
        raise BenchmarkError(str(error)) from error


def _measured(
    stack: ExitStack, directory: Path, scale: Scale
) -> tuple[list[Figure], float, tuple[Objects, Objects], str]:
    """Return the figures of the operator, the seconds until all was reconciled, all objects, and the nodes' name."""
    audit = Audit(directory / "audit.log")
    plane = stack.enter_context(control_plane(directory / "plane", audit))
    release = Release(plane)
    nodes = stack.enter_context(kwok(plane, directory, nodes=scale.nodes))
    board = Board(plane)
    with release.operator(directory) as operator:
        figures, both_s = _load(Load(plane, pod_placement(nodes)), board, audit, operator, scale)
    with release.operator(directory) as operator:
        figures += _restart(audit, operator, plane, scale)
    return figures, both_s, recorded(plane), owner_of(nodes)


def _plain(directory: Path, scale: Scale, objects: tuple[Objects, Objects], nodes_before: str) -> float:
    """Return the seconds that a plain script takes on another control plane."""
    (directory / "plain").mkdir()
    with control_plane(directory / "plain" / "plane", Audit(directory / "plain" / "audit.log")) as plane:
        Release(plane)  # for its definitions; its operator does not run
        with kwok(plane, directory / "plain", nodes=scale.nodes) as nodes:
            return PlainScript(plane, *objects, (nodes_before, owner_of(nodes))).run(scale.calm_s, scale.timeout_s)


def _load(load: Load, board: Board, audit: Audit, operator: Operator, scale: Scale) -> tuple[list[Figure], float]:
    """Create the workers, then the jobs. Return the figures and the seconds until all was reconciled."""
    calls, started = audit.calls(), time.monotonic()
    load.make_workers(scale.workers)
    until(lambda: len(board.ready) >= scale.workers, "all workers are ready", scale.timeout_s)
    calls_of_workers, workers_s = audit.calls() - calls, time.monotonic() - started
    load.make_jobs(scale.jobs)
    made_s = time.monotonic() - started - workers_s
    until(lambda: len(board.running) >= scale.jobs, "all jobs run", scale.timeout_s)
    running_s = time.monotonic() - started - workers_s
    both_s = _calm_since(operator, load.plane, scale) - started
    figures = [
        Figure(f"{scale.workers} workers: the first is created, all are Ready", workers_s, "s"),
        Figure(f"{scale.jobs} jobs: the first is created, the last is", made_s, "s"),
        Figure(f"{scale.jobs} jobs: the first is created, all run", running_s, "s"),
        Figure("all reconciled, no controller has work left", both_s, "s"),
        *_per_object("worker", calls_of_workers, scale.workers),
        *_per_object("job", audit.calls() - calls - calls_of_workers, scale.jobs),
        *_costs("", operator),
    ]
    return figures, both_s


def _restart(audit: Audit, operator: Operator, plane: ControlPlane, scale: Scale) -> list[Figure]:
    """Measure what a restart costs when nothing has changed."""
    calls, started = audit.calls(), time.monotonic()
    calm_s, made = _calm_since(operator, plane, scale) - started, audit.calls() - calls
    return [
        Figure("restart: all reconciled", calm_s, "s"),
        Figure("restart: reads", _of_verbs(made, *READS), "calls"),
        Figure("restart: dry runs", _of_verbs(made, *CHECKS), "calls"),
        Figure("restart: writes", _of_verbs(made, *WRITES), "calls", at_most=0),
        *_costs("restart: ", operator),
    ]


def _per_object(kind: str, calls: Counter[tuple[str, str]], count: int) -> list[Figure]:
    figures = [Figure(f"calls per {kind}", _of_verbs(calls, *READS, *CHECKS, *WRITES) / count, "")]
    figures += [
        Figure(f"... {verb} {resource}", number / count, "")
        for (verb, resource), number in calls.most_common()
        if number > count / 50 and verb in WRITES
    ]
    return figures


def _of_verbs(calls: Counter[tuple[str, str]], *verbs: str) -> int:
    return sum(number for (verb, _), number in calls.items() if verb in verbs)


def _costs(when: str, operator: Operator) -> list[Figure]:
    return [
        Figure(f"{when}most memory", operator.peak_memory_bytes() / 1e6, "MB", at_most=MEMORY_MB),
        Figure(f"{when}processor time", operator.processor_s(), "s"),
    ]


def _calm_since(operator: Operator, plane: ControlPlane, scale: Scale) -> float:
    """Wait until the operator has seen all objects, and for a while neither it nor a controller had work left.

    Return the monotonic time since which this has been so. The operator looks at each object again after some minutes,
    which does not count as work.
    """

    def is_calm() -> bool:
        seen = operator.metrics("hypha_operator_reconcile_seconds_count")
        left = operator.metrics("hypha_operator_queue") + queued(plane)
        return seen >= scale.workers + scale.jobs and not left

    return calm_since(is_calm, scale.calm_s, scale.timeout_s)
