"""What people want to know of a HyphaJob. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from hypha_contracts.kinds import Manifest
from hypha_contracts.names import WORKER_LABEL
from hypha_contracts.object_status import find_condition, is_open, is_true
from hypha_contracts.text import escaped
from hypha_kubectl.views.problems import Problem

PHASES: Final = ("Running", "Starting", "Pending", "Failed", "Succeeded")
"""In the order in which people look for them."""
_SHORT_CHARS: Final = len("hypha-01234567")


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        executor: its class and name, such as `train/diloco-transformer`.
        problem: why it does not run or how it failed, if there is something wrong.
        created: when its lease got it, `started` when its executor started, and `completed` when it had ended.
        lease_id: the lease under which it runs.
        lease_ends: when the lease ends unless its scheduler renews it.
        leased_s: seconds since the scheduler accepted the lease, up to the job's end.
        price: the agreed price, in the network's own unit.
        earned: the price times the leased seconds. It is no payment.
        reported: whether the scheduler knows that it ended, so that nothing is left to do.
        pod: the name of its pod.
    """

    namespace: str
    name: str
    worker: str
    executor: str
    scheduler: str
    phase: str
    reason: str
    problem: Problem | None
    created: datetime
    started: datetime | None
    completed: datetime | None
    lease_id: str
    lease_ends: datetime | None
    leased_s: float
    price: float
    earned: float
    reported: bool
    pod: str | None
    node: str | None
    round: int | None
    batches: int
    samples: int
    samples_per_second: float | None
    rounds_per_hour: float | None
    total_batches: int | None
    estimated_end: datetime | None
    metrics: dict[str, float]

    @property
    def ended(self) -> bool:
        """Whether no part of it runs any more."""
        return self.completed is not None or self.phase in ("Failed", "Succeeded")

    @property
    def short_name(self) -> str:
        """The beginning of its name, which usually is enough to name it."""
        return self.name[:_SHORT_CHARS]


def job_of(manifest: Manifest, now: datetime) -> Job:
    """Return what people want to know of a HyphaJob."""
    metadata, spec, status = manifest["metadata"], manifest["spec"], manifest.get("status") or {}
    lease, executor, progress = spec.get("lease") or {}, spec.get("executor") or {}, status.get("progress") or {}
    completed = time_of(status.get("completionTime"))
    leased_s, price = seconds_since(lease.get("accepted"), completed or now), float(lease.get("price") or 0)
    return Job(
        namespace=metadata["namespace"],
        name=metadata["name"],
        worker=(metadata.get("labels") or {}).get(WORKER_LABEL) or (spec.get("workerRef") or {}).get("name", ""),
        executor=escaped(f"{executor.get('class', '')}/{executor.get('name', '')}"),
        scheduler=escaped(str(spec.get("scheduler", ""))),
        phase=str(status.get("phase") or "Pending"),
        reason=str(status.get("reason") or ""),
        problem=_problem_of(manifest),
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        started=time_of(status.get("startTime")),
        completed=completed,
        lease_id=str(lease.get("id", "")),
        lease_ends=time_of(lease.get("deadline")),
        leased_s=leased_s,
        price=price,
        earned=price * leased_s,
        reported=not is_open(manifest),
        pod=status.get("podName"),
        node=status.get("nodeName"),
        round=progress.get("round"),
        batches=int(progress.get("batches") or 0),
        samples=int(progress.get("samples") or 0),
        samples_per_second=progress.get("samplesPerSecond"),
        rounds_per_hour=progress.get("roundsPerHour"),
        total_batches=progress.get("totalBatches"),
        estimated_end=time_of(progress.get("estimatedEnd")),
        metrics={escaped(name): value for name, value in (progress.get("metrics") or {}).items()},
    )


def _problem_of(manifest: Manifest) -> Problem | None:
    failed = (manifest.get("status") or {}).get("phase") == "Failed"
    if not (failed or is_true(manifest, "Stalled")):
        return None
    ready = find_condition(manifest, "Ready")
    reason = str(ready.get("reason") or (manifest["status"].get("reason") or ""))
    return Problem.of(reason, escaped(str(ready.get("message") or "")))


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """Return jobs as people look for them: those that run first, in each phase the newest first."""
    rank = {phase: number for number, phase in enumerate(PHASES)}
    return sorted(jobs, key=lambda job: (rank.get(job.phase, len(rank)), -job.created.timestamp(), job.name))


def matching(jobs: Sequence[Manifest], name: str) -> list[Manifest]:
    """Return the HyphaJob of a name, or those whose name or task id begins with it."""
    exact = [job for job in jobs if job["metadata"]["name"] == name]
    return exact or [job for job in jobs if job["metadata"]["name"].startswith((name, f"hypha-{name}"))]


def time_of(text: Any) -> datetime | None:
    """Return a time of the API, or None if there is none."""
    return datetime.fromisoformat(text) if text else None


def seconds_since(text: Any, end: datetime) -> float:
    """Return how many seconds before an end a time of the API was; 0 if there is none."""
    start = time_of(text)
    return max(0.0, (end - start).total_seconds()) if start else 0.0
