"""The conditions and remedies of a worker in each of its states."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hypha_operator.machinery.conditions import Condition, merged
from hypha_operator.workers.conditions import ObservedWorker, classify
from hypha_resources.worker import HyphaWorkerSpec
from hypha_resources.worker_status import NodeStatus
from support.resources import GATEWAY, PEER, worker_manifest

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
OTHER_PEER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"


def spec(**fields: Any) -> HyphaWorkerSpec:
    return HyphaWorkerSpec.model_validate(worker_manifest("ns", **fields)["spec"])


def pod(*containers: dict[str, Any], ready: bool = True, started: bool = True, age_s: float = 60) -> dict[str, Any]:
    since = (NOW - timedelta(seconds=age_s)).isoformat()
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": since},
        {"type": "PodReadyToStartContainers", "status": str(started), "lastTransitionTime": since},
        {"type": "Ready", "status": str(ready)},
    ]
    return {
        "metadata": {"name": "gpu-pod"},
        "status": {"conditions": conditions, "containerStatuses": list(containers)},
    }


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"image": "worker:1", "state": {"waiting": {"reason": reason, "message": message}}, **more}


NODE = NodeStatus(
    peer_id=PEER,
    gateways=[GATEWAY],
    connected_gateways=1,
    circuits=["/p2p-circuit"],
    reach="public",
    healthy=True,
    certificate_expires=NOW + timedelta(days=90),
    pod_name="gpu-pod",
)
HEALTHY = ObservedWorker(
    name="gpu",
    namespace="ns",
    now=NOW,
    spec=spec(),
    secrets=("gpu-identity", "gpu-identity"),
    deployment={"status": {}},
    pod=pod(),
    node=NODE,
    pinned_peer_id=PEER,
)


def conditions_of(observed: ObservedWorker) -> dict[str, Condition]:
    return {condition.type: condition for condition in classify(observed)}


def test_a_worker_that_serves_is_ready_and_settled():
    conditions = conditions_of(HEALTHY)
    assert {type_: condition.status for type_, condition in conditions.items()} == {
        "Ready": True,
        "Reconciling": False,
        "Stalled": False,
        "Connected": True,
        "Reachable": True,
        "IdentityValid": True,
        "RequestsAnswered": None,
        "ExecutorsValid": None,
        "JobsStart": None,
    }


INVALID = Condition("ExecutorsValid", False, "InvalidTemplate", "Executor train/x: remove nodeSelecter.")
BLOCKED = Condition("JobsStart", False, "ImagePull", "2 jobs of train/x did not start.")


@pytest.mark.parametrize("observed", [HEALTHY, replace(HEALTHY, pod=None)], ids=["served", "starting"])
def test_a_worker_that_may_not_sell_is_stalled_and_names_the_first_cause(observed: ObservedWorker) -> None:
    both = replace(observed, executors_valid=INVALID, jobs_start=BLOCKED)
    for found, reason, cause in (
        (both, "ExecutorsInvalid", INVALID),
        (replace(observed, jobs_start=BLOCKED), "JobsDoNotStart", BLOCKED),
    ):
        conditions = conditions_of(found)
        assert (conditions["Ready"].status, conditions["Ready"].reason) == (False, reason)
        assert conditions["Ready"].message == cause.message
        assert conditions["Stalled"].status is True
        assert conditions[cause.type] == cause


def test_a_suspended_worker_is_ready():
    ready = conditions_of(replace(HEALTHY, spec=spec(suspend=True)))["Ready"]
    assert (ready.status, ready.reason) == (True, "Suspended")
    assert "spec.suspend" in ready.message


def test_a_new_worker_is_not_ready():
    conditions = conditions_of(replace(HEALTHY, deployment=None, pod=None, node=NodeStatus(), pinned_peer_id=None))
    assert (conditions["Ready"].status, conditions["Ready"].reason) == (False, "Starting")
    assert conditions["Reconciling"].status is True
    assert conditions["Connected"].status is None
    assert conditions["IdentityValid"].status is None


REFUSED_POD = {
    "status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small"}]}
}
UNSCHEDULABLE = {
    "metadata": {"name": "gpu-pod"},
    "status": {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]},
}
CRASHED = waiting(
    "CrashLoopBackOff",
    lastState={"terminated": {"exitCode": 1, "reason": "Error", "message": "first\nkey_pem: not an Ed25519 key"}},
)
ISSUED = spec(identity={"issuerRef": {"name": "ca"}, "trustSecretName": "network"})
PENDING = {"status": {"conditions": [{"type": "Ready", "status": "False", "message": "issuer not found"}]}}


@pytest.mark.parametrize(
    ("observed", "reason", "stalled", "words"),
    [
        (replace(HEALTHY, draining="2 jobs are ending"), "Draining", False, ["2 jobs"]),
        (replace(HEALTHY, spec=None, refusal=("InvalidSpec", "spec.x: bad")), "InvalidSpec", True, ["spec.x"]),
        (replace(HEALTHY, failure="PATCH x: busy"), "ApplyFailed", False, ["PATCH x: busy", "tries again"]),
        (replace(HEALTHY, spec=ISSUED, certificate=PENDING), "CertificatePending", False, ["issuer not found", "ca"]),
        (
            replace(HEALTHY, deployment=REFUSED_POD, pod=None, node=NodeStatus()),
            "PodRefused",
            False,
            ["exceeded quota: small", "Raise the quota"],
        ),
        (
            replace(HEALTHY, pod=UNSCHEDULABLE, node=NodeStatus()),
            "Unschedulable",
            False,
            ["0/3 nodes are available", "spec.controller.resources"],
        ),
        (
            replace(HEALTHY, pod=pod(waiting("ImagePullBackOff", "not found"), ready=False), node=NodeStatus()),
            "ImagePull",
            False,
            ["worker:1", "not found", "imagePullSecrets"],
        ),
        (
            replace(HEALTHY, pod=pod(ready=False, started=False), node=NodeStatus()),
            "SecretMissing",
            False,
            ["Secret gpu-identity must exist in ns", "tls.key", "ca.crt"],
        ),
        (
            replace(HEALTHY, pod=pod(CRASHED, ready=False), node=NodeStatus()),
            "ControllerCrashing",
            False,
            ["not an Ed25519 key", "kubectl logs -n ns deploy/gpu-controller --previous"],
        ),
        (
            replace(HEALTHY, node=NODE.model_copy(update={"problem": "tls.key: not Ed25519"})),
            "IdentityRefused",
            True,
            ["tls.key: not Ed25519", "gpu-identity"],
        ),
        (
            replace(HEALTHY, node=NODE.model_copy(update={"peer_id": OTHER_PEER})),
            "PeerIdChanged",
            True,
            [OTHER_PEER, PEER, "allowPeerIdChange"],
        ),
        (
            replace(HEALTHY, node=NODE.model_copy(update={"certificate_expires": NOW - timedelta(hours=1)})),
            "CertificateExpired",
            True,
            ["gpu-identity", "2026-06-01 11:00"],
        ),
        (
            replace(HEALTHY, node=NODE.model_copy(update={"connected_gateways": 0, "gateways": []})),
            "NoGateway",
            False,
            [GATEWAY, "spec.network.gateways", "gpu-identity"],
        ),
        (
            replace(HEALTHY, node=NODE.model_copy(update={"circuits": []})),
            "NoRelay",
            False,
            ["relayCircuit", "expose"],
        ),
        (replace(HEALTHY, pod=pod(ready=False)), "NotHealthy", False, ["kubectl logs -n ns deploy/gpu-controller"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_worker_that_cannot_serve_reports_the_reason_and_the_remedy(observed, reason, stalled, words):
    conditions = conditions_of(observed)
    assert (conditions["Ready"].status, conditions["Ready"].reason) == (False, reason)
    assert conditions["Stalled"].status is stalled
    assert conditions["Reconciling"].status is not stalled
    assert not [word for word in words if word not in conditions["Ready"].message]


def test_a_pod_that_has_just_been_scheduled_may_still_be_mounting():
    observed = replace(HEALTHY, pod=pod(ready=False, started=False, age_s=5), node=NodeStatus())
    assert conditions_of(observed)["Ready"].reason == "Starting"


def test_a_refused_identity_is_reported_before_the_crash_that_it_causes():
    refused = NodeStatus(problem="tls.key: not Ed25519", pod_name="gpu-pod")
    conditions = conditions_of(replace(HEALTHY, pod=pod(CRASHED, ready=False), node=refused))
    assert conditions["Ready"].reason == conditions["Stalled"].reason == "IdentityRefused"


def test_the_report_of_an_earlier_pod_does_not_count():
    conditions = conditions_of(replace(HEALTHY, node=NODE.model_copy(update={"pod_name": "gpu-former"})))
    assert conditions["Ready"].reason == "Starting"
    assert conditions["Connected"].status is None


def test_another_peer_id_is_valid_once_it_is_allowed():
    allowed = spec(identity={"secretName": "i", "allowPeerIdChange": True})
    observed = replace(HEALTHY, spec=allowed, node=NODE.model_copy(update={"peer_id": OTHER_PEER}))
    assert conditions_of(observed)["Ready"].status is True


def test_a_certificate_that_expires_soon_is_valid_and_reported():
    soon = NODE.model_copy(update={"certificate_expires": NOW + timedelta(days=2)})
    conditions = conditions_of(replace(HEALTHY, node=soon))
    assert conditions["Ready"].status is True
    assert (conditions["IdentityValid"].status, conditions["IdentityValid"].reason) == (True, "CertificateExpiresSoon")


@pytest.mark.parametrize(
    ("reach", "status", "reason", "words"),
    [
        ("public", True, "Public", "directly, unless a firewall keeps them out."),
        ("punchable", True, "Punchable", "spec.network.expose"),
        ("bulk_relay", True, "BulkRelay", "through a gateway that relays bulk data. Set `spec.network.expose`"),
        ("limited_relay", False, "LimitedRelay", "or a gateway that relays bulk data"),
        ("none", False, "Unreachable", "relayCircuit: true"),
        (None, None, "NotObserved", "No gateway observes the node yet. Wait"),
        ("of_a_newer_node", None, "NotObserved", ""),
    ],
)
def test_a_worker_shows_how_peers_reach_it_and_is_ready_all_the_same(reach, status, reason, words):
    conditions = conditions_of(replace(HEALTHY, node=NODE.model_copy(update={"reach": reach})))
    reachable = conditions["Reachable"]
    assert (reachable.status, reachable.reason) == (status, reason)
    assert words in reachable.message
    assert conditions["Ready"].status is True
    assert conditions["Stalled"].status is False


@pytest.mark.parametrize(
    ("class_", "offer", "makes_none"),
    [("train", {}, False), ("aggregate", {}, True), ("aggregate", {"aggregateNeedsReach": False}, False)],
)
def test_a_worker_that_makes_no_offers_to_aggregate_says_so(class_, offer, makes_none):
    limited = NODE.model_copy(update={"reach": "limited_relay"})
    observed = replace(HEALTHY, spec=spec(executors=[{"class": class_, "name": "x"}], offer=offer), node=limited)
    reachable = conditions_of(observed)["Reachable"]
    assert ("no offers for jobs of class aggregate" in reachable.message) is makes_none


def test_the_reach_of_a_node_that_has_not_reported_is_unknown():
    reachable = conditions_of(replace(HEALTHY, node=NodeStatus()))["Reachable"]
    assert (reachable.status, reachable.reason) == (None, "NotReported")


def with_requests(considered: int, refused: int, *last: str) -> ObservedWorker:
    refusal = {"reason": last[0], "message": last[1]} if last else None
    requests = {"considered": considered, "refused": refused, "lastRefusal": refusal}
    return replace(HEALTHY, node=NodeStatus.model_validate({**NODE.model_dump(), "requests": requests}))


@pytest.mark.parametrize(
    ("observed", "status", "reason", "words"),
    [
        (HEALTHY, None, "NoRequests", ""),
        (with_requests(1, 99, "BidBelowFloor", "the bid 1 is below the floor 100"), True, "Answered", ""),
        (
            with_requests(0, 3, "BidBelowFloor", "the bid 1 is below the floor 100"),
            False,
            "BidBelowFloor",
            "spec.offer.floor",
        ),
        (with_requests(0, 3, "OfANewerNode", "it is Monday"), False, "OfANewerNode", "because it is Monday"),
        (replace(HEALTHY, node=NodeStatus()), None, "NotReported", ""),
    ],
)
def test_a_worker_that_refuses_every_request_reports_the_remedy(observed, status, reason, words):
    answered = conditions_of(observed)["RequestsAnswered"]
    assert (answered.status, answered.reason) == (status, reason)
    assert words in answered.message
    assert conditions_of(observed)["Ready"].status is bool(observed.node.peer_id)


def test_a_condition_keeps_its_transition_time_until_its_status_changes():
    first = merged({}, [Condition("Ready", False, "Starting")], 1, NOW)
    unready = [Condition("Ready", False, "NoGateway", "why")]
    same = merged({"status": {"conditions": first}}, unready, 2, NOW + timedelta(hours=1))
    ready = [Condition("Ready", True, "Serving")]
    turned = merged({"status": {"conditions": same}}, ready, 2, NOW + timedelta(hours=2))
    assert same[0]["lastTransitionTime"] == first[0]["lastTransitionTime"] == "2026-06-01T12:00:00Z"
    assert turned[0]["lastTransitionTime"] == "2026-06-01T14:00:00Z"
    assert (same[0]["reason"], same[0]["observedGeneration"]) == ("NoGateway", 2)
