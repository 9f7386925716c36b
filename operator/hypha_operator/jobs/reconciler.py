"""Reconcile a HyphaJob: observe, decide, apply the children, write the status once, post Events."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hypha_contracts.job_reasons import CLUSTER_REASONS, JobReason
from hypha_contracts.kinds import HYPHA_JOB, JOB, NETWORK_POLICY, POD, RESOURCE_CLAIM_TEMPLATE, WORKER, Manifest
from hypha_contracts.kubernetes_errors import ApiError, Conflict, NotFound
from hypha_contracts.limits import MAX_ENDED_PER_SCHEDULER
from hypha_contracts.names import JOB_LABEL, QUEUE_LABEL
from hypha_contracts.object_status import TERMINAL, is_true
from hypha_operator.jobs.decision import Decision, decide, missing, pod_retention_left, retention_left, surplus
from hypha_operator.jobs.observed import ObservedJob, jobs_of
from hypha_operator.jobs.phase import lacks_pod
from hypha_operator.jobs.refused_pods import RefusedPods
from hypha_operator.machinery.child_writes import create_once, write_child
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.drift import is_owned
from hypha_operator.machinery.kinds import Key
from hypha_operator.machinery.manifests import identity_of
from hypha_operator.machinery.routes import Routes
from hypha_operator.machinery.store import Store
from hypha_operator.pods.lease import LeaseWatch
from hypha_operator.pods.refusal import NO_CLAIM_TEMPLATES, refusal_of
from hypha_operator.pods.state import Finding
from hypha_operator.settings import Settings
from hypha_resources.job import HyphaJobSpec


class JobReconciler:
    """Runs each HyphaJob as a pod and writes its status.

    Args:
        store: the objects that the watches have shown.
        cluster: the API server.
        clock: the source of time.
        settings: images and names.
        refused_pods: why the API server refuses pods.
        on_start: receives the worker of a job whose start, successful or not, may change what the worker may sell.
    """

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        clock: Clock,
        settings: Settings,
        refused_pods: RefusedPods,
        *,
        on_start: Callable[[Key], object],
    ) -> None:
        self._store, self._cluster, self._clock, self._settings = store, cluster, clock, settings
        self._refused_pods, self._on_start = refused_pods, on_start
        self._leases = LeaseWatch()
        self._routes = Routes(cluster, clock)
        self._uids: dict[Key, str] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Bring a HyphaJob's children in line with it; return seconds until the next reconcile."""
        hypha_job = self._store.get(HYPHA_JOB, key.namespace, key.name)
        if hypha_job is None or "deletionTimestamp" in hypha_job["metadata"]:
            self._leases.release(self._uids.pop(key, ""))
            return None
        self._uids[key] = hypha_job["metadata"]["uid"]
        if (hypha_job.get("status") or {}).get("phase") in TERMINAL:
            return await self._expire(hypha_job)
        observed, failure = await self._complete(await self._observe(hypha_job))
        decision = decide(observed)
        if decision.state.terminal and not observed.pods:  # the cache may be stale, so confirm absence
            observed = await self._observe_uncached(observed)
            decision = decide(observed)
        if replaced := decision.replace_job:  # the pod may outlive its Job, for example on a lost node
            metadata = replaced["metadata"]
            await self._cluster.delete(JOB, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        await self._report(hypha_job, decision)
        if observed.worker and _concerns(observed.worker, observed, decision):
            self._on_start(Key(WORKER, key.namespace, observed.spec.worker_ref.name))
        if decision.end_job:
            metadata = decision.end_job["metadata"]  # a foreground deletion keeps the Job until its pod is gone
            await self._cluster.delete(
                JOB, metadata["namespace"], metadata["name"], propagation="Foreground", uid=metadata["uid"]
            )
        if failure:
            raise failure
        return decision.next_s

    async def _observe(self, hypha_job: Manifest) -> ObservedJob:
        """Return the HyphaJob and its objects, from the store unless absence has to be confirmed."""
        namespace, name = hypha_job["metadata"]["namespace"], hypha_job["metadata"]["name"]
        job = self._store.get(JOB, namespace, name)
        job = job if job and is_owned(job, hypha_job) else None
        observed = ObservedJob(
            hypha_job,
            HyphaJobSpec.model_validate(hypha_job["spec"]),
            self._clock.now(),
            job=job,
            pods=_pods_of(job, self._store.of_job(POD, namespace, name)),
            network_policy=self._store.get(NETWORK_POLICY, namespace, name),
        )
        if (job is None and "podUid" in observed.status) or _may_be_requeued(observed):
            observed = await self._observe_uncached(observed)
        if worker := await self._worker(observed):
            lost = await self._is_lease_lost(observed)
            routes, known = await self._routes.to(jobs_of(worker).servers, namespace)
            observed = replace(observed, worker=worker, lease_lost=lost, lease_left_s=max(self._lease_s(observed), 0.0))
            observed = replace(observed, routes=routes, routes_known=known)
        if job := observed.job if lacks_pod(observed) else None:
            observed = replace(observed, refused=await self._refused_pods.of(job))
        return observed

    async def _observe_uncached(self, observed: ObservedJob) -> ObservedJob:
        """Return the observation with the API server's current Job and pods."""
        namespace, name = observed.hypha_job["metadata"]["namespace"], observed.hypha_job["metadata"]["name"]
        job = await self._cluster.get(JOB, namespace, name)
        pods = await self._cluster.find(POD, namespace, label_selector=f"{JOB_LABEL}={name}")
        job = job if job and is_owned(job, observed.hypha_job) else None
        return replace(observed, job=job, pods=_pods_of(job, pods))

    async def _worker(self, observed: ObservedJob) -> Manifest | None:
        """Return the job's worker, or None if it was deleted, even if another worker has its name."""
        namespace, wanted = observed.hypha_job["metadata"]["namespace"], observed.spec.worker_ref
        worker = self._store.get(WORKER, namespace, wanted.name)
        if worker is None or worker["metadata"]["uid"] != wanted.uid:
            worker = await self._cluster.get(WORKER, namespace, wanted.name)
        return worker if worker and worker["metadata"]["uid"] == wanted.uid else None

    async def _is_lease_lost(self, observed: ObservedJob) -> bool:
        """Whether the API server has confirmed twice that the controller did not renew the lease."""
        metadata = observed.hypha_job["metadata"]
        if self._lease_s(observed) > 0:
            return False
        try:
            current = await self._cluster.get(HYPHA_JOB, metadata["namespace"], metadata["name"])
        except ApiError:
            self._leases.release(metadata["uid"])
            raise
        if current is None or current["metadata"]["uid"] != metadata["uid"]:
            return False
        if HyphaJobSpec.model_validate(current["spec"]).lease.deadline != observed.spec.lease.deadline:
            self._store.put(HYPHA_JOB, current)
            return False
        return self._leases.confirm(metadata["uid"], self._clock.monotonic())

    def _lease_s(self, observed: ObservedJob) -> float:
        uid, deadline = observed.hypha_job["metadata"]["uid"], observed.spec.lease.deadline
        return self._leases.remaining_s(uid, deadline, self._clock.now(), self._clock.monotonic())

    async def _complete(self, observed: ObservedJob) -> tuple[ObservedJob, ApiError | None]:
        """Create what the HyphaJob lacks.

        Returns:
            The observation with the Job, or with the reason why it has none; and the error, if the children of a Job
            that exists could not be restored. The status has to be written all the same, because the node serves the
            bridge only once the status names its pod.
        """
        lacks = missing(observed, self._settings)
        if lacks.invalid:
            return replace(observed, invalid=lacks.invalid), None
        try:
            for child in lacks.children:
                kind = child["kind"]
                await self._apply_child(child, observed)
            if lacks.job is None:
                return observed, None
            kind = JOB.name
            return _with_job(observed, await self._cluster.create(lacks.job)), None
        except ApiError as error:
            if lacks.job is None:
                return observed, error
            return await self._with_answer(observed, kind, error), None

    async def _apply_child(self, child: Manifest, observed: ObservedJob) -> None:
        """Apply a child, except a ResourceClaimTemplate, which is only created, because nobody can change its spec.

        An earlier attempt to create the Job may have left one, and the store does not know it. The worker's spec may
        have changed since. The job then gets the devices that were to be claimed at first.
        """
        if child["kind"] == RESOURCE_CLAIM_TEMPLATE.name:
            await create_once(self._cluster, child)
        else:
            await write_child(self._cluster, observed.network_policy, child, adopt=True)

    async def _with_answer(self, observed: ObservedJob, kind: str, error: ApiError) -> ObservedJob:
        """Return the observation with the reason why the Job, or a child of this kind before it, was refused.

        Raises errors that do not concern these objects.
        """
        if isinstance(error, Conflict) and kind == JOB.name:
            metadata = observed.hypha_job["metadata"]
            job = await self._cluster.get(JOB, metadata["namespace"], metadata["name"])
            if job is None:  # it has just been deleted, or a quota changed at this moment
                raise error
            if is_owned(job, observed.hypha_job):
                return _with_job(observed, job)
            message = f"a Job of another owner has the HyphaJob's name. {JobReason.NAME_TAKEN.remedy}"
            return replace(observed, refused=Finding(JobReason.NAME_TAKEN, message))
        if isinstance(error, NotFound) and kind == RESOURCE_CLAIM_TEMPLATE.name:
            return replace(observed, invalid=Finding(JobReason.INVALID_TEMPLATE, NO_CLAIM_TEMPLATES))
        refusal = refusal_of(error, kind)
        if refusal is None:
            raise error
        if refusal.reason == JobReason.INVALID_TEMPLATE:
            return replace(observed, invalid=refusal)
        return replace(observed, refused=refusal)

    async def _report(self, hypha_job: Manifest, decision: Decision) -> None:
        """Write the status if it changed, then post the Event."""
        if decision.status is not None:
            await self._cluster.apply_status({**identity_of(hypha_job), "status": decision.status})
        if event := decision.event:
            await self._cluster.event(hypha_job, event.type, event.reason, event.message)

    async def _expire(self, hypha_job: Manifest) -> float | None:
        """Delete a HyphaJob whose retention is over, or its pod, or return the seconds that are left."""
        metadata = hypha_job["metadata"]
        self._leases.release(metadata["uid"])
        left_s = retention_left(hypha_job, self._clock.now()).total_seconds()
        if left_s > 0:
            await self._delete_surplus(hypha_job)
            return min(left_s, await self._expire_pod(hypha_job))
        await self._cluster.delete(HYPHA_JOB, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        return None

    async def _delete_surplus(self, hypha_job: Manifest) -> None:
        """Delete the oldest of the worker's ended HyphaJobs if there are too many."""
        namespace, worker = hypha_job["metadata"]["namespace"], hypha_job["spec"]["workerRef"]["name"]
        if self._store.count_of_worker(HYPHA_JOB, namespace, worker) <= MAX_ENDED_PER_SCHEDULER:
            return
        for old in surplus(self._store.of_worker(HYPHA_JOB, namespace, worker)):
            metadata = old["metadata"]
            await self._cluster.delete(HYPHA_JOB, namespace, metadata["name"], uid=metadata["uid"])

    async def _expire_pod(self, hypha_job: Manifest) -> float:
        """Delete the Job and pod of an ended HyphaJob once their retention is over, or return the seconds left."""
        metadata = hypha_job["metadata"]
        job = self._store.get(JOB, metadata["namespace"], metadata["name"])
        if job is None or "deletionTimestamp" in job["metadata"] or not is_owned(job, hypha_job):
            return float("inf")
        worker = self._store.get(WORKER, metadata["namespace"], hypha_job["spec"]["workerRef"]["name"])
        left_s = pod_retention_left(hypha_job, worker, self._clock.now()).total_seconds()
        if left_s <= 0:
            uid = job["metadata"]["uid"]
            await self._cluster.delete(JOB, metadata["namespace"], metadata["name"], uid=uid)
            return float("inf")
        return left_s


def _may_be_requeued(observed: ObservedJob) -> bool:
    """Whether a queue may have suspended the Job: its pods are being deleted, and their watch may be ahead."""
    queued = observed.job is not None and QUEUE_LABEL in observed.job["metadata"].get("labels", {})
    deleted = any("deletionTimestamp" in pod["metadata"] for pod in observed.pods)
    return queued and deleted and not observed.is_job_suspended


def _pods_of(job: Manifest | None, pods: Sequence[Manifest]) -> tuple[Manifest, ...]:
    """Return the pods of a Job, the newest last; without a Job, all pods."""
    owned = [pod for pod in pods if job is None or is_owned(pod, job)]
    return tuple(sorted(owned, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"])))


def _with_job(observed: ObservedJob, job: Manifest) -> ObservedJob:
    """Return the observation with another Job, which has none of the pods of its predecessor."""
    return replace(observed, job=job, pods=_pods_of(job, observed.pods))


def _concerns(worker: Manifest, observed: ObservedJob, decision: Decision) -> bool:
    """Whether a change of a job's status tells something new about whether the worker's jobs start."""
    status = decision.status
    if status is None:
        return False
    if is_true(worker, "JobsStart"):  # most jobs, so that they cause no reconciles of their worker
        return status["phase"] == "Failed" and "startTime" not in status and status["reason"] in CLUSTER_REASONS
    return "startTime" in status or decision.state.stalled or decision.state.terminal or observed.is_queued
