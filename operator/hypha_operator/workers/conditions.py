"""Derive the conditions of a HyphaWorker from everything observed about it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from hypha_contracts.kinds import Manifest
from hypha_contracts.names import controller_name
from hypha_contracts.object_status import find_condition, is_true
from hypha_contracts.reach import DESCRIPTIONS, Reach
from hypha_contracts.reasons import WorkerReason
from hypha_contracts.text import count
from hypha_contracts.times import CERTIFICATE_EXPIRES_SOON
from hypha_operator.machinery.conditions import Condition, container_statuses
from hypha_resources.worker import HyphaWorkerSpec
from hypha_resources.worker_status import NodeStatus

VOLUMES_TIMEOUT: Final = timedelta(seconds=20)
"""How long a pod may wait for its volumes before the operator reports a missing Secret."""
_IMAGE_REASONS: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_NOT_VALIDATED: Final = Condition("ExecutorsValid", None, WorkerReason.NOT_VALIDATED)
_NOT_TRIED: Final = Condition("JobsStart", None, WorkerReason.NOT_TRIED)
_REASONS: Final = {
    Reach.PUBLIC: WorkerReason.PUBLIC,
    Reach.PUNCHABLE: WorkerReason.PUNCHABLE,
    Reach.BULK_RELAY: WorkerReason.BULK_RELAY,
    Reach.LIMITED_RELAY: WorkerReason.LIMITED_RELAY,
    Reach.NONE: WorkerReason.UNREACHABLE,
}
_NOT_REPORTED: Final = "The controller has not reported yet."


@dataclass(frozen=True)
class ObservedWorker:
    """A worker and its objects at one moment.

    Attributes:
        spec: the specification, or None if it is invalid. `refusal` then says why.
        refusal: the reason and message of an error that persists until somebody changes something.
        failure: the API server's error while the children were applied. The operator tries again.
        secrets: the Secrets that the controller mounts: the identity's and the network's.
        certificate: the cert-manager Certificate, if the spec asks for one.
        pinned_peer_id: the peer id that the node reported first.
        executors_valid: whether the API server accepts a job of each executor.
        jobs_start: whether jobs start.
        draining: a message about what the deletion waits for, or None if the worker is not being deleted.
    """

    name: str
    namespace: str
    now: datetime
    spec: HyphaWorkerSpec | None = None
    refusal: tuple[WorkerReason, str] | None = None
    failure: str | None = None
    secrets: tuple[str, str] = ("", "")
    certificate: Manifest | None = None
    deployment: Manifest | None = None
    pod: Manifest | None = None
    node: NodeStatus = field(default_factory=NodeStatus)
    pinned_peer_id: str | None = None
    draining: str | None = None
    executors_valid: Condition = _NOT_VALIDATED
    jobs_start: Condition = _NOT_TRIED


@dataclass(frozen=True)
class _Finding:
    """Why a worker is not ready. A stalled worker stays so until somebody changes something."""

    reason: str
    message: str
    stalled: bool = False


def classify(observed: ObservedWorker) -> list[Condition]:
    """Return the conditions of a worker."""
    finding = next(_findings(observed), None)
    ready, reason, message = _readiness(observed, finding)
    stalled = finding is not None and finding.stalled
    progressing = finding is not None and not stalled
    return [
        Condition("Ready", ready, reason, message),
        Condition("Reconciling", progressing, *((reason, message) if progressing else (WorkerReason.SETTLED,))),
        Condition("Stalled", stalled, *((reason, message) if stalled else (WorkerReason.NOT_STALLED,))),
        _connected(observed),
        _reachable(observed),
        _identity_valid(observed),
        _requests_answered(observed),
        observed.executors_valid,
        observed.jobs_start,
    ]


def _readiness(observed: ObservedWorker, finding: _Finding | None) -> tuple[bool, str, str]:
    if finding is not None:
        return False, finding.reason, finding.message
    if observed.spec is not None and observed.spec.suspend:
        suspended = WorkerReason.SUSPENDED
        return True, suspended, f"The node makes no new offers; running jobs finish. {suspended.remedy}"
    gateways = observed.node.connected_gateways
    connected = f"Connected to {count(gateways, 'gateway')}; the node makes offers."
    return True, WorkerReason.SERVING, connected


def _findings(observed: ObservedWorker) -> Iterator[_Finding]:
    """Yield the reasons why the worker is not ready, causes before their consequences."""
    if observed.draining is not None:
        yield _Finding(WorkerReason.DRAINING, observed.draining)
    if observed.refusal is not None:
        yield _Finding(*observed.refusal, stalled=True)
    if observed.failure is not None:
        yield _Finding(
            WorkerReason.APPLY_FAILED,
            f"The operator could not apply everything: {observed.failure}. {WorkerReason.APPLY_FAILED.remedy}",
        )
    yield from _of_certificate(observed)
    identity = _identity_valid(observed)
    if identity.status is False:  # before the pod, because the node exits for this reason
        yield _Finding(identity.reason, identity.message, stalled=True)
    if observed.executors_valid.status is False:
        yield _Finding(WorkerReason.EXECUTORS_INVALID, observed.executors_valid.message, stalled=True)
    if observed.jobs_start.status is False:
        yield _Finding(WorkerReason.JOBS_DO_NOT_START, observed.jobs_start.message, stalled=True)
    yield from _of_deployment(observed)
    if observed.pod is not None:
        yield from _of_pod(observed, observed.pod)
    yield from _of_node(observed)


def _of_certificate(observed: ObservedWorker) -> Iterator[_Finding]:
    if observed.spec is None or observed.spec.identity.issuer_ref is None:
        return
    issuer = observed.spec.identity.issuer_ref
    if not is_true(observed.certificate, "Ready"):
        detail = find_condition(observed.certificate, "Ready").get("message") or "cert-manager has not reported yet"
        yield _Finding(
            WorkerReason.CERTIFICATE_PENDING,
            f"{issuer.kind} {issuer.name} has not issued the certificate: {detail}. See kubectl describe certificate "
            f"-n {observed.namespace} {observed.name}-identity.",
        )


def _of_deployment(observed: ObservedWorker) -> Iterator[_Finding]:
    if is_true(observed.deployment, "ReplicaFailure"):
        detail = find_condition(observed.deployment, "ReplicaFailure").get("message", "")
        yield _Finding(
            WorkerReason.POD_REFUSED,
            f"The API server refused the controller's pod: {detail}. {WorkerReason.POD_REFUSED.remedy}",
        )
    if observed.pod is None:
        yield _Finding(WorkerReason.STARTING, "The cluster creates the controller's pod.")


def _of_pod(observed: ObservedWorker, pod: Manifest) -> Iterator[_Finding]:
    scheduled = find_condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        yield _Finding(
            WorkerReason.UNSCHEDULABLE,
            f"No node has room for the controller's pod: {scheduled.get('message', '')}. "
            f"{WorkerReason.UNSCHEDULABLE.remedy}",
        )
    for container in container_statuses(pod):
        yield from _of_container(observed, container)
    since = scheduled.get("lastTransitionTime")
    late = since is not None and observed.now - datetime.fromisoformat(since) > VOLUMES_TIMEOUT
    if late and find_condition(pod, "PodReadyToStartContainers").get("status") == "False":
        yield _Finding(
            WorkerReason.SECRET_MISSING,
            f"The controller's pod waits for its volumes: {_wanted_secrets(observed)}. See kubectl describe pod -n "
            f"{observed.namespace} {pod['metadata']['name']}.",
        )


def _of_container(observed: ObservedWorker, container: Mapping[str, Any]) -> Iterator[_Finding]:
    waiting = container.get("state", {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in _IMAGE_REASONS:
        yield _Finding(
            WorkerReason.IMAGE_PULL,
            f"The node cannot pull image {container.get('image', '')}: {message}. {WorkerReason.IMAGE_PULL.remedy}",
        )
    elif reason in {"CreateContainerConfigError", "CreateContainerError"}:
        yield _Finding(
            WorkerReason.CONTAINER_REFUSED, f"The controller cannot start: {message}. {_wanted_secrets(observed)}."
        )
    ended = container.get("state", {}).get("terminated") or (
        container.get("lastState", {}).get("terminated") if reason == "CrashLoopBackOff" else None
    )
    if ended:
        lines = (ended.get("message") or "").strip().splitlines()
        last = lines[-1] if lines else f"exit code {ended.get('exitCode')} ({ended.get('reason', '')})"
        message = f"The controller ended: {last}. See {_logs(observed)} --previous."
        yield _Finding(WorkerReason.CONTROLLER_CRASHING, message)


def _of_node(observed: ObservedWorker) -> Iterator[_Finding]:
    if not _reports(observed):
        yield _Finding(WorkerReason.STARTING, "The controller is starting and has not reported yet.")
    connected = _connected(observed)
    if connected.status is False:
        yield _Finding(connected.reason, connected.message)
    if not is_true(observed.pod, "Ready"):
        yield _Finding(WorkerReason.NOT_HEALTHY, f"The controller's probe fails. See {_logs(observed)}.")


def _connected(observed: ObservedWorker) -> Condition:
    node, spec = observed.node, observed.spec
    if spec is None or not _reports(observed):
        return Condition("Connected", None, WorkerReason.NOT_REPORTED, _NOT_REPORTED)
    if node.connected_gateways == 0:
        return Condition(
            "Connected",
            False,
            WorkerReason.NO_GATEWAY,
            f"No gateway answers ({', '.join(spec.network.gateways)}). {WorkerReason.NO_GATEWAY.remedy} "
            f"The authorities are in Secret {observed.secrets[1]}.",
        )
    if spec.network.relay_circuit and not node.circuits:
        return Condition(
            "Connected",
            False,
            WorkerReason.NO_RELAY,
            f"No gateway relays to this worker yet, so schedulers cannot reach it. {WorkerReason.NO_RELAY.remedy}",
        )
    return Condition("Connected", True, WorkerReason.CONNECTED, f"Connected to {', '.join(node.gateways)}.")


def _reachable(observed: ObservedWorker) -> Condition:
    """Return whether peers can send the node bulk data. The worker is Ready without it, because many jobs need none."""
    if not _reports(observed):
        return Condition("Reachable", None, WorkerReason.NOT_REPORTED, _NOT_REPORTED)
    reach = next((known for known in Reach if known == observed.node.reach), None)  # a newer node may have more
    if reach is None:
        unknown = WorkerReason.NOT_OBSERVED
        return Condition("Reachable", None, unknown, f"No gateway observes the node yet. {unknown.remedy}")
    reason, how = _REASONS[reach], DESCRIPTIONS[reach]
    if not reach.takes_bulk and _aggregate_needs_reach(observed.spec):
        how += ", so it makes no offers for jobs of class aggregate"
    remedy = "" if reach is Reach.PUBLIC else f" {reason.remedy}"
    return Condition("Reachable", reach.takes_bulk, reason, f"Peers reach the node {how}.{remedy}")


def _aggregate_needs_reach(spec: HyphaWorkerSpec | None) -> bool:
    """Whether the worker makes offers for some of its executors only while peers can send it bulk data."""
    return (
        spec is not None and spec.offer.aggregate_needs_reach and any(e.class_ == "aggregate" for e in spec.executors)
    )


def _identity_valid(observed: ObservedWorker) -> Condition:
    node, spec = observed.node, observed.spec
    secret = observed.secrets[0]
    if not _reports(observed):
        return Condition("IdentityValid", None, WorkerReason.NOT_REPORTED, _NOT_REPORTED)
    changed = node.peer_id and observed.pinned_peer_id not in (None, node.peer_id)
    if changed and not (spec and spec.identity.allow_peer_id_change):
        return Condition(
            "IdentityValid",
            False,
            WorkerReason.PEER_ID_CHANGED,
            f"Secret {secret} holds another key: its peer id is {node.peer_id}, this worker's is "
            f"{observed.pinned_peer_id}. {WorkerReason.PEER_ID_CHANGED.remedy}",
        )
    if node.problem:
        return Condition(
            "IdentityValid",
            False,
            WorkerReason.IDENTITY_REFUSED,
            f"{node.problem}. Secret {secret} needs tls.crt and tls.key (Ed25519, PKCS#8), issued by an authority in "
            f"ca.crt of Secret {observed.secrets[1]}. To use another key, set spec.identity.allowPeerIdChange.",
        )
    if not node.peer_id:
        return Condition("IdentityValid", None, WorkerReason.NOT_REPORTED, _NOT_REPORTED)
    return _unexpired(observed, secret)


def _unexpired(observed: ObservedWorker, secret: str) -> Condition:
    expires = observed.node.certificate_expires
    if expires is not None and expires <= observed.now:
        return Condition(
            "IdentityValid",
            False,
            WorkerReason.CERTIFICATE_EXPIRED,
            f"The certificate in Secret {secret} expired at {expires:%Y-%m-%d %H:%M} UTC. "
            f"{WorkerReason.CERTIFICATE_EXPIRED.remedy}",
        )
    if expires is not None and expires - observed.now < CERTIFICATE_EXPIRES_SOON:
        return Condition(
            "IdentityValid",
            True,
            WorkerReason.CERTIFICATE_EXPIRES_SOON,
            f"The certificate in Secret {secret} expires at {expires:%Y-%m-%d %H:%M} UTC. "
            f"{WorkerReason.CERTIFICATE_EXPIRES_SOON.remedy}",
        )
    return Condition("IdentityValid", True, WorkerReason.VALID, f"The peer id is {observed.node.peer_id}.")


def _requests_answered(observed: ObservedWorker) -> Condition:
    requests = observed.node.requests
    if not _reports(observed):
        return Condition("RequestsAnswered", None, WorkerReason.NOT_REPORTED, _NOT_REPORTED)
    if requests.considered:
        return Condition(
            "RequestsAnswered", True, WorkerReason.ANSWERED, "The node answers requests while it has free capacity."
        )
    if not requests.last_refusal:
        return Condition("RequestsAnswered", None, WorkerReason.NO_REQUESTS, "No scheduler has requested a worker yet.")
    reason, message = requests.last_refusal.reason, requests.last_refusal.message
    remedy = next((known.remedy for known in WorkerReason if known == reason), "")  # a newer node may have more reasons
    return Condition(
        "RequestsAnswered",
        False,
        reason,
        f"The node refused all recent requests, the last one because {message}. {remedy}",
    )


def _reports(observed: ObservedWorker) -> bool:
    """Whether the node's status comes from the current pod."""
    pod = observed.pod
    return pod is not None and observed.node.pod_name == pod["metadata"]["name"]


def _wanted_secrets(observed: ObservedWorker) -> str:
    identity, trust = observed.secrets
    where = f"Secret {identity} must exist in {observed.namespace} with tls.crt and tls.key"
    return f"{where}, and ca.crt" if trust == identity else f"{where}, and Secret {trust} with ca.crt"


def _logs(observed: ObservedWorker) -> str:
    return f"kubectl logs -n {observed.namespace} deploy/{controller_name(observed.name)}"
