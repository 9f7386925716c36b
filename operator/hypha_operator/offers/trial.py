"""Build the objects of a job that nobody requested: those that the API server only checks, and the probe."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from pydantic_core import to_json

from hypha_contracts.kinds import POD, Manifest
from hypha_contracts.names import (
    EXECUTOR,
    GENERATION_ANNOTATION,
    GROUP,
    JOB_FILE_KEY,
    JOB_KIND,
    JOB_LABEL,
    PROBED_ANNOTATION,
    probe_labels,
    probe_name,
)
from hypha_contracts.units import RESOURCES
from hypha_messages.job import JobSpec
from hypha_messages.types import peer_id_from_ed25519
from hypha_operator.jobs.children import job_children
from hypha_operator.machinery.manifests import child
from hypha_operator.offers.limits import Limits
from hypha_operator.offers.starts import JobStart
from hypha_operator.settings import Settings
from hypha_resources.job import Amounts, ExecutorRef, HyphaJobSpec, Lease, WorkerRef
from hypha_resources.worker import HyphaWorkerSpec
from hypha_resources.worker_executors import Executor

_NOBODY: Final = UUID(int=0)
_NO_PEERS: Final = {"type": "peers", "peers": [], "strategy": {"type": "All"}}
_PEER: Final = peer_id_from_ed25519(bytes(32))
_TASK_ANNOTATION: Final = f"{GROUP}/task"
"""On the pod of a probe: the job file of its bridge."""
_UNUSED: Final = {"learning-rate": 0.0, "momentum": 0.0}
_CONFIG: Final = {"updates": _NO_PEERS, "results": _NO_PEERS, "optimizer": _UNUSED}
_EXECUTOR: Final = {"class": "aggregate", "descriptor": {"name": "probe"}, "config": _CONFIG}
_TASK: Final = JobSpec.model_validate({"job_id": _NOBODY, "executor": _EXECUTOR}).model_dump_json()
"""A job that names no peer and no file, so that its bridge starts and then neither fetches, sends nor receives."""
_EMPTY: Final = {"emptyDir": {"sizeLimit": "1Mi"}}
_GRACE_S: Final = 5
_MARGIN_S: Final = 120
"""How much longer than a job a probe may take before Kubernetes ends it, in case the operator is away."""
_KEPT_S: Final = 600


@dataclass(frozen=True)
class Trial:
    """The objects of a job that nobody requested: its Job, and what the Job needs.

    Attributes:
        executor: class and name of the executor.
        policy: its NetworkPolicy, without routes to configured servers.
        claims: its ResourceClaimTemplate, if any.
        job: its Job.
    """

    executor: str
    policy: Manifest
    claims: tuple[Manifest, ...]
    job: Manifest

    @property
    def objects(self) -> list[Manifest]:
        """All of them, in the order in which those of a job are created."""
        return [self.policy, *self.claims, self.job]

    @property
    def pod(self) -> dict[str, Any]:
        """The specification of its pod."""
        spec: dict[str, Any] = self.job["spec"]["template"]["spec"]
        return spec


def label_of(executor: Executor) -> str:
    """Return an executor's class and name for messages and annotations."""
    return "/".join(executor.key)


def typical(spec: HyphaWorkerSpec, limits: Limits) -> Amounts:
    """Return the resources of a typical job: the complete worker, or with the strategy `flexible` the smallest job."""
    most = spec.resources.capacity.model_dump()
    return fitting(Amounts(**(most if spec.offer.strategy == "whole" else _least(spec))), spec, limits)


def fitting(amounts: Amounts, spec: HyphaWorkerSpec, limits: Limits) -> Amounts:
    """Return the amounts, cut down to what the worker may sell, but not below the smallest job."""
    most, least = spec.resources.capacity, _least(spec)
    now = limits.per_job or limits.limit or Amounts.of(most)
    return Amounts(
        **{
            name: min(max(min(getattr(amounts, name), getattr(now, name)), least[name]), getattr(most, name))
            for name in RESOURCES
        }
    )


def probed(spec: HyphaWorkerSpec, limits: Limits, executor: str, jobs: Sequence[JobStart]) -> Amounts:
    """Return the resources of a probe of an executor: those of its last job that failed, or of a typical job."""
    failed = [job for job in jobs if job.executor == executor and job.failed]
    last = max(failed, key=lambda job: str(job.failed), default=None)
    return fitting(last.resources, spec, limits) if last else typical(spec, limits)


def _least(spec: HyphaWorkerSpec) -> dict[str, float]:
    """Return the resources of the smallest job, with one device if the worker has any."""
    return spec.offer.minimum.amounts | {"gpu": spec.resources.gpu.memory_gb if spec.resources.gpu else 0.0}


