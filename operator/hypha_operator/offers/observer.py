"""Find out what a worker may sell: validate its executors, read the cluster's supply, judge its starts, probe."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import HYPHA_JOB, JOB, POD, RESOURCE_CLAIM_TEMPLATE, Manifest
from hypha_contracts.kubernetes_errors import ApiError, Conflict
from hypha_contracts.names import probe_name
from hypha_contracts.object_status import TERMINAL, find_condition
from hypha_contracts.reasons import WorkerReason
from hypha_operator.jobs.phase import POD_TIMEOUT
from hypha_operator.jobs.refused_pods import RefusedPods
from hypha_operator.machinery.child_writes import create_once
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.conditions import Condition, exact_timestamp
from hypha_operator.machinery.drift import is_owned
from hypha_operator.machinery.store import Store
from hypha_operator.offers import starts, validation
from hypha_operator.offers.limits import Limits, Needs, limits_of, without
from hypha_operator.offers.starts import JobStart, ObservedStarts, Probe, Round, decide_starts, probe_of
from hypha_operator.offers.supply import Supply
from hypha_operator.offers.trial import Trial, label_of, probe, probed, trial, typical
from hypha_operator.offers.validation import Validation, Validator, fault_of, validated
from hypha_operator.pods.refusal import UNBUILDABLE, refusal_of, why_unbuildable
from hypha_operator.pods.state import Finding
from hypha_operator.settings import Settings
from hypha_resources.job import Amounts
from hypha_resources.worker import HyphaWorkerSpec

_UNANSWERED_S: Final = 10.0
_QUOTAS_S: Final = 60.0
_ANY: Final = "any"
_EPOCH: Final = "1970-01-01T00:00:00Z"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offers:
    """What a worker may sell, and why.

    Attributes:
        valid: the condition ExecutorsValid.
        start: the condition JobsStart.
        offering: the field `offering` of the status. None: nothing yet.
        next_s: seconds until the next look at the cluster.
    """

    valid: Condition
    start: Condition
    offering: Mapping[str, Any] | None
    next_s: float = float("inf")


@dataclass
class _Memory:
    """What this process remembers of a worker.

    Attributes:
        digest: of the parts of the spec from which jobs are built.
        changed: when they changed, as far as this process knows.
        needs: what jobs need besides the resources of their leases; None until it is derived from the spec.
        running: the uids of its jobs that had a pod when the quotas were read last.
    """

    digest: str
    round: Round
    validation: Validation | None
    changed: datetime | None = None
    needs: tuple[Needs, ...] | None = None
    running: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)


def as_before(worker: Manifest) -> Offers:
    """Return what the status says about a worker of which the operator cannot find out more now."""
    return Offers(
        _condition_before(worker, validation.TYPE, WorkerReason.NOT_VALIDATED),
        _condition_before(worker, starts.TYPE, WorkerReason.NOT_TRIED),
        _offering(worker),
    )


def none_of(offers: Offers) -> Offers:
    """Return the same of a worker that may sell nothing."""
    return replace(offers, offering={**(offers.offering or {}), "enabled": False})


class OfferObserver:
    """Finds out what each worker may sell."""

    def __init__(
        self, store: Store, cluster: Cluster, clock: Clock, settings: Settings, refused_pods: RefusedPods
    ) -> None:
        self._store, self._cluster, self._clock, self._settings = store, cluster, clock, settings
        self._supply, self._validator = Supply(cluster, clock), Validator(cluster, clock)
        self._refused_pods = refused_pods
        self._memories: dict[str, _Memory] = {}

    def release(self, uid: str) -> None:
        """Release what is remembered about a deleted worker."""
        self._memories.pop(uid, None)

    async def observe(self, worker: Manifest, spec: HyphaWorkerSpec) -> Offers:
        """Return what a worker may sell. As long as the API server does not answer, nothing changes."""
        try:
            return await self._observe(worker, spec)
        except ApiError as error:
            place = f"{worker['metadata']['namespace']}/{worker['metadata']['name']}"
            _log.warning("%s: cannot find out what the worker may sell: %s", place, error)
            return replace(as_before(worker), next_s=_UNANSWERED_S)

    async def _observe(self, worker: Manifest, spec: HyphaWorkerSpec) -> Offers:
        metadata, memory = worker["metadata"], self._memory(worker, spec)
        jobs = [
            job
            for job in self._store.of_worker(HYPHA_JOB, metadata["namespace"], metadata["name"])
            if job["spec"]["workerRef"]["uid"] == metadata["uid"]
        ]
        running = [job for job in jobs if _has_pod(job)]
        has_quotas = await self._limit(worker, spec, memory, running)
        current = memory.validation = await self._validate(worker, spec, memory, runs_jobs=bool(running))
        starts_ = [JobStart.of(job) for job in jobs]
        start = await self._starts(worker, spec, memory, starts_)
        limits = memory.limits
        if start.probed:  # its pod needs the room of a job
            limits = without(limits, spec.resources, probed(spec, limits, start.probed, starts_))
        offering = {
            "enabled": current.fault is None and start.condition.status is not False,
            "provenAt": exact_timestamp(start.proven) if start.proven else None,
            "limit": _written(limits.limit),
            "perJob": _written(limits.per_job),
        }
        return Offers(
            current.condition,
            start.condition,
            {key: value for key, value in offering.items() if value is not None},
            min(
                start.next_s,
                max(current.due_s - self._clock.monotonic(), 0.0),
                _QUOTAS_S if has_quotas else float("inf"),
            ),
        )

    def _memory(self, worker: Manifest, spec: HyphaWorkerSpec) -> _Memory:
        """Return what is remembered of a worker, with the time at which its executors changed."""
        metadata, now = worker["metadata"], self._clock.now()
        built_from = spec.model_dump_json(include={"executors", "resources", "jobs", "image_pull_secrets"})
        digest = sha256(built_from.encode()).hexdigest()[:16]
        memory = self._memories.get(metadata["uid"])
        if memory is None:
            before = Validation.of_predecessor(worker, self._clock.monotonic())
            memory = self._memories[metadata["uid"]] = _Memory(digest, Round(metadata["generation"], now), before)
        elif memory.digest != digest:
            memory.digest, memory.changed, memory.needs = digest, now, None
        return memory

    def _trials(self, worker: Manifest, spec: HyphaWorkerSpec, limits: Limits) -> list[Trial] | Finding:
        """Return a job of each executor, or why the first of them that is faulty cannot be built."""
        trials = []
        for executor in spec.executors:
            try:
                trials.append(trial(worker, spec, executor, typical(spec, limits), self._settings))
            except UNBUILDABLE as error:
                message = f"Executor {label_of(executor)}: {why_unbuildable(error)}"
                return Finding(JobReason.INVALID_TEMPLATE, message)
        return trials

    async def _limit(
        self, worker: Manifest, spec: HyphaWorkerSpec, memory: _Memory, running: Sequence[Manifest]
    ) -> bool:
        """Update the limits of a worker. Return whether its namespace has quotas."""
        if memory.needs is None:
            trials = self._trials(worker, spec, memory.limits)
            memory.needs = () if isinstance(trials, Finding) else tuple(Needs.of(made.pod) for made in trials)
        uids = frozenset(job["metadata"]["uid"] for job in running)
        quotas = await self._supply.quotas(worker["metadata"]["namespace"], changed=uids != memory.running)
        memory.running = uids
        told = spec.resources.nodes or spec.resources.per_job  # an autoscaler may add such nodes
        nodes = [] if told else await self._supply.nodes(urgent=memory.limits.missing is not None)
        memory.limits = limits_of(spec.resources, memory.needs, quotas, nodes, [*map(_resources, running)])
        return bool(quotas)

    async def _validate(
        self, worker: Manifest, spec: HyphaWorkerSpec, memory: _Memory, *, runs_jobs: bool
    ) -> Validation:
        before = memory.validation
        if before and before.is_current(worker, self._clock.monotonic()):
            return before
        fault = await self._fault(worker, spec, memory.limits, runs_jobs=runs_jobs)
        return validated(before, worker, fault, self._clock.monotonic())

    async def _fault(
        self, worker: Manifest, spec: HyphaWorkerSpec, limits: Limits, *, runs_jobs: bool
    ) -> Finding | None:
        """Return why a job of an executor cannot be built, or why the API server refuses it."""
        nameless = {
            **worker,
            "metadata": {**worker["metadata"], "name": _ANY, "uid": _ANY, "creationTimestamp": _EPOCH},
        }
        trials, same = self._trials(worker, spec, limits), self._trials(nameless, spec, limits)
        if isinstance(trials, Finding) or isinstance(same, Finding):
            return trials if isinstance(trials, Finding) else None
        return await self._validator.find_fault(trials, same, runs_jobs=runs_jobs)

    async def _starts(
        self, worker: Manifest, spec: HyphaWorkerSpec, memory: _Memory, jobs: Sequence[JobStart]
    ) -> starts.StartsDecision:
        """Judge the starts of a worker's jobs, and begin or end its probe."""
        metadata, proven = worker["metadata"], (_offering(worker) or {}).get("provenAt")
        probing = await self._probe(worker, spec)
        observed = ObservedStarts(
            now=self._clock.now(),
            generation=metadata["generation"],
            executors=[label_of(executor) for executor in spec.executors],
            jobs=jobs,
            before=find_condition(worker, starts.TYPE),
            round=memory.round,
            proven=datetime.fromisoformat(proven) if proven else None,
            changed=memory.changed,
            missing=memory.limits.missing,
            probe=probing,
            may_probe=memory.validation is not None and memory.validation.fault is None and not spec.suspend,
        )
        decision = decide_starts(observed)
        memory.round = decision.round
        if decision.end_probe and probing:
            await self._cluster.delete(JOB, metadata["namespace"], probe_name(metadata["name"]), uid=probing.uid)
        if (name := decision.begin_probe) and (refusal := await self._begin_probe(worker, spec, memory, name, jobs)):
            refused = Probe(f"refused at {observed.now}", name, observed.generation, finding=refusal, over=True)
            decision = decide_starts(replace(observed, round=decision.round, probe=refused))
            memory.round = decision.round
        return decision

    async def _probe(self, worker: Manifest, spec: HyphaWorkerSpec) -> Probe | None:
        """Return the worker's probe."""
        namespace, name, now = worker["metadata"]["namespace"], worker["metadata"]["name"], self._clock.now()
        job = self._store.get(JOB, namespace, probe_name(name))
        if job is None or not is_owned(job, worker):
            return None
        pods = [pod for pod in self._store.of_worker(POD, namespace, name) if is_owned(pod, job)]
        pod = max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)
        refused, age = None, now - datetime.fromisoformat(job["metadata"]["creationTimestamp"])
        if pod is None and age >= POD_TIMEOUT and not (job.get("spec") or {}).get("suspend"):
            refused = await self._refused_pods.of(job)
        return probe_of(job, pod, refused, spec.jobs, now)

    async def _begin_probe(
        self, worker: Manifest, spec: HyphaWorkerSpec, memory: _Memory, name: str, jobs: Sequence[JobStart]
    ) -> Finding | None:
        """Create a probe of an executor. Return why the API server refuses it, if it does."""
        executor = next(executor for executor in spec.executors if label_of(executor) == name)
        made = probe(worker, spec, executor, probed(spec, memory.limits, name, jobs), self._settings)
        if fault := await fault_of(self._cluster, made.policy):  # a probe has no policy, but a job needs one
            return fault
        kind = RESOURCE_CLAIM_TEMPLATE.name
        try:
            for claim in made.claims:
                await create_once(self._cluster, claim)
            kind = JOB.name
            await self._cluster.create(made.job)
        except Conflict:
            _log.info("%s: the last probe is still being deleted", worker["metadata"]["name"])
        except ApiError as error:
            if refusal := refusal_of(error, kind):
                return refusal
            raise
        return None


def _condition_before(worker: Manifest, type_: str, reason: WorkerReason) -> Condition:
    before = find_condition(worker, type_)
    if not before:
        return Condition(type_, None, reason, reason.remedy)
    status = {"True": True, "False": False}.get(before["status"])
    return Condition(type_, status, before["reason"], before.get("message", ""))


def _offering(worker: Manifest) -> Mapping[str, Any] | None:
    offering: Mapping[str, Any] | None = (worker.get("status") or {}).get("offering")
    return offering


def _resources(job: Manifest) -> Amounts:
    return Amounts.model_validate(job["spec"]["resources"])


def _has_pod(job: Manifest) -> bool:
    status = job.get("status") or {}
    return "podUid" in status and status.get("phase") not in TERMINAL


def _written(amounts: Amounts | None) -> dict[str, float] | None:
    return amounts.model_dump(by_alias=True) if amounts else None
