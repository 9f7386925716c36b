"""Checks what Hypha needs of a cluster, whether it is installed or not."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from hypha_contracts.findings import Finding, failure, ok, skipped, warning
from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import Kind, Manifest
from hypha_contracts.object_status import is_true
from hypha_contracts.reasons import WorkerReason
from hypha_contracts.text import count
from hypha_kubectl.checks.facts import (
    DEVICE_CLASS,
    KUEUE,
    NAMESPACE,
    RUNTIME_CLASS,
    STORAGE_CLASS,
    Cluster,
    Right,
    Unknown,
)

MIN_VERSION: Final = (1, 31)
_GPU: Final = re.compile(r"(nvidia|amd|intel|habana)\.[a-z.]+/|/.*gpu")
QUEUE: Final = Kind(KUEUE, "LocalQueue", "localqueues")
"""A LocalQueue, whichever version the cluster serves."""
_REMEDIES: Final = {
    STORAGE_CLASS: "Create the class, or correct jobs.storage.storageClassName.",
    RUNTIME_CLASS: "Install the sandbox, or correct executors.runtimeClassName.",
}
_CLUSTER_RIGHTS: Final[Sequence[Right]] = (
    ("create", "apiextensions.k8s.io", "customresourcedefinitions", None),
    ("create", "rbac.authorization.k8s.io", "clusterroles", None),
    ("create", "rbac.authorization.k8s.io", "clusterrolebindings", None),
)
_NAMESPACE_RIGHTS: Final = (
    ("create", "apps", "deployments"),
    ("create", "rbac.authorization.k8s.io", "roles"),
    ("create", "rbac.authorization.k8s.io", "rolebindings"),
    ("create", "", "serviceaccounts"),
    ("create", "policy", "poddisruptionbudgets"),
)


def version(cluster: Cluster) -> Iterable[Finding]:
    """Return whether the API server is new enough."""
    return [judge_version(cluster.read("/version"))]


def judge_version(info: Mapping[str, Any]) -> Finding:
    """Return whether a version of the API server is supported."""
    text = str(info.get("gitVersion", ""))
    found = re.match(r"v(\d+)\.(\d+)", text)
    if found is None:
        return warning(f"the API server has the unknown version {text!r}", "Use Kubernetes 1.31 or newer.")
    if tuple(map(int, found.groups())) < MIN_VERSION:
        return failure(f"the API server is Kubernetes {text}", "Upgrade the cluster to Kubernetes 1.31 or newer.")
    return ok(f"the API server answers: Kubernetes {text}")


def nodes(cluster: Cluster) -> Iterable[Finding]:
    """Return whether nodes can run pods."""
    return [judge_nodes(cluster.nodes)]


def judge_nodes(found: Sequence[Manifest]) -> Finding:
    """Return how many nodes can run pods."""
    usable = [node for node in found if is_true(node, "Ready") and not node["spec"].get("unschedulable")]
    if not usable:
        return failure(
            f"none of {count(len(found), 'node')} is ready and accepts pods",
            "Repair the nodes, or uncordon them: `kubectl get nodes` shows their state.",
        )
    names = [node["metadata"]["name"] for node in found if node not in usable]
    if names:
        problem = f"{len(usable)} of {count(len(found), 'node')} are ready; not {', '.join(names[:5])}"
        return warning(problem, "`kubectl describe node` says why. Jobs run on the others.")
    return ok(f"{count(len(found), 'node')} {'is' if len(found) == 1 else 'are'} ready")


def gpus(cluster: Cluster) -> Iterable[Finding]:
    """Return whether nodes have the GPUs that workers offer."""
    workers = cluster.workers if cluster.is_installed else []
    classes = {str(gpu["deviceClassName"]) for worker in workers if "deviceClassName" in (gpu := _gpu(worker))}
    yield from judge_gpus(cluster.nodes, workers)
    for name in sorted(classes):
        yield _exists(cluster, DEVICE_CLASS, name, "Install the DRA driver, or correct resources.gpu.deviceClassName.")


def judge_gpus(found: Sequence[Manifest], workers: Sequence[Manifest]) -> Iterator[Finding]:
    """Yield which GPUs device plugins offer, and whether workers offer more."""
    allocatable: Counter[str] = Counter()
    for node in found:
        for name, amount in ((node.get("status") or {}).get("allocatable") or {}).items():
            if _GPU.search(name) and str(amount).isdigit():
                allocatable[name] += int(amount)
    wanted: Counter[str] = Counter()
    for worker in workers:
        gpu = _gpu(worker)
        if gpu and "deviceClassName" not in gpu:
            wanted[gpu.get("resourceName", "nvidia.com/gpu")] += int(gpu["count"])
    for name, number in sorted(wanted.items()):
        if number > allocatable[name]:
            problem = f"workers offer {number} {name}, and the nodes have {allocatable[name]}"
            yield failure(problem, JobReason.DEVICES_MISSING.remedy)
    present = {name: number for name, number in sorted(allocatable.items()) if number}
    if present:
        yield ok("device plugins offer " + ", ".join(f"{number} {name}" for name, number in present.items()))
    elif not wanted:
        yield skipped("no device plugin offers GPUs, and no worker needs one")


def _gpu(worker: Manifest) -> Mapping[str, Any]:
    return worker["spec"]["resources"].get("gpu") or {}


def tokens(cluster: Cluster) -> Iterable[Finding]:
    """Return whether the API server publishes the keys by which controllers verify the tokens of bridges."""
    published = cluster.read("/openid/v1/jwks") or {}
    if published.get("keys"):
        return [ok("the API server publishes the keys of service account tokens")]
    remedy = "Have the API server serve /openid/v1/jwks: controllers verify the tokens of bridges with these keys."
    return [failure("the API server publishes no keys of service account tokens", remedy)]


def pod_security(cluster: Cluster) -> Iterable[Finding]:
    """Return which Pod Security level the namespaces of workers enforce, or before an installation the given one."""
    if cluster.before:
        names = {_one_namespace(cluster)}
    elif not (names := {worker["metadata"]["namespace"] for worker in cluster.workers}):
        raise Unknown("there are no HyphaWorkers")
    return [judge_pod_security(name, cluster.object(NAMESPACE, None, name)) for name in sorted(names)]


def _one_namespace(cluster: Cluster) -> str:
    if cluster.namespace is None:
        raise Unknown("it is a matter of one namespace; use --namespace")
    return cluster.namespace


def judge_pod_security(name: str, namespace: Manifest | None) -> Finding:
    """Return whether pods of Hypha may run in a namespace."""
    if namespace is None:
        return failure(f"there is no namespace {name}", f"Create it: `kubectl create namespace {name}`.")
    labels = namespace["metadata"].get("labels") or {}
    level = labels.get("pod-security.kubernetes.io/enforce")
    if level == "restricted":
        return ok(f"namespace {name} enforces Pod Security restricted, which all pods of Hypha pass")
    enforced = f"Pod Security {level}" if level else "no Pod Security level"
    return warning(
        f"namespace {name} enforces {enforced}",
        "Jobs are code of others. Label it pod-security.kubernetes.io/enforce=restricted (examples/namespace.yaml), "
        "unless a worker needs more.",
    )


def addons(cluster: Cluster) -> Iterable[Finding]:
    """Yield whether what workers name is there: storage classes, sandboxes, queues, issuers."""
    workers = cluster.workers
    named = {reference for worker in workers for reference in references(worker)}
    for kind, namespace, name in sorted(named, key=str):
        if kind == QUEUE:
            queues = cluster.served(KUEUE, "LocalQueue", "localqueues")
            remedy = "Install Kueue and create the LocalQueue, or correct executors.queueName."
            yield (
                _exists(cluster, queues, name, remedy, namespace)
                if queues
                else failure(f"a worker names the queue {name}, and the cluster has no Kueue", remedy)
            )
        else:
            yield _exists(cluster, kind, name, _REMEDIES[kind])
    issued = [worker for worker in workers if worker["spec"]["identity"].get("issuerRef")]
    if issued and cluster.read("/apis/cert-manager.io") is None:
        problem = f"{count(len(issued), 'worker')} with identity.issuerRef, and the cluster has no cert-manager"
        yield failure(problem, WorkerReason.CERT_MANAGER_MISSING.remedy)
    elif issued:
        yield ok("cert-manager is installed")
    if not named and not issued:
        yield skipped("no worker names a storage class, a sandbox, a queue or an issuer")


def references(worker: Manifest) -> Iterator[tuple[Kind, str, str]]:
    """Yield kind, namespace (empty: the cluster) and name of the objects that a worker names."""
    spec = worker["spec"]
    if storage := ((spec.get("jobs") or {}).get("storage") or {}).get("storageClassName"):
        yield STORAGE_CLASS, "", storage
    for executor in spec["executors"]:
        if sandbox := executor.get("runtimeClassName"):
            yield RUNTIME_CLASS, "", sandbox
        if queue := executor.get("queueName"):
            yield QUEUE, worker["metadata"]["namespace"], queue


def _exists(cluster: Cluster, kind: Kind, name: str, remedy: str, namespace: str | None = None) -> Finding:
    where = f" in namespace {namespace}" if namespace else ""
    if cluster.object(kind, namespace, name) is None:
        return failure(f"there is no {kind.name} {name}{where}, which a worker names", remedy)
    return ok(f"{kind.name} {name}{where} exists")


def cluster_rights(cluster: Cluster) -> Iterable[Finding]:
    """Return whether this user may install the definitions and an operator of the cluster."""
    lacking = cluster.lacking(_CLUSTER_RIGHTS)
    if not lacking:
        return [ok("you may install the definitions, and an operator of the complete cluster")]
    remedy = (
        "Have an administrator apply the directory crds/, and install for one namespace: watchNamespace=NAME and "
        "crds.install=false (docs/kubernetes.md)."
    )
    return [warning(f"you may not create {_resources(lacking)}", remedy)]


def namespace_rights(cluster: Cluster) -> Iterable[Finding]:
    """Return whether this user may install an operator in the namespace."""
    namespace = _one_namespace(cluster)
    lacking = cluster.lacking([(*right, namespace) for right in _NAMESPACE_RIGHTS])
    if not lacking:
        return [ok(f"you may install an operator in namespace {namespace}")]
    remedy = "Have an administrator give you the role admin in the namespace, or choose another --namespace."
    return [failure(f"you may not create {_resources(lacking)} in namespace {namespace}", remedy)]


def _resources(rights: Sequence[Right]) -> str:
    return ", ".join(resource for _, _, resource, _ in rights)
