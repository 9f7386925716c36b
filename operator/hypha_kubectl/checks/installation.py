"""Checks an installation: definitions, operators and workers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from hypha_contracts.findings import Finding, failure, ok, skipped, warning
from hypha_contracts.job_reasons import CLUSTER_REASONS
from hypha_contracts.kinds import Manifest
from hypha_contracts.names import GROUP, VERSION
from hypha_contracts.object_status import find_condition, is_true
from hypha_contracts.reasons import WorkerReason
from hypha_kubectl.checks.facts import DEFINITION, Cluster, Unknown
from hypha_kubectl.views.jobs import job_of
from hypha_kubectl.views.operators import Held, Operator, held_of
from hypha_kubectl.views.workers import Worker, workers_of

_INSTALL: Final = "Install the chart (docs/kubernetes.md)."


def definitions(cluster: Cluster) -> Iterable[Finding]:
    """Return whether the cluster serves our resources, in the form that this version knows."""
    from hypha_resources.crd import RESOURCES, definition  # noqa: PLC0415 - it takes a while to load

    expected = {f"{resource.plural}.{GROUP}": definition(resource) for resource in RESOURCES}
    try:
        found = {name: cluster.object(DEFINITION, None, name) for name in expected}
    except Unknown:
        if cluster.is_installed:
            return [ok(f"the cluster serves {GROUP}; you may not read the definitions themselves")]
        return [failure(f"the cluster does not serve {GROUP}", _INSTALL)]
    return list(judge_definitions(found, expected))


def judge_definitions(found: Mapping[str, Manifest | None], expected: Mapping[str, Manifest]) -> Iterator[Finding]:
    """Yield whether the definitions are there, are served, and are those of this version."""
    for name, ours in expected.items():
        theirs = found[name]
        if theirs is None:
            yield failure(f"the definition {name} is missing", _INSTALL)
            continue
        served = {version["name"]: version for version in theirs["spec"]["versions"] if version["served"]}
        if VERSION not in served or not is_true(theirs, "Established"):
            yield failure(f"the definition {name} does not serve {VERSION}", "Upgrade the chart.")
        elif served[VERSION]["schema"] != ours["spec"]["versions"][0]["schema"]:
            yield warning(
                f"the definition {name} differs from that of this version of kubectl hypha",
                "Upgrade the chart, or install the version of kubectl hypha that belongs to it.",
            )
        else:
            yield ok(f"the definition {name} serves {VERSION}")


def operators(cluster: Cluster) -> Iterable[Finding]:
    """Return whether operators are installed and ready."""
    from importlib.metadata import version  # noqa: PLC0415

    return list(judge_operators(cluster.operators, version("hypha-worker")))


def judge_operators(found: Sequence[Operator], version: str) -> Iterator[Finding]:
    """Yield whether each operator is ready, and has the version of this program."""
    if not found:
        yield failure("no operator is installed", _INSTALL)
    for operator in found:
        name = f"operator {operator.namespace}/{operator.name}"
        scope = f"for {', '.join(operator.namespaces)}" if operator.namespaces else "for the complete cluster"
        if operator.ready == 0:
            logs = f"kubectl logs -n {operator.namespace} deploy/{operator.name}"
            remedy = f"`kubectl describe pod -n {operator.namespace}` and `{logs}` say why."
            yield failure(f"{name}: none of its {operator.replicas} pods is ready", remedy)
        elif operator.ready < operator.replicas:
            remedy = (
                f"Another pod takes over if it fails. `kubectl get pods -n {operator.namespace}` shows their state."
            )
            yield warning(f"{name}: {operator.ready} of {operator.replicas} pods are ready", remedy)
        else:
            yield ok(f"{name} {scope}: {operator.ready} of {operator.replicas} pods are ready")
        if operator.version and operator.version != version:
            remedy = "Install the version of kubectl hypha that belongs to the operator, or upgrade the chart."
            yield warning(f"{name} has version {operator.version}, and this is kubectl hypha {version}", remedy)


def leaders(cluster: Cluster) -> Iterable[Finding]:
    """Return whether a replica of each operator leads."""
    found = cluster.operators
    if not found:
        raise Unknown("no operator is installed")
    now = cluster.api.now()
    return [judge_leader(operator, held_of(cluster.lease(operator.lease_place)), now) for operator in found]


def judge_leader(operator: Operator, held: Held | None, now: datetime) -> Finding:
    """Return whether a replica of an operator leads."""
    name, lease = f"operator {operator.namespace}/{operator.name}", "/".join(operator.lease_place)
    if held is not None and held.is_current(now) and held.release == operator.release:
        return ok(f"{name} leads: it holds Lease {lease}")
    if held is not None and held.is_current(now):
        return failure(
            f"{name} waits: release {held.release} holds Lease {lease}",
            "Uninstall one of the two releases that serve the same namespaces.",
        )
    return failure(
        f"no replica of {name} leads: nobody renews Lease {lease}",
        f"`kubectl logs -n {operator.namespace} deploy/{operator.name}` says why.",
    )


def workers(cluster: Cluster) -> Iterable[Finding]:
    """Return the state of each worker."""
    found = workers_of(cluster.workers, cluster.jobs, cluster.api.now())
    if not found:
        return [skipped("there are no HyphaWorkers; examples/hyphaworker.yaml is one")]
    return [finding for worker in found for finding in judge_worker(worker)]


def judge_worker(worker: Worker) -> Iterator[Finding]:
    """Yield whether a worker makes offers, what will cause trouble, and whether its requests are answered."""
    name = f"{worker.namespace}/{worker.name}"
    if worker.offers:
        yield ok(f"{name} makes offers: {worker.reason}")
    for obstacle in worker.obstacles:
        text = ": ".join(part for part in (obstacle.reason, obstacle.message) if part)
        found = warning if obstacle.reason == WorkerReason.SUSPENDED else failure
        yield found(f"{name} makes no offers: {text}", obstacle.remedy)
    for problem in worker.warnings:
        yield warning(f"{name}: {problem.message or problem.reason}", problem.remedy)
    if (last := worker.requests.problem) is not None:
        refused = f"{name} refused its last {worker.requests.refused} requests: {last.reason}: {last.message}"
        yield warning(refused, last.remedy)


def jobs(cluster: Cluster) -> Iterable[Finding]:
    """Return which jobs could not start because of the cluster."""
    return list(judge_jobs(cluster.jobs, cluster.api.now()))


def judge_jobs(found: Sequence[Manifest], now: datetime) -> Iterator[Finding]:
    """Yield the jobs that failed before their executor had started, and those that are blocked now."""
    bad = False
    for manifest in found:
        job, reason = job_of(manifest, now), find_condition(manifest, "Ready").get("reason")
        if job.problem and (not job.ended or (reason in CLUSTER_REASONS and job.started is None)):
            bad = True
            text = ": ".join(part for part in (job.problem.reason, job.problem.message) if part)
            verb = "failed" if job.ended else "does not start"
            yield warning(f"{job.namespace}/{job.name} {verb}: {text}", job.problem.remedy)
    if not bad:
        yield ok(f"none of {len(found)} jobs failed because of the cluster") if found else skipped("there are no jobs")
