"""Ask the cluster for what belongs into a bundle. It asks neither for Secrets nor for ConfigMaps."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from typing import Any, Final

from hypha_contracts import findings
from hypha_contracts.kinds import DEPLOYMENT, EVENT, LEASE, POD, Manifest
from hypha_contracts.kubernetes_errors import ApiError
from hypha_contracts.names import CONTROLLER, WORKER_LABEL, controller_selector
from hypha_contracts.operator_lease import CLUSTER_LEASE, LEASE_NAME
from hypha_kubectl.access.api import at_once
from hypha_kubectl.bundle import allowed
from hypha_kubectl.bundle.allowed import Shape, kept
from hypha_kubectl.bundle.scrub import scrub
from hypha_kubectl.checks.checks import run
from hypha_kubectl.checks.facts import Cluster, Unknown
from hypha_kubectl.views.operators import COMPONENT_SELECTOR, is_pod_of_operator

MAX_OBJECTS: Final = 1000
"""The most objects of a kind, the newest first."""
MAX_LOGS: Final = 64
MAX_LOG_LINES: Final = 2000
MAX_LOG_BYTES: Final = 2**20
_LOG_S: Final = 20.0
_CONTROLLER: Final = controller_selector("")["app.kubernetes.io/component"]

README: Final = """\
A report of `kubectl hypha report`, to find a fault of Hypha workers.

It was made without reading Secrets or ConfigMaps. Of objects it holds listed fields alone. It holds no annotations, no
values of environment variables, no arguments of programs, and no configuration of jobs. What looks like a key, a token,
a password or another secret in messages and logs is replaced by <redacted>. Read it before you give it to others.

versions.json      of this program, of the API server and of the definitions
check.txt          what `kubectl hypha check` found
*.json             objects of one kind
logs/              the last lines of operators and controllers; previous: of the process before
omitted.txt        what could not be read, and why
"""


class Bundle:
    """Collects the files of a bundle.

    Attributes:
        files: the contents by name.
        omitted: what could not be read, and why.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.files: dict[str, str] = {"README.txt": README}
        self.omitted: list[str] = []

    def collect(self) -> None:
        """Ask for everything. ApiError if the API server does not answer."""
        self._attempt("versions.json", lambda: _json(_versions(self._cluster)))
        self._attempt("check.txt", lambda: _check(self._cluster))
        workers = self._objects("hyphaworkers.json", allowed.WORKER_FIELDS, lambda: self._cluster.workers)
        jobs = self._objects("hyphajobs.json", allowed.JOB_FIELDS, lambda: self._cluster.jobs)
        pods = self._objects("pods.json", allowed.POD_FIELDS, lambda: _pods(self._cluster))
        deployments = self._objects("deployments.json", allowed.DEPLOYMENT_FIELDS, lambda: _deployments(self._cluster))
        self._objects("nodes.json", allowed.NODE_FIELDS, lambda: self._cluster.nodes)
        self._objects("leases.json", allowed.LEASE_FIELDS, lambda: _leases(self._cluster))
        ours = [*workers, *jobs, *pods, *deployments]
        self._objects("events.json", allowed.EVENT_FIELDS, lambda: list(_events(self._cluster, ours)))
        self._logs(pods)
        self.files["omitted.txt"] = "".join(f"{line}\n" for line in self.omitted)

    def _attempt(self, name: str, make: Callable[[], str]) -> None:
        try:
            self.files[name] = make()
        except Unknown as reason:
            self.omitted.append(f"{name}: {scrub(str(reason))}")
        except ApiError as error:
            if error.status == 0:
                raise
            self.omitted.append(f"{name}: {scrub(str(error))}")

    def _objects(self, name: str, fields: Shape, ask: Callable[[], Sequence[Manifest]]) -> Sequence[Manifest]:
        """Add the objects of a kind, and return them in full."""
        found: list[Manifest] = []

        def make() -> str:
            found.extend(sorted(ask(), key=_created, reverse=True))
            if len(found) > MAX_OBJECTS:
                self.omitted.append(f"{name}: all but the newest {MAX_OBJECTS} of {len(found)}")
            return _json([kept(object_, fields) for object_ in found[:MAX_OBJECTS]])

        self._attempt(name, make)
        return found

    def _logs(self, pods: Sequence[Manifest]) -> None:
        wanted = list(_wanted_logs(pods))
        if len(wanted) > MAX_LOGS:
            self.omitted.append(f"logs: all but {MAX_LOGS} of {len(wanted)}")

        def read(pod: Manifest, container: str, previous: bool) -> None:
            metadata = pod["metadata"]
            name = f"logs/{metadata['namespace']}/{metadata['name']}/{container}{'.previous' if previous else ''}.log"
            self._attempt(name, lambda: _log(self._cluster, metadata, container, previous=previous))

        at_once(*(lambda log=log: read(*log) for log in wanted[:MAX_LOGS]))


