"""Decide whether the jobs of a worker start, and when to probe. Performs no I/O.

A start has failed because of the cluster if a HyphaJob ended for one of `CLUSTER_REASONS` before its executor started.
After the first one, the operator probes. After two, or one and a failed probe, the worker makes no offers until a probe
of every executor in question has succeeded, or a job of it has started.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from hypha_contracts.job_reasons import CLUSTER_REASONS, JobReason
from hypha_contracts.kinds import Manifest
from hypha_contracts.limits import MAX_FAILED_STARTS
from hypha_contracts.names import GENERATION_ANNOTATION, PROBED_ANNOTATION
from hypha_contracts.object_status import TERMINAL, find_condition, is_true
from hypha_contracts.reasons import WorkerReason
from hypha_operator.machinery.conditions import Condition
from hypha_operator.pods.state import Finding, end_of_job, end_of_pod, has_started, obstacle_of
from hypha_resources.job import Amounts
from hypha_resources.worker_jobs import Jobs

TYPE: Final = "JobsStart"
_FIRST_PAUSE: Final = timedelta(seconds=15)
_LONGEST_PAUSE: Final = timedelta(seconds=600)
_PROBING_S: Final = 5.0
_MISSING_S: Final = 20.0
_AGAIN_S: Final = 1.0


@dataclass(frozen=True)
class JobStart:
    """How a HyphaJob's start went.

    Attributes:
        executor: class and name of its executor.
        started: when the executor started.
        failed: when the job failed because of the cluster, before its executor started.
        finding: why the job failed, or what blocks it now.
    """

    executor: str
    resources: Amounts
    started: datetime | None = None
    failed: datetime | None = None
    finding: Finding | None = None

    @classmethod
    def of(cls, hypha_job: Manifest) -> "JobStart":
        """Return the start of a HyphaJob."""
        spec, status = hypha_job["spec"], hypha_job.get("status") or {}
        executor = f"{spec['executor']['class']}/{spec['executor']['name']}"
        resources = Amounts.model_validate(spec["resources"])
        if started := status.get("startTime"):
            return cls(executor, resources, started=datetime.fromisoformat(started))
        over = status.get("phase") in TERMINAL
        reason = next((known for known in JobReason if known == status.get("reason")), None)
        if reason is None or (over and reason not in CLUSTER_REASONS):
            return cls(executor, resources)
        finding = Finding(reason, find_condition(hypha_job, "Ready").get("message", ""))
        if over:
            ended = datetime.fromisoformat(status["completionTime"])
            return cls(executor, resources, failed=ended, finding=finding)
        blocked = is_true(hypha_job, "Stalled") or reason == JobReason.QUEUED
        return cls(executor, resources, finding=finding if blocked else None)


@dataclass(frozen=True)
class Probe:
    """A probe at one moment.

    Attributes:
        uid: of its Job.
        executor: class and name of the executor that it starts.
        generation: the generation of the HyphaWorker for which it was made.
        started: whether the executor has started.
        finding: what blocks it, or why it failed.
        over: whether it has failed.
    """

    uid: str
    executor: str
    generation: int
    started: bool = False
    finding: Finding | None = None
    over: bool = False


def probe_of(job: Manifest, pod: Manifest | None, refused: Finding | None, jobs: Jobs, now: datetime) -> Probe:
    """Return the state of a probe.

    Args:
        job: its Job.
        pod: the Job's pod, if there is one.
        refused: why the API server refuses the pod.
        jobs: the worker's settings of jobs.
        now: the time.
    """
    uid, annotations = job["metadata"]["uid"], job["metadata"]["annotations"]
    probe = Probe(uid, annotations[PROBED_ANNOTATION], int(annotations[GENERATION_ANNOTATION]))
    created = (job.get("status") or {}).get("startTime") or job["metadata"]["creationTimestamp"]
    age_s = (now - datetime.fromisoformat(created)).total_seconds()
    if pod and has_started(pod):
        return replace(probe, started=True)
    if end := end_of_pod(pod, 0.0, 0.0) if pod else end_of_job(job):
        return replace(probe, finding=end, over=True)
    if (job.get("spec") or {}).get("suspend"):
        return _queued(probe, age_s, jobs)
    obstacle = obstacle_of(pod, now) if pod else refused
    if obstacle is None and age_s >= jobs.start_timeout_seconds:
        message = f"its pod has not started within {jobs.start_timeout_seconds} s. {JobReason.START_TIMEOUT.remedy}"
        return replace(probe, finding=Finding(JobReason.START_TIMEOUT, message), over=True)
    return replace(probe, finding=obstacle, over=obstacle is not None and age_s >= jobs.start_patience_seconds)


def _queued(probe: Probe, age_s: float, jobs: Jobs) -> Probe:
    if age_s < jobs.start_patience_seconds:
        return probe
    message = f"the queue has not admitted it for {age_s:.0f} s. {JobReason.QUEUE_TIMEOUT.remedy}"
    over = age_s >= jobs.queue_timeout_seconds
    return replace(probe, finding=Finding(JobReason.QUEUE_TIMEOUT, message), over=over)


@dataclass(frozen=True)
class Round:
    """The probes for one generation of the worker.

    Attributes:
        generation: the HyphaWorker's generation.
        due: when the next probe may start.
        passed: the executors whose probes have succeeded.
        failures: the number of failed probes.
        counted: the uid of the last probe whose outcome is part of this. It may exist for some time.
        suspects: when a job of an executor failed, by class and name, until something shows that the executor starts.
            The HyphaJob may be deleted before that.
    """

    generation: int
    due: datetime
    passed: frozenset[str] = frozenset()
    failures: int = 0
    counted: str = ""
    suspects: Mapping[str, datetime] = field(default_factory=dict)

    def after(self, probe: Probe, now: datetime) -> "Round":
        """Return the round after a probe, if the probe has ended. The pauses grow with each failure."""
        if probe.generation != self.generation or probe.uid == self.counted:
            return self
        if probe.started:
            return replace(self, passed=self.passed | {probe.executor}, counted=probe.uid)
        if not probe.over:
            return self
        pause = min(_FIRST_PAUSE * 2 ** min(self.failures, 10), _LONGEST_PAUSE)
        return replace(self, failures=self.failures + 1, due=now + pause, counted=probe.uid)


@dataclass(frozen=True)
class ObservedStarts:
    """Everything that decides whether a worker's jobs start.

    Attributes:
        generation: the HyphaWorker's generation.
        executors: class and name of its executors.
        jobs: the starts of its HyphaJobs.
        before: its condition JobsStart.
        proven: when a job or a probe showed that its executors start.
        changed: when the executors changed, as far as this process knows.
        missing: why no node can run its jobs.
        probe: its probe, if there is one.
        round: the probes so far.
        may_probe: False while the worker is suspended or its executors are invalid.
    """

    now: datetime
    generation: int
    executors: Sequence[str]
    jobs: Sequence[JobStart]
    before: Mapping[str, Any]
    round: Round
    proven: datetime | None = None
    changed: datetime | None = None
    missing: Finding | None = None
    probe: Probe | None = None
    may_probe: bool = True


@dataclass(frozen=True)
class StartsDecision:
    """What follows for the worker.

    Attributes:
        condition: the condition JobsStart. The worker makes no offers while it is False.
        proven: when a job or a probe showed that the executors start.
        round: the probes so far.
        end_probe: whether to delete the probe.
        begin_probe: the executor to probe now.
        probed: the executor whose probe needs the room of a job.
        next_s: seconds until the next decision.
    """

    condition: Condition
    proven: datetime | None
    round: Round
    end_probe: bool = False
    begin_probe: str | None = None
    probed: str | None = None
    next_s: float = float("inf")


def decide_starts(observed: ObservedStarts) -> StartsDecision:
    """Return whether the worker's jobs start, and what to do about its probe."""
    now, current, changed = observed.now, observed.round, observed.changed
    if current.generation != observed.generation:
        current = Round(observed.generation, due=now, counted=current.counted, suspects=current.suspects)
    if observed.probe:
        current = current.after(observed.probe, now)
    proven = None if observed.proven and changed and observed.proven < changed else observed.proven
    observed = replace(observed, proven=proven)
    failed = [job for job in observed.jobs if job.failed and _is_open(job.executor, job.failed, observed)]
    newest = {job.executor: job.failed for job in sorted(failed, key=lambda job: str(job.failed)) if job.failed}
    known = {name: at for name, at in current.suspects.items() if _is_open(name, at, observed)}
    observed = replace(observed, round=replace(current, suspects=known | newest))
    suspects = _suspects(observed)
    if not suspects and not observed.missing:
        return _starting(observed)
    return _troubled(observed, failed, suspects)


