"""What is the matter with a worker: everything observed, classified once, said with what to do about it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from hypha_contracts.names import controller_name
from hypha_operator.machinery.conditions import Condition
from hypha_operator.machinery.kinds import Manifest
from hypha_resources.worker import HyphaWorkerSpec, NodeStatus

VOLUMES_PATIENCE: Final = timedelta(seconds=20)
"""How long a pod's volumes may take before something is taken to be missing."""
EXPIRES_SOON: Final = timedelta(days=7)
_IMAGE_REASONS: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_REMEDIES: Final = {
    "ExecutorUnsupported": "Add it to spec.executors, or have schedulers ask for one of those.",
    "NoExecutor": "Schedulers must name an executor of spec.executors.",
    "BidBelowFloor": "Lower spec.offer.floor (and price), or have schedulers bid more.",
    "MoreThanCapacity": "Raise spec.resources if the cluster has more, or have schedulers ask for less.",
    "RequestExpired": "Set the clocks of schedulers and of the cluster's nodes right.",
}
"""What helps against each of the node's reasons to refuse a request."""


@dataclass(frozen=True)
class Observed:
    """All that is known about a worker at one moment.

    Attributes:
        spec: None if what is written is not a worker; `refusal` says why.
        refusal: reason and message of what kept the operator from applying everything.
        failure: what the API server answered in place of applying everything; it is asked again.
        secrets: the Secrets that the controller mounts: its identity's, its network's.
        certificate: the cert-manager Certificate, where the spec asks for one.
        pinned_peer_id: the peer id that was seen first.
        draining: what a deletion still waits for; None if the worker stays.
    """

    name: str
    namespace: str
    now: datetime
    spec: HyphaWorkerSpec | None = None
    refusal: tuple[str, str] | None = None
    failure: str | None = None
    secrets: tuple[str, str] = ("", "")
    certificate: Manifest | None = None
    deployment: Manifest | None = None
    pod: Manifest | None = None
    node: NodeStatus = field(default_factory=NodeStatus)
    pinned_peer_id: str | None = None
    draining: str | None = None


@dataclass(frozen=True)
class _Finding:
    """Why a worker is not ready. Stalled: nothing changes until somebody does something."""

    reason: str
    message: str
    stalled: bool = False


def classify(observed: Observed) -> list[Condition]:
    """Return the conditions of a worker."""
    finding = next(_findings(observed), None)
    ready, reason, message = _readiness(observed, finding)
    stalled = finding is not None and finding.stalled
    progressing = finding is not None and not stalled
    return [
        Condition("Ready", ready, reason, message),
        Condition("Reconciling", progressing, reason if progressing else "Settled", message if progressing else ""),
        Condition("Stalled", stalled, reason if stalled else "NotStalled", message if stalled else ""),
        _connected(observed),
        _identity_valid(observed),
        _requests_answered(observed),
    ]


def _readiness(observed: Observed, finding: _Finding | None) -> tuple[bool, str, str]:
    if finding is not None:
        return False, finding.reason, finding.message
    if observed.spec is not None and observed.spec.suspend:
        return True, "Suspended", "No new offers are made; running jobs finish. Unset spec.suspend to go on."
    gateways = observed.node.connected_gateways
    return True, "Serving", f"Connected with {gateways} gateway{'s' if gateways != 1 else ''}; offers are made."


def _findings(observed: Observed) -> Iterator[_Finding]:
    """Yield what keeps the worker from being ready, what is to be cured first before what follows from it."""
    if observed.draining is not None:
        yield _Finding("Draining", observed.draining)
    if observed.refusal is not None:
        yield _Finding(*observed.refusal, stalled=True)
    if observed.failure is not None:
        yield _Finding(
            "ApplyFailed",
            f"Not everything could be applied: {observed.failure}. It is tried again; if it stays so, cure what the "
            "message names, such as a webhook that does not answer.",
        )
    yield from _of_certificate(observed)
    identity = _identity_valid(observed)
    if identity.status is False:  # before the pod, which ends for that
        yield _Finding(identity.reason, identity.message, stalled=True)
    yield from _of_deployment(observed)
    if observed.pod is not None:
        yield from _of_pod(observed, observed.pod)
    yield from _of_node(observed)


