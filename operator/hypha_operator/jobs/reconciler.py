"""HyphaJob: observe, classify once, decide, apply, write the status once, then tell what changed."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from pydantic import ValidationError

from hypha_contracts.names import JOB_LABEL, controller_name
from hypha_operator.jobs.children import job_children, network_policy
from hypha_operator.jobs.phase import Observed, State, classify, differs, status_of
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.drift import is_applied, is_owned, marked
from hypha_operator.machinery.errors import ApiError, Conflict, Forbidden, Invalid, NotFound, Unavailable
from hypha_operator.machinery.kinds import EVENT, HYPHA_JOB, JOB, NETWORK_POLICY, POD, WORKER, Key, Manifest
from hypha_operator.machinery.store import Store
from hypha_operator.pods.executor import UnbuildableJobError
from hypha_operator.pods.lease import LeaseWatch
from hypha_operator.pods.overlay import OverlayError
from hypha_operator.pods.state import Finding
from hypha_operator.settings import Settings
from hypha_resources.job import REPORTED, TERMINAL, HyphaJobSpec
from hypha_resources.worker import HyphaWorkerSpec, Jobs

_UNREPORTED: Final = timedelta(days=1)
"""How much longer a job is kept whose controller has not taken note of its end."""
_PODLESS: Final = timedelta(seconds=10)
"""How long a Job may be without a pod before one asks why."""
_STALLED_S: Final = 10.0
_ENDING_S: Final = 10.0
_STARTING_S: Final = 30.0
_NO_RIGHT: Final = re.compile(r"cannot \w+ resource")
_NOT_NEWS: Final = frozenset({"PodPending", "PodStarts", "DeliveringResults"})


class JobReconciler:
    """Makes pods of HyphaJobs, and says what becomes of them."""

    def __init__(self, store: Store, cluster: Cluster, clock: Clock, settings: Settings) -> None:
        self._store, self._cluster, self._clock, self._settings = store, cluster, clock, settings
        self._leases = LeaseWatch()
        self._uids: dict[Key, str] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Bring what belongs to a HyphaJob in line with it; return seconds until the next look."""
        hypha_job = self._store.get(HYPHA_JOB, key.namespace, key.name)
        if hypha_job is None or "deletionTimestamp" in hypha_job["metadata"]:
            self._leases.forget(self._uids.pop(key, ""))
            return None
        self._uids[key] = hypha_job["metadata"]["uid"]
        if (hypha_job.get("status") or {}).get("phase") in TERMINAL:
            return await self._expire(hypha_job)
        seen = await self._observe(hypha_job)
        state = classify(seen)
        if state.terminal and not seen.pods:  # what is not seen may be there all the same
            seen = await self._look_again(seen)
            state = classify(seen)
        await self._report(seen, state)
        if state.to_end:
            await self._end(seen)
        return self._next_look_s(seen, state)

    async def _observe(self, hypha_job: Manifest) -> Observed:
        """Return what is there; children that are missing are made."""
        metadata = hypha_job["metadata"]
        job = self._store.get(JOB, metadata["namespace"], metadata["name"])
        seen = Observed(
            hypha_job,
            HyphaJobSpec.model_validate(hypha_job["spec"]),
            self._clock.now(),
            job if job and is_owned(job, hypha_job) else None,
        )
        seen = replace(seen, pods=_pods_of(seen.job, self._store.of_job(POD, metadata["namespace"], metadata["name"])))
        if seen.job is None and "podUid" in seen.status:
            seen = await self._look_again(seen)
        worker = await self._worker(seen)
        seen = replace(seen, order=await self._order(seen, worker), patience=_patience(worker))
        state = classify(seen)
        if worker and not (state.terminal or state.to_end):
            return await self._make_children(seen, worker)
        return seen

    async def _look_again(self, seen: Observed) -> Observed:
        """Return what the API server itself shows."""
        namespace, name = seen.hypha_job["metadata"]["namespace"], seen.hypha_job["metadata"]["name"]
        job = await self._cluster.get(JOB, namespace, name)
        pods = await self._cluster.find(POD, namespace, label_selector=f"{JOB_LABEL}={name}")
        job = job if job and is_owned(job, seen.hypha_job) else None
        return replace(seen, job=job, pods=_pods_of(job, pods))

    async def _worker(self, seen: Observed) -> Manifest | None:
        """Return the worker of the job; None if it is gone, or another one has its name."""
        namespace, wanted = seen.hypha_job["metadata"]["namespace"], seen.spec.worker_ref
        worker = self._store.get(WORKER, namespace, wanted.name)
        if worker is None or worker["metadata"]["uid"] != wanted.uid:
            worker = await self._cluster.get(WORKER, namespace, wanted.name)
        return worker if worker and worker["metadata"]["uid"] == wanted.uid else None

    async def _order(self, seen: Observed, worker: Manifest | None) -> Finding | None:
        """Return why the job must not go on, if there is a reason outside of its own objects."""
        if worker is None:
            return Finding("WorkerGone", f"its HyphaWorker {seen.spec.worker_ref.name} was deleted")
        metadata, deadline = seen.hypha_job["metadata"], seen.spec.lease.deadline
        if self._lease_s(seen) > 0:
            return None
        try:
            now = await self._cluster.get(HYPHA_JOB, metadata["namespace"], metadata["name"])
        except ApiError:
            self._leases.forget(metadata["uid"])
            raise
        if now is None or now["metadata"]["uid"] != metadata["uid"]:
            return None
        if HyphaJobSpec.model_validate(now["spec"]).lease.deadline != deadline:
            self._store.put(HYPHA_JOB, now)
            return None
        if not self._leases.confirm(metadata["uid"], self._clock.monotonic()):
            return None
        pod = controller_name(seen.spec.worker_ref.name)
        return Finding(
            "LeaseLost",
            f"the controller did not come back to renew the lease, which ran out at {deadline:%H:%M:%S} UTC."
            f" See kubectl logs -n {metadata['namespace']} deploy/{pod}",
        )

    async def _make_children(self, seen: Observed, worker: Manifest) -> Observed:
        """Make what is missing; what isolates the pod is restored for as long as it runs."""
        try:
            spec = HyphaWorkerSpec.model_validate(worker["spec"])
            if seen.job is None:
                return await self._create(seen, job_children(seen.hypha_job, seen.spec, spec, self._settings))
        except (UnbuildableJobError, OverlayError, ValidationError) as error:
            return replace(seen, order=Finding("InvalidTemplate", str(error))) if seen.job is None else seen
        await self._restore(network_policy(seen.hypha_job, seen.spec, spec))
        return replace(seen, refused=await self._refused_pod(seen))

    async def _create(self, seen: Observed, children: Sequence[Manifest]) -> Observed:
        policy, *claims, manifest = children
        try:
            await self._restore(policy)
            for claim in claims:
                await self._cluster.apply(claim)
            return replace(seen, job=await self._cluster.create(manifest))
        except Conflict:
            there = await self._cluster.get(JOB, manifest["metadata"]["namespace"], manifest["metadata"]["name"])
            if there and is_owned(there, seen.hypha_job):
                return replace(seen, job=there)
            return replace(seen, refused=Finding("NameTaken", "a Job of another owner has its name; delete that one"))
        except Invalid as error:
            message = f"the API server does not take the Job: {error.message}. Correct the executor's template."
            return replace(seen, order=Finding("InvalidTemplate", message))
        except NotFound:
            if not claims:
                raise
            message = "this cluster serves no ResourceClaimTemplates (Kubernetes 1.34); use gpu.resourceName"
            return replace(seen, order=Finding("InvalidTemplate", message))
        except (Forbidden, Unavailable) as error:
            if not _is_admissions(error):
                raise
            return replace(seen, refused=_refusal(error.message))

    async def _restore(self, policy: Manifest) -> None:
        desired, metadata = marked(policy), policy["metadata"]
        if not is_applied(self._store.get(NETWORK_POLICY, metadata["namespace"], metadata["name"]), desired):
            await self._cluster.apply(desired)

    async def _refused_pod(self, seen: Observed) -> Finding | None:
        """Return why the Job has no pod, as only its events say."""
        job = seen.job
        if job is None or seen.pods or (job.get("spec") or {}).get("suspend"):
            return None
        if _age(job, seen.now) < _PODLESS:
            return None
        selector = f"involvedObject.uid={job['metadata']['uid']},reason=FailedCreate"
        events = await self._cluster.find(EVENT, job["metadata"]["namespace"], field_selector=selector)
        return _refusal(max(events, key=lambda event: str(event.get("lastTimestamp")))["message"]) if events else None

    async def _report(self, seen: Observed, state: State) -> None:
        """Write the status if it says something else now, then post an Event if that is news."""
        status = status_of(seen, state)
        if not differs(seen.status, status):
            return
        metadata = {name: seen.hypha_job["metadata"][name] for name in ("name", "namespace", "uid")}
        manifest = {"apiVersion": HYPHA_JOB.api_version, "kind": HYPHA_JOB.name, "metadata": metadata}
        await self._cluster.apply_status({**manifest, "status": status})
        reason = state.finding.reason
        if (reason, state.phase) != (seen.status.get("reason"), seen.status.get("phase")) and reason not in _NOT_NEWS:
            calm = not (state.stalled or state.to_end or state.phase == "Failed") or reason == "Cancelled"
            await self._cluster.event(seen.hypha_job, "Normal" if calm else "Warning", reason, state.finding.message)

    async def _end(self, seen: Observed) -> None:
        """Delete the Job, which stays until its pod is gone."""
        if seen.job and "deletionTimestamp" not in seen.job["metadata"]:
            metadata = seen.job["metadata"]
            await self._cluster.delete(
                JOB, metadata["namespace"], metadata["name"], propagation="Foreground", uid=metadata["uid"]
            )

    async def _expire(self, hypha_job: Manifest) -> float | None:
        """Delete a HyphaJob that ended long enough ago; return seconds until then."""
        metadata, status = hypha_job["metadata"], hypha_job["status"]
        self._leases.forget(metadata["uid"])
        conditions = status.get("conditions") or ()
        reported = any(found["type"] == REPORTED and found["status"] == "True" for found in conditions)
        kept = timedelta(seconds=hypha_job["spec"].get("ttlSecondsAfterFinished", 0))
        ended = datetime.fromisoformat(status.get("completionTime") or metadata["creationTimestamp"])
        left = ended + kept + (timedelta(0) if reported else _UNREPORTED) - self._clock.now()
        if left > timedelta(0):
            return left.total_seconds()
        await self._cluster.delete(HYPHA_JOB, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        return None

    def _lease_s(self, seen: Observed) -> float:
        uid, deadline = seen.hypha_job["metadata"]["uid"], seen.spec.lease.deadline
        return self._leases.remaining_s(uid, deadline, self._clock.now(), self._clock.monotonic())

    def _next_look_s(self, seen: Observed, state: State) -> float:
        if state.terminal:
            return 0.0  # for when it is to be deleted
        if state.to_end or state.stalled:
            return _STALLED_S if state.stalled else _ENDING_S
        looks = [max(self._lease_s(seen), 0.0)]
        if state.phase == "Starting":
            looks.append(_STARTING_S)
        if state.finding.reason == "PodPending" and seen.job and not seen.pods:
            looks.append(max(_PODLESS, _age(seen.job, seen.now)).total_seconds())  # asking ever more rarely
        return min(looks)


def _age(job: Manifest, now: datetime) -> timedelta:
    return now - datetime.fromisoformat(job["metadata"]["creationTimestamp"])


def _patience(worker: Manifest | None) -> timedelta:
    """Return how long a job may be kept from running; what the definitions would not take is as if not said."""
    try:
        jobs = Jobs.model_validate((worker or {}).get("spec", {}).get("jobs") or {})
    except ValidationError:
        jobs = Jobs()
    return timedelta(seconds=jobs.start_patience_seconds)


def _pods_of(job: Manifest | None, pods: Sequence[Manifest]) -> tuple[Manifest, ...]:
    """Return the pods of a Job, the newest last; all there are if it is gone."""
    owned = [pod for pod in pods if job is None or is_owned(pod, job)]
    return tuple(sorted(owned, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"])))


def _is_admissions(error: Forbidden | Unavailable) -> bool:
    """Whether admission is in the way, and neither the operator's own rights nor a server that is busy."""
    if isinstance(error, Unavailable):
        return "failed calling webhook" in error.message
    return not _NO_RIGHT.search(error.message)


def _refusal(message: str) -> Finding:
    if "exceeded quota" in message:
        return Finding("QuotaExceeded", f"{message}. Raise the ResourceQuota, or offer less in spec.resources.")
    return Finding("AdmissionRefused", f"the API server does not take the pod: {message}")
