"""Build the children of a HyphaJob: its NetworkPolicy, its ResourceClaimTemplate and its Job."""

from typing import Any, Final

from hypha_contracts.addresses import reachable_blocks
from hypha_contracts.names import BRIDGE, CONNECTOR_PORT, EXECUTOR, JOB_LABEL, controller_selector, identity_secret
from hypha_operator.machinery.kinds import JOB, NETWORK_POLICY, RESOURCE_CLAIM_TEMPLATE, Manifest
from hypha_operator.machinery.manifests import child
from hypha_operator.pods.executor import CLAIM, devices_of, executor_of
from hypha_operator.pods.overlay import merge_pod_template
from hypha_operator.pods.pod import pod_template
from hypha_operator.settings import Settings
from hypha_resources.job import HyphaJobSpec
from hypha_resources.worker import HyphaWorkerSpec

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"


def job_children(hypha_job: Manifest, job: HyphaJobSpec, worker: HyphaWorkerSpec, settings: Settings) -> list[Manifest]:
    """Return a HyphaJob's children in the order of creation: NetworkPolicy, ResourceClaimTemplate if any, Job.

    Raises:
        UnbuildableJobError: the worker lacks the executor or GPUs.
        OverlayError: the executor's template is not acceptable.
    """
    manifest = _job_manifest(hypha_job, job, worker, settings)
    return [network_policy(hypha_job, job, worker), *_claim_templates(hypha_job, job, worker), manifest]


def _job_manifest(hypha_job: Manifest, job: HyphaJobSpec, worker: HyphaWorkerSpec, settings: Settings) -> Manifest:
    """Return the Job, which runs one pod once."""
    executor, metadata = executor_of(job, worker), hypha_job["metadata"]
    identity = worker.identity.secret_name or identity_secret(job.worker_ref.name)
    template = merge_pod_template(
        pod_template(metadata["name"], metadata["namespace"], job, worker, settings),
        executor.template,
        allow_privileged=executor.allow_privileged_template,
        leased=(EXECUTOR,),
        keys={identity, worker.identity.trust_secret_name or identity},
    )
    spec: dict[str, Any] = {
        "backoffLimit": 0,
        "completions": 1,
        "parallelism": 1,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                *(
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": container, "operator": "NotIn", "values": [0]},
                    }
                    for container in (EXECUTOR, BRIDGE)
                ),
            ]
        },
        "template": template,
    }
    manifest = child(hypha_job, JOB, metadata["name"], spec=spec)
    if executor.queue_name:
        manifest["metadata"]["labels"][QUEUE_LABEL] = executor.queue_name
        spec["suspend"] = True  # until Kueue admits it
    return manifest


def network_policy(hypha_job: Manifest, job: HyphaJobSpec, worker: HyphaWorkerSpec) -> Manifest:
    """Return the NetworkPolicy: the pod reaches DNS, its connector and the networks that jobs may fetch from."""
    jobs = worker.jobs
    blocks = [
        {"ipBlock": {"cidr": str(network), **({"except": [*map(str, excluded)]} if excluded else {})}}
        for network, excluded in reachable_blocks(
            jobs.exclude_cidr, allow_private_addresses=jobs.allow_private_addresses
        )
    ]
    connector = controller_selector(job.worker_ref.name)
    name = hypha_job["metadata"]["name"]
    spec = {
        "podSelector": {"matchLabels": {JOB_LABEL: name}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [],
        "egress": [
            {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]},
            {
                "to": [{"podSelector": {"matchLabels": connector}}],
                "ports": [{"protocol": "TCP", "port": CONNECTOR_PORT}],
            },
            # A rule without blocks would allow every destination.
            *([{"to": blocks, "ports": [{"protocol": "TCP"}]}] if blocks else []),
        ],
    }
    return child(hypha_job, NETWORK_POLICY, name, spec=spec)


def _claim_templates(hypha_job: Manifest, job: HyphaJobSpec, worker: HyphaWorkerSpec) -> list[Manifest]:
    """Return the ResourceClaimTemplate for the pod's devices if the worker uses DRA."""
    gpu, devices = worker.resources.gpu, devices_of(job, worker)
    if not (gpu and gpu.device_class_name and devices):
        return []
    exactly = {"deviceClassName": gpu.device_class_name, "allocationMode": "ExactCount", "count": devices}
    spec = {"spec": {"devices": {"requests": [{"name": CLAIM, "exactly": exactly}]}}}
    return [child(hypha_job, RESOURCE_CLAIM_TEMPLATE, hypha_job["metadata"]["name"], spec=spec)]