def _of_certificate(observed: Observed) -> Iterator[_Finding]:
    if observed.spec is None or observed.spec.identity.issuer_ref is None:
        return
    issuer = observed.spec.identity.issuer_ref
    ready = _condition(observed.certificate, "Ready")
    if ready.get("status") != "True":
        said = ready.get("message") or "cert-manager has not said anything yet"
        yield _Finding(
            "CertificatePending",
            f"{issuer.kind} {issuer.name} has not issued the certificate: {said}. See kubectl describe certificate "
            f"-n {observed.namespace} {observed.name}-identity.",
        )


def _of_deployment(observed: Observed) -> Iterator[_Finding]:
    failure = _condition(observed.deployment, "ReplicaFailure")
    if failure.get("status") == "True":
        yield _Finding(
            "PodRefused",
            f"The controller's pod was refused: {failure.get('message', '')}. Raise the quota, or change what the "
            "namespace's admission does not take (spec.controller.template, spec.network.expose).",
        )
    if observed.pod is None:
        yield _Finding("Starting", "The controller's pod is being made.")


def _of_pod(observed: Observed, pod: Manifest) -> Iterator[_Finding]:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        yield _Finding(
            "Unschedulable",
            f"No node takes the controller's pod: {scheduled.get('message', '')}. Add nodes, or lower "
            "spec.controller.resources.",
        )
    for container in _containers(pod):
        yield from _of_container(observed, container)
    started = _condition(pod, "PodReadyToStartContainers")
    if started.get("status") == "False" and _age(scheduled, observed.now) > VOLUMES_PATIENCE:
        yield _Finding(
            "SecretMissing",
            f"The controller's pod waits for its volumes: {_wanted_secrets(observed)}. See kubectl describe pod -n "
            f"{observed.namespace} {pod['metadata']['name']}.",
        )


def _of_container(observed: Observed, container: Mapping[str, Any]) -> Iterator[_Finding]:
    waiting = container.get("state", {}).get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    logs = _logs(observed)
    if reason in _IMAGE_REASONS:
        yield _Finding(
            "ImagePull",
            f"The image {container.get('image', '')} cannot be pulled: {message}. Correct spec.controller.image or "
            "the chart's images, or name credentials in spec.imagePullSecrets.",
        )
    elif reason in {"CreateContainerConfigError", "CreateContainerError"}:
        yield _Finding("ContainerRefused", f"The controller cannot start: {message}. {_wanted_secrets(observed)}.")
    ended = container.get("state", {}).get("terminated") or (
        container.get("lastState", {}).get("terminated") if reason == "CrashLoopBackOff" else None
    )
    if ended:
        said = (ended.get("message") or "").strip().splitlines()
        last = said[-1] if said else f"exit code {ended.get('exitCode')} ({ended.get('reason', '')})"
        yield _Finding("ControllerCrashing", f"The controller ended: {last}. For more: {logs} --previous.")


def _of_node(observed: Observed) -> Iterator[_Finding]:
    if not _reports(observed):
        yield _Finding("Starting", "The controller starts; it has not reported yet.")
    connected = _connected(observed)
    if connected.status is False:
        yield _Finding(connected.reason, connected.message)
    if _condition(observed.pod, "Ready").get("status") != "True":
        yield _Finding(
            "NotHealthy",
            f"The controller's probe does not succeed: see {_logs(observed)}.",
        )


def _connected(observed: Observed) -> Condition:
    node, spec = observed.node, observed.spec
    if spec is None or not _reports(observed):
        return Condition("Connected", None, "NotReported", "The controller has not reported yet.")
    if node.connected_gateways == 0:
        return Condition(
            "Connected",
            False,
            "NoGateway",
            f"None of the gateways answers ({', '.join(spec.network.gateways)}). Check the addresses in "
            "spec.network.gateways, that the cluster lets TCP out to them, and that they trust the same authorities "
            f"as Secret {observed.secrets[1]}.",
        )
    if spec.network.relay_circuit and not node.circuits:
        return Condition(
            "Connected",
            False,
            "NoRelay",
            "No gateway relays to this worker yet, so schedulers cannot reach it. If it stays so, the gateways are "
            "full or no relays: add another to spec.network.gateways, or unset relayCircuit and set expose.",
        )
    return Condition("Connected", True, "Connected", f"Connected with {', '.join(node.gateways)}.")


