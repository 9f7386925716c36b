"""Many HyphaWorkers and HyphaJobs on a real control plane; kwok plays the kubelets, this process the nodes.

RECONCILE_WORKERS (1000) and RECONCILE_JOBS (10000) say how many. The API server's audit log counts the operator's
calls.
"""

import os
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure
from benchmarks.nodes import BenchmarkError
from benchmarks.reconcile_load import Board, Load
from benchmarks.reconcile_operator import Operator, Release, until
from benchmarks.reconcile_plane import Audit, control_plane
from e2e.cluster.kwok import kwok, pod_placement
from e2e.cluster.processes import StartError
from e2e.cluster.tools import ToolError

WORKERS, JOBS = int(os.environ.get("RECONCILE_WORKERS", "1000")), int(os.environ.get("RECONCILE_JOBS", "10000"))
NODES = 10
MEMORY_MB = 300
CALM_S = 5.0
"""So long nothing is to be done before all counts as reconciled after a restart."""
READS, WRITES = ("get", "list"), ("create", "patch", "delete")
_TIMEOUT_S = 3600.0


def run() -> list[Figure]:
    """Seconds, calls of the API server, memory, processor time."""
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="hypha-benchmark-")))
            return _measured(stack, directory)
    except (ToolError, StartError) as error:
        raise BenchmarkError(str(error)) from error


def _measured(stack: ExitStack, directory: Path) -> list[Figure]:
    audit = Audit(directory / "audit.log")
    plane = stack.enter_context(control_plane(directory / "plane", audit))
    release = Release(plane)
    placement = pod_placement(stack.enter_context(kwok(plane, directory, nodes=NODES)))
    board = Board(plane)
    with release.operator(directory) as operator:
        figures = _load(Load(plane, placement), board, audit, operator)
    with release.operator(directory) as operator:
        return [*figures, *_restart(audit, operator)]


def _load(load: Load, board: Board, audit: Audit, operator: Operator) -> list[Figure]:
    """Workers first, then jobs."""
    calls, started = audit.calls(), time.monotonic()
    load.make_workers(WORKERS)
    until(lambda: len(board.ready) >= WORKERS, "all workers are ready", _TIMEOUT_S)
    calls_of_workers, workers_s = audit.calls() - calls, time.monotonic() - started
    load.make_jobs(JOBS)
    made_s = time.monotonic() - started - workers_s
    until(lambda: len(board.running) >= JOBS, "all jobs run", _TIMEOUT_S)
    both_s = time.monotonic() - started
    _await_calm(operator)
    return [
        Figure(f"{WORKERS} workers: the first is created, all are Ready", workers_s, "s"),
        Figure(f"{JOBS} jobs: the first is created, the last is", made_s, "s"),
        Figure(f"{JOBS} jobs: the first is created, all run", both_s - workers_s, "s"),
        Figure("all reconciled", both_s, "s"),
        *_per_object("worker", calls_of_workers, WORKERS),
        *_per_object("job", audit.calls() - calls - calls_of_workers, JOBS),
        *_costs("", operator),
    ]


def _restart(audit: Audit, operator: Operator) -> list[Figure]:
    """What it costs to find everything as it should be."""
    calls, started = audit.calls(), time.monotonic()
    _await_calm(operator)
    calm_s, made = time.monotonic() - started - CALM_S, audit.calls() - calls
    bindings = made["patch", "clusterrolebindings"]  # the operator may not read them: it applies them to be sure
    return [
        Figure("restart: all reconciled", calm_s, "s"),
        Figure("restart: reads", _of_verbs(made, *READS), "calls"),
        Figure("restart: bindings applied", bindings, "calls"),
        Figure("restart: other writes", _of_verbs(made, *WRITES) - bindings, "calls", at_most=0),
        *_costs("restart: ", operator),
    ]


def _per_object(kind: str, calls: Counter[tuple[str, str]], count: int) -> list[Figure]:
    figures = [Figure(f"calls per {kind}", _of_verbs(calls, *READS, *WRITES) / count, "")]
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
        Figure(f"{when}most memory", operator.most_memory_bytes() / 1e6, "MB", at_most=MEMORY_MB),
        Figure(f"{when}processor time", operator.processor_s(), "s"),
    ]


def _await_calm(operator: Operator) -> None:
    """Return once the operator has had nothing to do for a while, and all is known to it."""
    last, since = -1.0, time.monotonic()

    def calm() -> bool:
        nonlocal last, since
        done = operator.metrics("hypha_operator_reconcile_seconds_count")
        if done != last or done < WORKERS + JOBS or operator.metrics("hypha_operator_queue"):
            last, since = done, time.monotonic()
        return time.monotonic() - since >= CALM_S

    until(calm, "the operator has nothing to do", _TIMEOUT_S, every_s=0.5)
