"""Build the children of a HyphaJob: its NetworkPolicy, its ResourceClaimTemplate and its Job."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hypha_contracts.addresses import Block, is_reachable, opened_blocks, reachable_blocks
from hypha_contracts.kinds import JOB, NETWORK_POLICY, RESOURCE_CLAIM_TEMPLATE, Manifest
from hypha_contracts.names import (
    BRIDGE,
    CONNECTOR_PORT,
    EXECUTOR,
    JOB_LABEL,
    QUEUE_LABEL,
    controller_selector,
    identity_secret,
)
from hypha_operator.machinery.manifests import child, ip_blocks, with_common
from hypha_operator.pods.executor import CLAIM, devices_of, executor_of
from hypha_operator.pods.overlay import merge_pod_template
from hypha_operator.pods.pod import pod_template
from hypha_operator.settings import Settings
from hypha_resources.job import HyphaJobSpec
from hypha_resources.worker import HyphaWorkerSpec
from hypha_resources.worker_jobs import EgressRule


def job_children(
    hypha_job: Manifest,
    job: HyphaJobSpec,
    worker: HyphaWorkerSpec,
    settings: Settings,
    routes: Sequence[Manifest] = (),
) -> list[Manifest]:
    """Return a HyphaJob's children in the order of creation: NetworkPolicy, ResourceClaimTemplate if any, Job.

    `routes` are rules of its NetworkPolicy that lead to the configured servers.

    Raises:
        UnbuildableJobError: the worker lacks the executor or GPUs.
        OverlayError: the executor's template is not acceptable.
    """
    manifest = _job_manifest(hypha_job, job, worker, settings)
    policy = network_policy(hypha_job, job, worker, routes)
    return [policy, *_claim_templates(hypha_job, job, worker), manifest]


def _job_manifest(hypha_job: Manifest, job: HyphaJobSpec, worker: HyphaWorkerSpec, settings: Settings) -> Manifest:
    """Return the Job, which runs one pod once."""
    executor, metadata = executor_of(job, worker), hypha_job["metadata"]
    identity = worker.identity.secret_name or identity_secret(job.worker_ref.name)
    template = merge_pod_template(
        pod_template(metadata, job, worker, settings),
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
    manifest["metadata"]["labels"] = {**executor.labels, **manifest["metadata"]["labels"]}
    if executor.annotations:
        manifest["metadata"]["annotations"] = dict(executor.annotations)
    if executor.queue_name:
        manifest["metadata"]["labels"][QUEUE_LABEL] = executor.queue_name
        spec["suspend"] = True  # until Kueue admits it
    return _with_common(manifest, worker)


def _with_common(manifest: Manifest, worker: HyphaWorkerSpec) -> Manifest:
    return with_common(manifest, worker.common_labels, worker.common_annotations)


def network_policy(
    hypha_job: Manifest, job: HyphaJobSpec, worker: HyphaWorkerSpec, routes: Sequence[Manifest] = ()
) -> Manifest:
    """Return the NetworkPolicy: the pod reaches DNS, its connector and whatever jobs may fetch from."""
    jobs = worker.jobs
    reachable = reachable_blocks(jobs.exclude_cidr, allow_private_addresses=jobs.allow_private_addresses)
    connector = controller_selector(job.worker_ref.name)
    name = hypha_job["metadata"]["name"]
    spec: dict[str, Any] = {
        "podSelector": {"matchLabels": {JOB_LABEL: name}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [],
        "egress": [
            {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]},
            # The pods of OpenShift's DNS listen at this port, and policies apply behind a Service.
            {
                "to": [{"namespaceSelector": {}}],
                "ports": [{"protocol": protocol, "port": 5353} for protocol in ("UDP", "TCP")],
            },
            {
                "to": [{"podSelector": {"matchLabels": connector}}],
                "ports": [{"protocol": "TCP", "port": CONNECTOR_PORT}],
            },
            {
                "to": _reachable_peers(tuple(jobs.exclude_cidr), jobs.allow_private_addresses),
                "ports": [{"protocol": "TCP"}],
            },
            *map(_egress_rule, jobs.egress),
            *(_beyond(reachable, route) for route in routes),
        ],
    }
    spec["egress"] = [rule for rule in spec["egress"] if rule.get("to") != []]  # without peers it would lead everywhere
    return _with_common(child(hypha_job, NETWORK_POLICY, name, spec=spec), worker)


@lru_cache(maxsize=64)
def _reachable_peers(exclude_cidr: tuple[str, ...], allow_private_addresses: bool) -> list[Manifest]:
    """Return the reachable blocks as peers. Most jobs of a cluster have the same ones, which are slow to write."""
    return ip_blocks(reachable_blocks(exclude_cidr, allow_private_addresses=allow_private_addresses))


def _beyond(reachable: Sequence[Block], route: Manifest) -> Manifest:
    """Return a route without addresses that a pod reaches anyway, because those of public servers change often."""
    peers = [
        peer
        for peer in route["to"]
        if "ipBlock" not in peer
        or not is_reachable(peer["ipBlock"]["cidr"].partition("/")[0], route["ports"][0]["port"], reachable)
    ]
    return {**route, "to": peers}


def _egress_rule(rule: EgressRule) -> Manifest:
    """Return a rule of the worker, with its IPv4 networks behind NAT64 too."""
    peers: list[Manifest] = []
    for peer in rule.to:
        if peer.ip_block:
            peers += ip_blocks(opened_blocks(peer.ip_block.cidr, peer.ip_block.except_))
        else:
            peers.append(peer.model_dump(exclude_none=True))
    ports = [port.model_dump(exclude_none=True) for port in rule.ports]
    return {"to": peers, **({"ports": ports} if ports else {})}


def _claim_templates(hypha_job: Manifest, job: HyphaJobSpec, worker: HyphaWorkerSpec) -> list[Manifest]:
    """Return the ResourceClaimTemplate for the pod's devices if the worker uses DRA."""
    gpu, devices = worker.resources.gpu, devices_of(job, worker)
    if not (gpu and gpu.device_class_name and devices):
        return []
    exactly: dict[str, Any] = {
        "deviceClassName": gpu.device_class_name,
        "allocationMode": "ExactCount",
        "count": devices,
    }
    if gpu.selectors:
        exactly["selectors"] = [selector.model_dump() for selector in gpu.selectors]
    spec = _with_common({"spec": {"devices": {"requests": [{"name": CLAIM, "exactly": exactly}]}}}, worker)
    template = child(hypha_job, RESOURCE_CLAIM_TEMPLATE, hypha_job["metadata"]["name"], spec=spec)
    return [_with_common(template, worker)]
