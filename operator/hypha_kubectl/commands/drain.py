"""`kubectl hypha drain` and `resume`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console
from rich.text import Text

from hypha_contracts.durations import short_duration
from hypha_contracts.kinds import HYPHA_JOB, WORKER, Manifest
from hypha_contracts.names import WORKER_LABEL
from hypha_contracts.object_status import is_true
from hypha_kubectl.access.api import Api
from hypha_kubectl.access.mirror import Mirror, following
from hypha_kubectl.commands.selection import chosen
from hypha_kubectl.errors import PluginError
from hypha_kubectl.views.draining import left_of, owner_in_git
from hypha_kubectl.views.workers import worker_of

SETTLE_S: Final = 5.0
"""How long nothing must be left: the node obeys within a second and reports what it reserves every two."""
_TICK_S: Final = 0.5


def drain(
    api: Api, namespace: str, name: str, *, deadline_s: int | None, timeout_s: int | None, settle_s: float | None
) -> None:
    """Suspend a worker, and wait until none of its jobs and leases is left. ApiError, PluginError.

    Args:
        api: the API server.
        namespace: the namespace of the worker.
        name: the worker.
        deadline_s: after so many seconds, the node ends the jobs that still run.
        timeout_s: how long to wait at most. The worker stays suspended.
        settle_s: how long nothing must be left; None: do not wait at all.
    """
    [worker] = chosen(api.find(WORKER, namespace), name, namespace)
    spec: Manifest = {"suspend": True}
    if deadline_s is not None:
        ends = api.now() + timedelta(seconds=deadline_s)
        spec["suspendDeadline"] = ends.isoformat(timespec="seconds").replace("+00:00", "Z")
    _change(api, worker, spec)
    deadline = f" Jobs that still run at {spec['suspendDeadline']} are ended." if deadline_s is not None else ""
    print(f"{namespace}/{name} is suspended: it makes no new offers.{deadline}", flush=True)
    if settle_s is not None:
        try:
            _wait_drained(api, namespace, name, timeout_s, settle_s)
        except KeyboardInterrupt:
            print(f"{namespace}/{name} stays suspended.", file=sys.stderr)
            raise
        print(f"{namespace}/{name} is drained. `kubectl hypha resume {name} -n {namespace}` makes it offer again.")


def resume(api: Api, namespace: str, name: str, *, timeout_s: int | None, wait: bool) -> None:
    """Let a worker make offers again, and wait until it does. ApiError, PluginError.

    Args:
        api: the API server.
        namespace: the namespace of the worker.
        name: the worker.
        timeout_s: how long to wait at most.
        wait: whether to wait.
    """
    [worker] = chosen(api.find(WORKER, namespace), name, namespace)
    _change(api, worker, {"suspend": None, "suspendDeadline": None})
    print(f"{namespace}/{name} may make offers again.", flush=True)
    if wait:
        _wait_offering(api, namespace, name, timeout_s)
        print(f"{namespace}/{name} makes offers.")


def _change(api: Api, worker: Manifest, spec: Manifest) -> None:
    metadata = worker["metadata"]
    api.merge(WORKER, metadata["namespace"], metadata["name"], {"spec": spec})
    if mark := owner_in_git(worker):
        undone = f"{mark} shows that this worker comes from Git, from where this change may be undone"
        print(f"warning: {undone}. Set spec.suspend there, too.", file=sys.stderr)


def _wait_drained(api: Api, namespace: str, name: str, timeout_s: int | None, settle_s: float) -> None:
    selector = {"labelSelector": f"{WORKER_LABEL}={name}"}
    since_s: float | None = None
    with (
        following(api, WORKER, namespace, fieldSelector=f"metadata.name={name}") as workers,
        following(api, HYPHA_JOB, namespace, **selector) as jobs,
        _progress() as report,
    ):
        for waited_s in _seconds(timeout_s):
            worker = _only(workers, namespace, name)
            left = left_of(worker, jobs.objects.values())
            since_s = (since_s if since_s is not None else waited_s) if left.is_nothing else None
            if since_s is not None and waited_s - since_s >= settle_s:
                return
            sure = f"; it must stay so for {settle_s:g} s" if left.is_nothing else ""
            report(workers.problem or jobs.problem or f"{left}{sure}")
            workers.take(_TICK_S)
            jobs.take(0)
    raise PluginError(
        f"{namespace}/{name} is not drained after {short_duration(timeout_s or 0)}: {left}. It stays suspended. Wait "
        "longer with --timeout, or have its jobs ended with --deadline."
    )


def _wait_offering(api: Api, namespace: str, name: str, timeout_s: int | None) -> None:
    with following(api, WORKER, namespace, fieldSelector=f"metadata.name={name}") as workers, _progress() as report:
        for _ in _seconds(timeout_s):
            worker = _only(workers, namespace, name)
            view = worker_of(worker, [], api.now())
            is_current = (worker.get("status") or {}).get("observedGeneration") == worker["metadata"].get("generation")
            if is_current and view.offers:
                return
            why = view.obstacles[0] if view.obstacles else None
            problem = f"{why.reason}: {why.message} {why.remedy}" if why else "the operator has not seen it yet"
            if is_current and is_true(worker, "Stalled"):
                raise PluginError(f"{namespace}/{name} makes no offers: {problem}")
            report(workers.problem or problem)
            workers.take(_TICK_S)
    raise PluginError(f"{namespace}/{name} makes no offers after {short_duration(timeout_s or 0)}: {problem}")


def _only(workers: Mirror, namespace: str, name: str) -> Manifest:
    worker = workers.objects.get((namespace, name))
    if worker is None:
        raise PluginError(f"{namespace}/{name} was deleted meanwhile.")
    return worker


def _seconds(timeout_s: int | None) -> Iterator[float]:
    """Yield for how many seconds a command waits already, once at least, until the timeout."""
    started, waited_s = time.monotonic(), 0.0
    yield waited_s
    while timeout_s is None or waited_s < timeout_s:
        waited_s = time.monotonic() - started
        yield waited_s


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show what a command waits for: on a terminal in one line, elsewhere as a line for each change."""
    console = Console(highlight=False)
    if console.is_terminal:
        with console.status("") as status:
            yield lambda text: status.update(Text(text))
        return
    last = ""

    def report(text: str) -> None:
        nonlocal last
        if text != last:
            print(f"waiting: {text}", flush=True)
        last = text

    yield report
