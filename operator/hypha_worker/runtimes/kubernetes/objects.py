"""Converts jobs to objects of the cluster and back. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from hypha_contracts import names
from hypha_contracts.job_reasons import CLUSTER_REASONS, JobReason
from hypha_contracts.node_config import KubernetesConfig
from hypha_contracts.object_status import REPORTED, TERMINAL
from hypha_contracts.times import KEEP_ENDED_S
from hypha_messages.job import JobSpec
from hypha_messages.validation import describe
from hypha_resources.common import Condition
from hypha_resources.job import Amounts, ExecutorRef, HyphaJobSpec, HyphaJobStatus, Lease, WorkerRef, redacted
from hypha_worker.job import Failed, Finished, Job, Stage

Object = dict[str, Any]


@dataclass(frozen=True)
class ObservedJob:
    """A HyphaJob as the API server returned it. It was created at `began`, in seconds since the epoch."""

    uid: str
    spec: HyphaJobSpec
    status: HyphaJobStatus
    began: float = 0.0
    traceparent: str | None = None

    @property
    def terminal(self) -> bool:
        """Whether it has ended and nothing of it runs."""
        return self.status.phase in TERMINAL

    @property
    def reported(self) -> bool:
        """Whether its end was reported to its scheduler."""
        return any(condition.type == REPORTED and condition.status == "True" for condition in self.status.conditions)

    def job(self, deadline: float) -> Job:
        """Return the job. ValueError if its configuration is invalid."""
        spec = JobSpec.model_validate({"job_id": str(self.spec.job_id)} | self.spec.config)
        return Job(
            task_id=self.spec.task_id,
            lease_id=self.spec.lease.id,
            scheduler=self.spec.scheduler,
            spec=spec,
            resources=self.spec.resources.resources,
            deadline=deadline,
            price=self.spec.lease.price,
            accepted=self.spec.lease.accepted.timestamp() if self.spec.lease.accepted else None,
            began=self.began,
            traceparent=self.traceparent,
        )

    def stages(self) -> list[Stage]:
        """Return the stages of its start that are over."""
        task_id, stages = self.spec.task_id, self.status.stages
        return [Stage(task_id, s.name, s.start_time.timestamp(), s.end_time.timestamp()) for s in stages]


def hypha_job(
    job: Job, config: KubernetesConfig, peer_id: str, controller: UUID, keep_ended_s: int = KEEP_ENDED_S
) -> Object:
    """Return the HyphaJob of a job, without secrets. `controller` is its owner."""
    descriptor = job.spec.descriptor
    trace = {names.TRACE_ANNOTATION: job.traceparent} if job.traceparent else {}
    spec = HyphaJobSpec(
        worker_ref=WorkerRef(name=config.worker, uid=config.worker_uid),
        worker_peer_id=peer_id,
        task_id=job.task_id,
        job_id=job.spec.job_id,
        scheduler=job.scheduler,
        controller=controller,
        lease=Lease(
            id=job.lease_id,
            deadline=timestamp(job.deadline),
            price=job.price,
            accepted=None if job.accepted is None else timestamp(job.accepted),
        ),
        executor=ExecutorRef(class_=descriptor.class_, name=descriptor.name),
        config=redacted(job.spec.model_dump(mode="json", include={"executor"})),
        resources=Amounts.of(job.resources),
        ttl_seconds_after_finished=keep_ended_s,
    )
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "metadata": {
            "name": names.job_name(job.task_id),
            "namespace": config.namespace,
            **_common_metadata(config, {names.IGNORE_UPDATES_ANNOTATION: "true", **trace}),
            "ownerReferences": [
                names.owner_reference(names.WORKER_KIND, config.worker, config.worker_uid, block_deletion=False)
            ],
        },
        "spec": spec.model_dump(mode="json", exclude_none=True),
    }


def job_secret(job: Job, config: KubernetesConfig, owner_uid: str) -> Object:
    """Return the Secret with the complete specification, which is deleted with the HyphaJob."""
    name = names.job_name(job.task_id)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "immutable": True,
        "metadata": {
            "name": name,
            "namespace": config.namespace,
            **_common_metadata(config, {}),
            "ownerReferences": [names.owner_reference(names.JOB_KIND, name, owner_uid, block_deletion=False)],
        },
        "stringData": {names.JOB_FILE_KEY: job.spec.model_dump_json()},
    }


def _common_metadata(config: KubernetesConfig, own_annotations: Mapping[str, str]) -> Object:
    annotations = {**config.common_annotations, **own_annotations}
    labels = {**config.common_labels, names.WORKER_LABEL: config.worker}
    return {"labels": labels, **({"annotations": annotations} if annotations else {})}


def parse(found: Object) -> ObservedJob:
    """Parse a HyphaJob. ValueError if this version cannot read it."""
    try:
        return ObservedJob(
            uid=found["metadata"]["uid"],
            spec=HyphaJobSpec.model_validate(found["spec"]),
            status=HyphaJobStatus.model_validate(found.get("status") or {}),
            began=_seconds(found["metadata"].get("creationTimestamp")),
            traceparent=(found["metadata"].get("annotations") or {}).get(names.TRACE_ANNOTATION),
        )
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error
    except ValidationError as error:
        raise ValueError(describe(error, "HyphaJob")) from error


def _seconds(time: str | None) -> float:
    return datetime.fromisoformat(time).timestamp() if time else 0.0


def end_of(observed: ObservedJob) -> Finished | Failed:
    """Return how a terminal job ended."""
    status = observed.status
    if status.phase == "Succeeded":
        return Finished(observed.spec.task_id)
    message = next((c.message for c in status.conditions if c.type == "Ready" and c.message), "")
    reason = ": ".join(text for text in (status.reason or "it failed", message) if text)
    not_started = status.reason in CLUSTER_REASONS and status.start_time is None
    ended = status.completion_time.timestamp() if not_started and status.completion_time else None
    return Failed(observed.spec.task_id, reason, tuple(status.last_lines), ended)


def reported_status(seconds: float) -> Object:
    """Return the status of a job whose end was reported at this time, in seconds since the epoch."""
    condition = Condition(
        type=REPORTED,
        status="True",
        reason=JobReason.END_REPORTED,
        message="The scheduler was told how the task ended, or did not answer for too long.",
        last_transition_time=timestamp(seconds),
    )
    return {"conditions": [condition.model_dump(mode="json", exclude_none=True)]}


def timestamp(seconds: float) -> datetime:
    """Return a time in the form of the API, truncated to seconds. `seconds` counts from the epoch."""
    return datetime.fromtimestamp(int(seconds), UTC)