def _is_open(executor: str, failed: datetime, observed: ObservedStarts) -> bool:
    """Whether nothing has shown since a job of an executor failed that the executor starts."""
    settled = max(filter(None, (observed.proven, observed.changed)), default=None)
    if settled and failed <= settled:
        return False
    return not any(job.started and job.started > failed for job in observed.jobs if job.executor == executor)


def _suspects(observed: ObservedStarts) -> list[str]:
    """Return the executors of which a probe or a job has yet to show that they start."""
    named = set(observed.round.suspects)
    if observed.before.get("status") == "False" and not named:  # this process may be new, and the HyphaJobs deleted
        since = datetime.fromisoformat(observed.before["lastTransitionTime"])
        if not any(job.started and job.started > since for job in observed.jobs):
            named = set(observed.executors)
    return [name for name in observed.executors if name in named - observed.round.passed]


def _starting(observed: ObservedStarts) -> StartsDecision:
    """Return the decision for a worker of which no start is in question."""
    since = observed.changed
    starts = [job.started for job in observed.jobs if job.started and not (since and job.started < since)]
    last, proven = max(starts, default=None), observed.proven
    newest_failure = max((job.failed for job in observed.jobs if job.failed), default=None)
    if observed.before.get("status") == "False" or observed.round.passed:
        proven = observed.now
    elif proven is None or (newest_failure and newest_failure > proven):
        proven = last
    fresh = Round(observed.generation, due=observed.now, counted=observed.round.counted)
    return StartsDecision(_verdict(observed, proven), proven, fresh, end_probe=observed.probe is not None)