def trial(worker: Manifest, spec: HyphaWorkerSpec, executor: Executor, amounts: Amounts, settings: Settings) -> Trial:
    """Return a job of this executor with these resources, which the worker itself owns.

    Raises:
        UnbuildableJobError: the worker lacks GPUs.
        OverlayError: the executor's template is not acceptable.
    """
    metadata = worker["metadata"]
    owner = {
        "kind": JOB_KIND,
        "metadata": {**metadata, "name": probe_name(metadata["name"]), "annotations": {}},
        "spec": {"workerRef": {"name": metadata["name"]}},
    }
    job = HyphaJobSpec(
        worker_ref=WorkerRef(name=metadata["name"], uid=metadata["uid"]),
        worker_peer_id=_PEER,
        task_id=_NOBODY,
        job_id=_NOBODY,
        scheduler=_PEER,
        lease=Lease(id=_NOBODY, deadline=metadata["creationTimestamp"]),
        executor=ExecutorRef(class_=executor.class_, name=executor.name),
        resources=amounts,
    )
    policy, *claims, made = (_owned(worker, manifest) for manifest in job_children(owner, job, spec, settings))
    return Trial(label_of(executor), policy, tuple(claims), made)


def _owned(worker: Manifest, made: Manifest) -> Manifest:
    """Return a child of a job as the worker's child."""
    metadata = made["metadata"]
    references = child(worker, POD, metadata["name"])["metadata"]["ownerReferences"]
    labels = _labels_of_probe(worker, metadata["labels"])
    return {**made, "metadata": {**metadata, "labels": labels, "ownerReferences": references}}


def _labels_of_probe(worker: Manifest, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of an object of a job as those of an object of the worker's probe."""
    kept = {key: value for key, value in labels.items() if key != JOB_LABEL}
    return {**kept, **probe_labels(worker["metadata"]["name"])}


def checked(trial: Trial) -> list[Manifest]:
    """Return what the API server has to check before it would run a job: its objects, and the pod of its Job."""
    metadata, template = trial.job["metadata"], trial.job["spec"]["template"]
    pod: Manifest = {
        "apiVersion": POD.api_version,
        "kind": POD.name,
        "metadata": {**template["metadata"], "namespace": metadata["namespace"]},
        "spec": template["spec"],
    }
    return [_unnamed(manifest, metadata["name"]) for manifest in (*trial.objects, pod)]


def _unnamed(manifest: Manifest, prefix: str) -> Manifest:
    """Return a manifest for whose name the API server chooses the end, so that it never exists already."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key not in ("name", "ownerReferences")}
    return {**manifest, "metadata": {**metadata, "generateName": f"{prefix}-"}}


def probe(worker: Manifest, spec: HyphaWorkerSpec, executor: Executor, amounts: Amounts, settings: Settings) -> Trial:
    """Return a job whose executor only shows its help: what is left is whether it starts.

    It has the image, devices, queue, template and resources of a job, but neither a token nor a task. Its bridge starts
    with the configuration of a job's bridge, and has nothing to do.
    """
    made = copy.deepcopy(trial(worker, spec, executor, amounts, settings))
    job = made.job
    metadata, template = job["metadata"], job["spec"]["template"]
    metadata["annotations"] = {
        **metadata.get("annotations", {}),
        PROBED_ANNOTATION: label_of(executor),
        GENERATION_ANNOTATION: str(worker["metadata"]["generation"]),
    }
    template["metadata"]["annotations"][_TASK_ANNOTATION] = _TASK
    template["metadata"]["labels"] = _labels_of_probe(worker, template["metadata"]["labels"])
    job["spec"] |= {
        "activeDeadlineSeconds": spec.jobs.start_timeout_seconds + _MARGIN_S,
        "ttlSecondsAfterFinished": _KEPT_S,
    }
    pod = template["spec"]
    pod["terminationGracePeriodSeconds"] = _GRACE_S
    pod["volumes"] = [_harmless(volume, metadata["name"]) for volume in pod["volumes"]]
    for claim in made.claims:
        _name_by_content(claim, pod["resourceClaims"])
    for container in pod["containers"]:
        if container["name"] == EXECUTOR:
            container |= {"command": [container["command"][0], "--help"], "args": []}
    return made


def _name_by_content(claim: Manifest, references: list[dict[str, Any]]) -> None:
    """Name a claim's template by its specification, because the template of an earlier probe cannot change."""
    name = claim["metadata"]["name"]
    claim["metadata"]["name"] = f"{name}-{sha256(to_json(claim['spec'])).hexdigest()[:8]}"
    for reference in references:
        if reference.get("resourceClaimTemplateName") == name:
            reference["resourceClaimTemplateName"] = claim["metadata"]["name"]


def _harmless(volume: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a volume, or an empty one in place of a token, or one with an empty task in place of the task."""
    sources = (volume.get("projected") or {}).get("sources") or ()
    if any("serviceAccountToken" in source for source in sources):
        return {"name": volume["name"], **_EMPTY}
    if (volume.get("secret") or {}).get("secretName") == name:
        task = {"fieldPath": f"metadata.annotations['{_TASK_ANNOTATION}']"}
        return {"name": volume["name"], "downwardAPI": {"items": [{"path": JOB_FILE_KEY, "fieldRef": task}]}}
    return volume