def _created(object_: Manifest) -> str:
    return str(object_["metadata"].get("creationTimestamp"))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _versions(cluster: Cluster) -> Manifest:
    server = cluster.read("/version") or {}
    return {
        "kubectl-hypha": version("hypha-worker"),
        "server": {key: scrub(str(server[key])) for key in ("gitVersion", "platform") if key in server},
        "time": cluster.api.now().isoformat(timespec="seconds"),
        "namespace": cluster.namespace,
        "operators": [{"release": o.release, "version": o.version, "image": scrub(o.image)} for o in cluster.operators],
    }


def _check(cluster: Cluster) -> str:
    return "".join(f"{scrub(line)}\n" for line in findings.to_text(run(cluster), colour=False))


def _pods(cluster: Cluster) -> list[Manifest]:
    """Return the pods of workers, jobs and operators."""
    pods = cluster.objects(POD, cluster.namespace, labelSelector=WORKER_LABEL)
    return [*pods, *_of_operators(cluster)]


def _of_operators(cluster: Cluster) -> Iterable[Manifest]:
    try:
        found = cluster.objects(POD, labelSelector=COMPONENT_SELECTOR)
    except Unknown:
        found = cluster.objects(POD, cluster.namespace, labelSelector=COMPONENT_SELECTOR)
    return filter(is_pod_of_operator, found)


def _deployments(cluster: Cluster) -> list[Manifest]:
    """Return the Deployments of controllers and operators."""
    names = {(operator.namespace, operator.name) for operator in cluster.operators}
    controllers = cluster.objects(DEPLOYMENT, cluster.namespace, labelSelector=WORKER_LABEL)
    own = [cluster.object(DEPLOYMENT, *name) for name in sorted(names)]
    return [*controllers, *(deployment for deployment in own if deployment)]


def _leases(cluster: Cluster) -> list[Manifest]:
    """Return the Leases of operators."""
    found = cluster.objects(LEASE, cluster.namespace, fieldSelector=f"metadata.name={LEASE_NAME}")
    try:
        of_cluster = cluster.lease(CLUSTER_LEASE)
    except Unknown:
        of_cluster = None
    return [*found, *([of_cluster] if of_cluster else [])]


def _events(cluster: Cluster, ours: Sequence[Manifest]) -> Iterator[Manifest]:
    """Yield the events about objects of ours and about those that are named after them, such as their Jobs."""
    names: dict[str, set[str]] = {}
    for object_ in ours:
        names.setdefault(object_["metadata"]["namespace"], set()).add(object_["metadata"]["name"])
    for namespace, of_ours in sorted(names.items()):
        for event in cluster.objects(EVENT, namespace):
            about = (event.get("involvedObject") or {}).get("name") or ""
            if any(about == name or about.startswith(f"{name}-") for name in of_ours):
                yield event


def _wanted_logs(pods: Sequence[Manifest]) -> Iterator[tuple[Manifest, str, bool]]:
    """Yield pod, container and whether its previous process is meant, for operators and controllers."""
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        if labels.get("app.kubernetes.io/component") == _CONTROLLER:
            containers = [CONTROLLER]
        elif is_pod_of_operator(pod):
            containers = [container["name"] for container in pod["spec"]["containers"]]
        else:
            continue
        statuses = (pod.get("status") or {}).get("containerStatuses") or ()
        restarted = {status["name"] for status in statuses if status.get("restartCount")}
        for container in containers:
            yield pod, container, False
            if container in restarted:
                yield pod, container, True


def _log(cluster: Cluster, metadata: Manifest, container: str, *, previous: bool) -> str:
    query = {
        "container": container,
        "previous": str(previous).lower(),
        "tailLines": str(MAX_LOG_LINES),
        "limitBytes": str(MAX_LOG_BYTES),
    }
    path = POD.path(metadata["namespace"], metadata["name"], "log")
    lines = islice(cluster.api.lines(path, query, silence_s=_LOG_S), MAX_LOG_LINES)
    return scrub("\n".join(lines)) + "\n"