def _verdict(observed: ObservedStarts, proven: datetime | None) -> Condition:
    if proven:
        return Condition(
            TYPE, True, WorkerReason.JOBS_START, f"Executors start, as shown at {proven:%Y-%m-%d %H:%M} UTC."
        )
    blocked = next((job for job in observed.jobs if job.finding and not job.failed), None)
    if blocked and blocked.finding:
        message = f"The first job of {blocked.executor} does not start yet: {blocked.finding.message}"
        return Condition(TYPE, None, blocked.finding.reason, message)
    return Condition(TYPE, None, WorkerReason.NOT_TRIED, f"No job has started yet. {WorkerReason.NOT_TRIED.remedy}")


def _troubled(observed: ObservedStarts, failed: Sequence[JobStart], suspects: Sequence[str]) -> StartsDecision:
    """Return the decision for a worker of which a start has failed, or for which no node has what it needs."""
    probe, current, now = observed.probe, observed.round, observed.now
    blocked = (
        observed.missing is not None
        or observed.before.get("status") == "False"
        or max(len(failed), len(current.suspects)) + current.failures >= MAX_FAILED_STARTS
    )
    condition = _failure(observed, failed, blocked=blocked)
    decision = StartsDecision(condition, observed.proven, current)
    may_probe = observed.may_probe and observed.missing is None
    if probe:
        done = probe.started or probe.over or probe.generation != observed.generation
        ends = done or not may_probe or probe.executor not in suspects
        probed = None if ends else probe.executor
        return replace(decision, end_probe=ends, probed=probed, next_s=_AGAIN_S if ends else _PROBING_S)
    if not may_probe:
        return replace(decision, next_s=_MISSING_S if observed.missing else float("inf"))
    if now < current.due:
        return replace(decision, next_s=(current.due - now).total_seconds())
    return replace(decision, begin_probe=suspects[0], probed=suspects[0], next_s=_PROBING_S)


def _failure(observed: ObservedStarts, failed: Sequence[JobStart], *, blocked: bool) -> Condition:
    """Return the condition that says why jobs do not start: what is known now, else what was known before."""
    status, probe, before = False if blocked else None, observed.probe, observed.before
    end = " The worker makes no offers until a probe has started." if blocked else ""
    if observed.missing:
        return Condition(TYPE, status, observed.missing.reason, _sentence(observed.missing.message))
    if probe and probe.finding and probe.generation == observed.generation:
        message = f"A probe of {probe.executor} does not start: {probe.finding.message}"
        return Condition(TYPE, status, probe.finding.reason, f"{_sentence(message)}{end}")
    newest = max(failed, key=lambda job: str(job.failed), default=None)
    named = before.get("reason") in CLUSTER_REASONS and before.get("status") == "False"
    if newest and newest.finding and not (named and observed.round.failures):
        count = f"{len(failed)} job{'s' if len(failed) > 1 else ''} of {newest.executor} did not start"
        return Condition(TYPE, status, newest.finding.reason, f"{_sentence(f'{count}: {newest.finding.message}')}{end}")
    return Condition(TYPE, status, before.get("reason", JobReason.START_FAILED), before.get("message", ""))


def _sentence(text: str) -> str:
    """Return a text as a sentence."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