def _identity_valid(observed: Observed) -> Condition:
    node, spec = observed.node, observed.spec
    secret = observed.secrets[0]
    if not _reports(observed):
        return Condition("IdentityValid", None, "NotReported", "The controller has not reported yet.")
    changed = node.peer_id and observed.pinned_peer_id not in (None, node.peer_id)
    if changed and not (spec and spec.identity.allow_peer_id_change):
        return Condition(
            "IdentityValid",
            False,
            "PeerIdChanged",
            f"Secret {secret} holds another key: its peer id is {node.peer_id}, this worker's is "
            f"{observed.pinned_peer_id}. Put the old key back, or set spec.identity.allowPeerIdChange to become "
            "another peer.",
        )
    if node.problem:
        return Condition(
            "IdentityValid",
            False,
            "IdentityRefused",
            f"{node.problem}. Secret {secret} needs tls.crt and tls.key (Ed25519, PKCS#8), issued by an authority in "
            f"ca.crt of Secret {observed.secrets[1]}; with spec.identity.allowPeerIdChange another key is taken, too.",
        )
    if not node.peer_id:
        return Condition("IdentityValid", None, "NotReported", "The controller has not reported yet.")
    return _unexpired(observed, secret)


def _unexpired(observed: Observed, secret: str) -> Condition:
    expires = observed.node.certificate_expires
    if expires is not None and expires <= observed.now:
        return Condition(
            "IdentityValid",
            False,
            "CertificateExpired",
            f"The certificate in Secret {secret} expired at {expires:%Y-%m-%d %H:%M} UTC. Put a new one for the same "
            "key there; it is taken over without a restart.",
        )
    if expires is not None and expires - observed.now < EXPIRES_SOON:
        return Condition(
            "IdentityValid",
            True,
            "CertificateExpiresSoon",
            f"The certificate in Secret {secret} expires at {expires:%Y-%m-%d %H:%M} UTC. Put a new one for the same "
            "key there in time.",
        )
    return Condition("IdentityValid", True, "Valid", f"The peer id is {observed.node.peer_id}.")


def _requests_answered(observed: Observed) -> Condition:
    requests = observed.node.requests
    if not _reports(observed):
        return Condition("RequestsAnswered", None, "NotReported", "The controller has not reported yet.")
    if requests.considered:
        return Condition("RequestsAnswered", True, "Answered", "Requests get offers as there is room.")
    if not requests.last_refusal:
        return Condition("RequestsAnswered", None, "NoRequests", "No scheduler has asked for a worker yet.")
    reason, message = requests.last_refusal.reason, requests.last_refusal.message
    return Condition(
        "RequestsAnswered",
        False,
        reason,
        f"The last requests were all refused, the last one because {message}. {_REMEDIES.get(reason, '')}",
    )


def _reports(observed: Observed) -> bool:
    """Whether what the node said was said by the pod that runs now."""
    pod = observed.pod
    return pod is not None and observed.node.pod_name == pod["metadata"]["name"]


def _wanted_secrets(observed: Observed) -> str:
    identity, trust = observed.secrets
    where = f"Secret {identity} must exist in {observed.namespace} with tls.crt and tls.key"
    return f"{where}, and ca.crt" if trust == identity else f"{where}, and Secret {trust} with ca.crt"


def _containers(pod: Manifest) -> Sequence[Mapping[str, Any]]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _condition(manifest: Manifest | None, type_: str) -> Mapping[str, Any]:
    conditions = ((manifest or {}).get("status") or {}).get("conditions") or []
    return next((condition for condition in conditions if condition["type"] == type_), {})


def _age(condition: Mapping[str, Any], now: datetime) -> timedelta:
    since = condition.get("lastTransitionTime")
    return now - datetime.fromisoformat(since) if since else timedelta()


def _logs(observed: Observed) -> str:
    return f"kubectl logs -n {observed.namespace} deploy/{controller_name(observed.name)}"
