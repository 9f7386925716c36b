"""HyphaWorkers on the real API server, step by step."""

import asyncio
import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hypha_contracts.kinds import CONFIG_MAP, DEPLOYMENT, HYPHA_JOB, SERVICE, WORKER, Manifest
from hypha_contracts.kubernetes_errors import Forbidden, Unavailable
from hypha_contracts.names import DRAIN_FINALIZER
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.kinds import Key
from hypha_operator.workers.rollout import MAX_AT_ONCE
from support.api_server import ApiServer
from support.operating import SETTINGS, Operating, operating
from support.people import User, report
from support.resources import GATEWAY, PEER, install_definitions, job_manifest, worker_manifest
from support.waiting import until
from support.webhooks import broken_webhook

pytestmark = pytest.mark.anyio

OTHER_PEER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"


def conditions(worker: Manifest | None) -> dict[str, tuple[str, str]]:
    assert worker is not None
    return {c["type"]: (c["status"], c["reason"]) for c in worker["status"]["conditions"]}


async def test_a_new_worker_gets_a_controller_that_starts(served, namespace, user):
    user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        made = set(await operator.objects())
    assert made == {
        "ConfigMap gpu-controller",
        "Deployment gpu-controller",
        "HyphaWorker gpu",
        "NetworkPolicy gpu-controller",
        "PodDisruptionBudget gpu-controller",
        "PodDisruptionBudget gpu-job",
        "Role gpu-controller",
        "RoleBinding gpu-controller",
        "Service gpu-connector",
        "ServiceAccount gpu-controller",
        "ServiceAccount gpu-job",
    }
    worker = user.get(worker_manifest(namespace))
    assert conditions(worker)["Ready"] == ("False", "Starting")
    assert worker is not None
    assert worker["status"]["observedGeneration"] == worker["metadata"]["generation"]
    assert worker["status"]["capacity"]["cpu"] == 32
    assert not user.events()


async def started(operator, user, worker):
    """Run the worker's controller, let its node report, and let the operator observe both."""
    await operator.settle()
    user.run_pod(operator)
    report(user, worker)
    await operator.settle()


async def test_once_the_node_reports_it_is_ready_and_its_peer_id_is_kept(served, namespace, user):
    worker = user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await started(operator, user, worker)
        config = operator.store.get(CONFIG_MAP, namespace, "gpu-controller")
    worker = user.get(worker)
    assert conditions(worker) == {
        "Ready": ("True", "Serving"),
        "Reconciling": ("False", "Settled"),
        "Stalled": ("False", "NotStalled"),
        "Connected": ("True", "Connected"),
        "Reachable": ("True", "Public"),
        "IdentityValid": ("True", "Valid"),
        "RequestsAnswered": ("Unknown", "NoRequests"),
        "ExecutorsValid": ("True", "Validated"),
        "JobsStart": ("Unknown", "NotTried"),
    }
    assert worker["status"]["peerId"] == PEER
    assert worker["status"]["node"]["connectedGateways"] == 1
    assert config is not None
    assert f'peer_id = "{PEER}"' in config["data"]["worker.toml"]


async def test_another_key_is_refused_until_it_is_allowed(served, namespace, user):
    worker = user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await started(operator, user, worker)
        report(user, worker, peerId=OTHER_PEER)
        await operator.settle()
        refused = user.get(worker)
        assert conditions(refused)["IdentityValid"] == ("False", "PeerIdChanged")
        assert conditions(refused)["Ready"] == ("False", "PeerIdChanged")
        assert refused["status"]["peerId"] == PEER
        event = user.events()["PeerIdChanged"]
        assert event["type"] == "Warning"
        assert "allowPeerIdChange" in event["message"]
        user.apply(worker_manifest(namespace, identity={"secretName": "gpu-identity", "allowPeerIdChange": True}))
        await operator.settle()
    allowed = user.get(worker)
    assert conditions(allowed)["Ready"] == ("True", "Serving")
    assert allowed["status"]["peerId"] == OTHER_PEER


async def test_a_worker_that_peers_cannot_send_bulk_data_is_ready_and_warned_once(served, namespace, user):
    worker = user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await started(operator, user, worker)
        assert "NotObserved" not in user.events()
        for gateways in (1, 2):
            report(user, worker, reach="limited_relay", connectedGateways=gateways)
            await operator.settle()
        limited = user.get(worker)
        event = user.events()["LimitedRelay"]
    assert conditions(limited)["Reachable"] == ("False", "LimitedRelay")
    assert conditions(limited)["Ready"] == ("True", "Serving")
    assert (event["type"], event["count"]) == ("Warning", 1)
    assert "spec.network.expose" in event["message"]


async def test_one_event_reports_that_all_requests_are_refused(served, namespace, user):
    worker = user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await started(operator, user, worker)
        assert "NoRequests" not in user.events()
        for bid in (5, 6):
            last = {"reason": "BidBelowFloor", "message": f"the bid {bid} is below the floor 100"}
            report(user, worker, requests={"considered": 0, "refused": bid, "lastRefusal": last})
            await operator.settle()
            assert conditions(user.get(worker))["RequestsAnswered"] == ("False", "BidBelowFloor")
        event = user.events()["BidBelowFloor"]
        assert (event["type"], event["count"]) == ("Warning", 1)
        assert "the bid 5 is below" in event["message"]
        assert "spec.offer.floor" in event["message"]
        assert conditions(user.get(worker))["Ready"] == ("True", "Serving")
        report(user, worker, requests={"considered": 1, "refused": 7, "lastRefusal": last})
        await operator.settle()
        assert conditions(user.get(worker))["RequestsAnswered"] == ("True", "Answered")


async def test_a_settled_worker_causes_no_writes(served, namespace, user):
    worker = user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await started(operator, user, worker)
        for _ in range(10):
            assert await operator.reconcile_all() == 0


async def test_a_new_operator_writes_only_objects_that_it_cannot_watch(served, namespace, user):
    user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as first:
        await first.settle()
    async with operating(served.kubeconfig, namespace) as second:
        await second.settle()
        assert second.cluster.writes == []


async def test_no_field_of_the_user_ever_changes(served, namespace, user):
    """Reconcile repeatedly, and apply the same file in between."""
    manifest = worker_manifest(namespace)
    before = user.apply(copy.deepcopy(manifest))
    owned = [entry for entry in before["metadata"]["managedFields"] if entry["manager"] == "user"]
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        user.run_pod(operator)
        report(user, before)
        for _ in range(5):
            await operator.reconcile_all()
            after = user.apply(copy.deepcopy(manifest))
    assert after["spec"] == before["spec"] == manifest["spec"]
    assert after["metadata"].get("annotations") is None
    assert after["metadata"].get("labels") is None
    assert [entry for entry in after["metadata"]["managedFields"] if entry["manager"] == "user"] == owned
    assert "finalizers" not in after["metadata"]
    assert after["metadata"]["generation"] == 1


async def test_a_change_of_the_price_configures_the_next_pod_and_replaces_none(served, namespace, user):
    user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        before = operator.store.get(DEPLOYMENT, namespace, "gpu-controller")
        user.apply(worker_manifest(namespace, offer={"price": 7, "floor": 7}, suspend=True))
        await operator.settle()
        after = operator.store.get(DEPLOYMENT, namespace, "gpu-controller")
        config = operator.store.get(CONFIG_MAP, namespace, "gpu-controller")
    assert before is not None
    assert after is not None
    assert config is not None
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert "suspend = true" in config["data"]["worker.toml"]
    assert "price = 7" in config["data"]["worker.toml"]


class Upgrade:
    """Five workers with running controllers, and what an operator with other settings has made of them."""

    def __init__(self, user: User, namespace: str) -> None:
        self.user, self.namespace = user, namespace

    async def begin(self, operator: Operating) -> None:
        for number in range(5):
            self.user.apply(worker_manifest(self.namespace, f"w{number}"))
        await operator.settle()
        for number in range(5):
            self.run(operator, f"w{number}")

    def deployment(self, operator: Operating, worker: str) -> Manifest:
        found = operator.store.get(DEPLOYMENT, self.namespace, f"{worker}-controller")
        assert found is not None
        return found

    def containers(self, operator: Operating, field: str) -> list[Any]:
        """Return this field of each controller's container."""
        found = [self.deployment(operator, f"w{number}")["spec"]["template"]["spec"] for number in range(5)]
        return [spec["containers"][0][field] for spec in found]

    def run(self, operator: Operating, worker: str) -> None:
        """Report that a controller is available."""
        controller = self.deployment(operator, worker)
        available = {"type": "Available", "status": "True", "reason": "x", "message": ""}
        generation = controller["metadata"]["generation"]
        self.user.status(controller, "cluster", observedGeneration=generation, conditions=[available])


@pytest.fixture
async def upgrade(served: ApiServer, namespace: str, user: User) -> Upgrade:
    upgrade = Upgrade(user, namespace)
    async with operating(served.kubeconfig, namespace) as operator:
        await upgrade.begin(operator)
    return upgrade


async def test_an_upgrade_of_the_operator_replaces_few_controllers_at_a_time(served, namespace, upgrade):
    old, new = SETTINGS.worker_image, "worker:new"
    upgraded = replace(SETTINGS, worker_image=new)
    async with operating(served.kubeconfig, namespace, settings=upgraded) as operator:
        await operator.settle()
        assert upgrade.containers(operator, "image") == [new] * MAX_AT_ONCE + [old] * (5 - MAX_AT_ONCE)
        await operator.reconcile_all()
        assert upgrade.containers(operator, "image").count(new) == MAX_AT_ONCE
        upgrade.run(operator, "w1")
        await operator.observe()
        assert await operator.reconcile(Key(WORKER, namespace, "w3")) == 30
        assert upgrade.containers(operator, "image").count(new) == MAX_AT_ONCE + 1
        assert await operator.reconcile(Key(WORKER, namespace, "w4")) == 5


async def test_an_upgrade_that_changes_another_setting_replaces_few_controllers_at_a_time(served, namespace, upgrade):
    upgraded = replace(SETTINGS, image_pull_policy="Always", user_ids=False)
    async with operating(served.kubeconfig, namespace, settings=upgraded) as operator:
        await operator.settle()
        assert upgrade.containers(operator, "imagePullPolicy").count("Always") == MAX_AT_ONCE


async def test_an_upgrade_replaces_few_controllers_at_a_time_while_all_workers_are_reconciled(
    served, namespace, upgrade
):
    upgraded = replace(SETTINGS, worker_image="worker:new")
    async with operating(served.kubeconfig, namespace, settings=upgraded) as operator:
        await operator.observe()
        keys = [Key(WORKER, namespace, f"w{number}") for number in range(5)]
        await asyncio.gather(*map(operator.reconcile, keys))
        assert upgrade.containers(operator, "image").count("worker:new") == MAX_AT_ONCE


async def test_a_change_by_the_owner_is_applied_at_once_during_an_upgrade(served, namespace, user, upgrade):
    upgraded = replace(SETTINGS, image_pull_policy="Always")
    async with operating(served.kubeconfig, namespace, settings=upgraded) as operator:
        await operator.settle()
        user.merge(worker_manifest(namespace, "w4"), {"spec": {"controller": {"image": "own:1"}}})
        await operator.settle()
        assert upgrade.containers(operator, "image")[4] == "own:1"
        assert upgrade.containers(operator, "imagePullPolicy")[3] == "IfNotPresent"


async def test_the_service_of_the_status_page_comes_and_goes_with_its_readers(served, namespace, user):
    user.apply(worker_manifest(namespace, statusPage={"enabled": True, "from": [{"podSelector": {}}]}))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        assert "Service gpu-status" in await operator.objects()
        user.apply(worker_manifest(namespace, statusPage={"enabled": True}))
        await operator.settle()
        assert "Service gpu-status" not in await operator.objects()


async def test_a_node_port_is_known_before_the_first_pod(served, namespace, user):
    exposed = {"network": {"gateways": [GATEWAY], "expose": {"type": "NodePort"}}}
    worker = user.apply(worker_manifest(namespace, **exposed))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        deployment = operator.store.get(DEPLOYMENT, namespace, "gpu-controller")
        service = operator.store.get(SERVICE, namespace, "gpu-p2p")
        assert deployment is not None
        assert service is not None
        assert deployment["metadata"]["generation"] == 1
        port = service["spec"]["ports"][0]["nodePort"]
        user.run_pod(operator)
        await operator.settle()
        shown = user.get(worker)
        assert shown is not None
        assert shown["status"]["externalAddresses"] == [f"/ip4/192.0.2.7/tcp/{port}"]
        user.apply(worker_manifest(namespace))
        await operator.settle()
        assert "Service gpu-p2p" not in await operator.objects()
        shown = user.get(worker)
        assert shown is not None
        assert "externalAddresses" not in shown["status"]


LISTEN = ["/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"]


def listening(namespace: str, listen: list[str], **expose: Any) -> dict[str, Any]:
    return worker_manifest(namespace, network={"gateways": [GATEWAY], "listenAddresses": listen, "expose": expose})


@pytest.mark.parametrize("expose", [{"type": "NodePort", "port": 30777}, {"type": "LoadBalancer", "port": 443}])
async def test_the_api_server_accepts_one_number_for_tcp_and_udp(served, namespace, user, expose):
    worker = user.apply(listening(namespace, LISTEN, **expose))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        assert await operator.reconcile_all() == 0, "what the API server returns counts as applied"
        service = operator.store.get(SERVICE, namespace, "gpu-p2p")
        user.run_pod(operator)
        await operator.settle()
    assert service is not None
    field = "nodePort" if expose["type"] == "NodePort" else "port"
    served_ports = [(port["name"], port["protocol"], port[field]) for port in service["spec"]["ports"]]
    assert served_ports == [("p2p-4001", "TCP", expose["port"]), ("p2p-4001-udp", "UDP", expose["port"])]
    shown = user.get(worker)
    assert shown is not None
    if expose["type"] == "NodePort":
        reached = ["/ip4/192.0.2.7/tcp/30777", "/ip4/192.0.2.7/udp/30777/quic-v1"]
        assert shown["status"]["externalAddresses"] == reached


async def test_a_worker_that_listens_over_quic_for_a_while_keeps_its_tcp_port(served, namespace, user):
    worker = user.apply(listening(namespace, LISTEN[:1], type="NodePort"))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        before = operator.store.get(SERVICE, namespace, "gpu-p2p")
        user.apply(listening(namespace, LISTEN, type="NodePort"))
        await operator.settle()
        after = operator.store.get(SERVICE, namespace, "gpu-p2p")
        user.run_pod(operator)
        await operator.settle()
        shown = user.get(worker)
        user.apply(listening(namespace, LISTEN[:1], type="NodePort"))
        await operator.settle()
        again = operator.store.get(SERVICE, namespace, "gpu-p2p")
    assert before is not None
    assert after is not None
    assert again is not None
    assert shown is not None
    tcp, udp = after["spec"]["ports"]
    assert [tcp] == before["spec"]["ports"] == again["spec"]["ports"]
    reached = [f"/ip4/192.0.2.7/tcp/{tcp['nodePort']}", f"/ip4/192.0.2.7/udp/{udp['nodePort']}/quic-v1"]
    assert shown["status"]["externalAddresses"] == reached


async def test_the_api_server_accepts_a_host_port_for_tcp_and_udp(served, namespace, user):
    user.apply(listening(namespace, LISTEN, type="HostPort", port=4100))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        assert await operator.reconcile_all() == 0
        deployment = operator.store.get(DEPLOYMENT, namespace, "gpu-controller")
    assert deployment is not None
    ports = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert [port["protocol"] for port in ports if port.get("hostPort") == 4100] == ["TCP", "UDP"]


async def test_the_service_of_a_load_balancer_has_the_class_and_annotations_of_the_spec(served, namespace, user):
    def exposed(**expose: Any) -> dict[str, Any]:
        return worker_manifest(namespace, network={"gateways": [GATEWAY], "expose": expose})

    kind, asked = "service.beta.kubernetes.io/aws-load-balancer-nlb-target-type", {"team": "a"}
    balanced = {"type": "LoadBalancer", "loadBalancerClass": "service.k8s.aws/nlb"}
    user.apply(exposed(**balanced, annotations={kind: "ip", **asked}))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        service = operator.store.get(SERVICE, namespace, "gpu-p2p")
        assert service is not None
        assert service["spec"]["loadBalancerClass"] == "service.k8s.aws/nlb"
        assert service["metadata"]["annotations"].items() >= {kind: "ip", **asked}.items()
        user.apply(exposed(**balanced, annotations=asked))
        await operator.settle()
        service = operator.store.get(SERVICE, namespace, "gpu-p2p")
        assert service is not None
        assert kind not in service["metadata"]["annotations"]
        user.apply(exposed(type="NodePort"))
        await operator.settle()
        service = operator.store.get(SERVICE, namespace, "gpu-p2p")
    assert service is not None
    assert service["spec"]["type"] == "NodePort"
    assert "loadBalancerClass" not in service["spec"]
    assert "team" not in service["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"identity": {"issuerRef": {"name": "ca"}, "trustSecretName": "n"}}, "CertManagerMissing", "cert-manager"),
        ({"controller": {"template": {"spec": {"hostPID": True}}}}, "InvalidTemplate", "hostPID"),
        (
            {"network": {"gateways": [GATEWAY], "expose": {"type": "NodePort", "port": 80}}},
            "Refused",
            "provided port is not in the valid range",
        ),
        (
            {"controller": {"template": {"spec": {"affinity": {"nodeAffinityy": {}}}}}},
            "Refused",
            'unknown field "spec.template.spec.affinity.nodeAffinityy"',
        ),
    ],
)
async def test_a_worker_whose_children_are_refused_stalls_with_the_reason(served, namespace, user, spec, reason, words):
    worker = user.apply(worker_manifest(namespace, **spec))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
    shown = user.get(worker)
    assert shown is not None
    assert conditions(shown)["Stalled"] == ("True", reason)
    ready = next(c for c in shown["status"]["conditions"] if c["type"] == "Ready")
    assert words in ready["message"]
    assert words in user.events()[reason]["message"]


async def test_a_worker_that_its_node_would_refuse_leaves_the_node_unchanged_and_sells_nothing(served, namespace, user):
    worker = user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        before = operator.store.get(DEPLOYMENT, namespace, "gpu-controller")
        user.apply(worker_manifest(namespace, network={"gateways": [f"{GATEWAY}/p2p/{PEER[:-1]}"]}))
        await operator.settle()
        assert operator.store.get(DEPLOYMENT, namespace, "gpu-controller") == before
        shown = user.get(worker)
        user.apply(worker_manifest(namespace))
        await operator.settle()
        mended = user.get(worker)
    assert shown is not None
    assert conditions(shown)["Stalled"] == ("True", "InvalidSpec")
    assert shown["status"]["offering"]["enabled"] is False
    assert mended["status"]["offering"]["enabled"] is True
    ready = next(c for c in shown["status"]["conditions"] if c["type"] == "Ready")
    assert "spec.network.gateways.0" in ready["message"]


async def test_an_object_of_another_owner_is_not_taken_over(served, namespace, user):
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gpu-controller"}}
    user.apply({**theirs, "data": {"worker.toml": "mine"}})
    worker = user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
    assert conditions(user.get(worker))["Stalled"] == ("True", "NameTaken")
    assert conditions(user.get(worker))["ExecutorsValid"] == ("True", "Validated"), "jobs do not need it"
    kept = user.get(theirs)
    assert kept is not None
    assert kept["data"] == {"worker.toml": "mine"}


async def test_a_service_of_the_user_with_the_labels_of_the_worker_is_not_deleted(served, namespace, user):
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "gpu-p2p", "labels": {"hypha.space/worker": "gpu"}},
        "spec": {"ports": [{"port": 4001}]},
    }
    user.apply(theirs)
    user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
    assert user.get(theirs) is not None


async def test_evictions_of_jobs_are_refused_unless_the_worker_allows_them(control_plane: ApiServer) -> None:
    """The eviction API of the real API server decides, with the budget as the disruption controller counts it."""
    install_definitions(control_plane)
    namespace = control_plane.namespace()
    user = User(control_plane, namespace)
    labels = {"hypha.space/worker": "gpu", "app.kubernetes.io/component": "job"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "job", "labels": labels},
        "spec": {"automountServiceAccountToken": False, "containers": [{"name": "executor", "image": "x"}]},
    }
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "job", "namespace": namespace}}

    def evicted() -> int:
        with control_plane.client() as client:
            path = f"/api/v1/namespaces/{namespace}/pods/job/eviction?dryRun=All"
            return client.post(path, json=eviction).status_code

    control_plane.token(namespace, "default")
    user.apply(worker_manifest(namespace))
    async with operating(control_plane.kubeconfig, namespace) as operator:
        await operator.settle()
        user.apply(pod)
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        user.status(pod, "kubelet", conditions=[ready], phase="Running")
        until(lambda: _counted(control_plane, namespace) == 1)
        assert evicted() == 429
        user.apply(worker_manifest(namespace, jobs={"disruption": "Allow"}))
        await operator.settle()
        until(lambda: evicted() == 201)


def _counted(server: ApiServer, namespace: str) -> int | None:
    """Return how many healthy pods the disruption controller has counted."""
    with server.client() as client:
        found = client.get(f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/gpu-job").json()
    return (found.get("status") or {}).get("currentHealthy")


class Later(Clock):
    """A clock that is ahead, and on which nothing waits."""

    ahead = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


async def test_a_failed_apply_is_reported_and_does_not_block_a_deletion(served, namespace, user):
    worker = user.apply(worker_manifest(namespace))
    with broken_webhook(served, namespace):
        async with operating(served.kubeconfig, namespace, Later()) as operator:
            with pytest.raises(Unavailable, match="failed calling webhook"):
                await operator.settle()
            shown = user.get(worker)
            assert shown is not None
            assert conditions(shown)["Ready"] == ("False", "ApplyFailed")
            assert conditions(shown)["Reconciling"] == ("True", "ApplyFailed")
            assert conditions(shown)["Stalled"] == ("False", "NotStalled")
            assert "broken.example.org" in user.events()["ApplyFailed"]["message"]
            user.apply(job_manifest(namespace, worker), manager="hypha-worker")
            await operator.observe()
            with pytest.raises(Unavailable, match="failed calling webhook"):
                await operator.reconcile(Key(WORKER, namespace, "gpu"))
            user.delete(worker)
            await operator.observe()
            await operator.reconcile(Key(WORKER, namespace, "gpu"))
            (job,) = await operator.cluster.find(HYPHA_JOB, namespace)
            assert job["spec"]["cancel"]
            assert conditions(user.get(worker))["Ready"] == ("False", "Draining")


class TestDeletion:
    async def test_jobs_are_cancelled_and_reported_before_the_worker_is_deleted(self, served, namespace, user):
        worker = user.apply(worker_manifest(namespace))
        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
            job = user.apply(job_manifest(namespace, worker), manager="hypha-worker")
            await operator.settle()
            user.delete(worker)
            await operator.observe()
            await operator.reconcile(Key(WORKER, namespace, "gpu"))
            cancelled = user.get(job)
            assert cancelled is not None
            assert cancelled["spec"]["cancel"] == {"reason": "the worker is being deleted"}
            assert conditions(user.get(worker))["Ready"] == ("False", "Draining")
            user.status(job, "hypha-operator", phase="Failed")
            await operator.observe()
            assert await operator.reconcile(Key(WORKER, namespace, "gpu")) == 2
            reported = {"type": "Reported", "status": "True", "reason": "EndReported", "message": ""}
            user.status(job, "hypha-worker", conditions=[reported | {"lastTransitionTime": "2026-01-01T00:00:00Z"}])
            await operator.observe()
            assert await operator.reconcile(Key(WORKER, namespace, "gpu")) is None
            assert user.get(worker) is None

    async def test_an_idle_worker_has_no_finalizer_and_is_deleted_without_an_operator(self, served, namespace, user):
        worker = user.apply(worker_manifest(namespace))
        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
        user.delete(worker)
        assert user.get(worker) is None

    async def test_the_finalizer_is_held_from_the_first_job_until_the_last_one_is_reported(
        self, served, namespace, user
    ):
        worker = user.apply(worker_manifest(namespace))

        def held() -> bool:
            return DRAIN_FINALIZER in user.get(worker)["metadata"].get("finalizers", [])

        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
            assert not held()
            one, other = (user.apply(job_manifest(namespace, worker), manager="hypha-worker") for _ in range(2))
            await operator.settle()
            assert held()
            for job in (one, other):
                assert held()
                user.status(job, "hypha-operator", phase="Failed")
                await operator.settle()
                assert held()
                reported = {"type": "Reported", "status": "True", "reason": "EndReported", "message": ""}
                user.status(job, "hypha-worker", conditions=[reported | {"lastTransitionTime": "2026-01-01T00:00:00Z"}])
                await operator.settle()
            assert not held()

    async def test_a_worker_whose_jobs_have_no_definition_any_more_has_nothing_to_drain(self, private_api_server):
        api = private_api_server.api
        install_definitions(api)
        namespace = api.namespace()
        user = User(api, namespace)
        worker = user.apply(worker_manifest(namespace))
        async with operating(api.kubeconfig, namespace) as operator:
            user.apply(job_manifest(namespace, worker), manager="hypha-worker")
            await operator.settle()
            api.kubectl("delete", "crd", "hyphajobs.hypha.space", "--timeout=30s")
            user.delete(worker)
            await operator.settle()
        assert user.get(worker) is None

    async def test_a_worker_that_was_never_valid_is_deleted_immediately(self, served, namespace, user):
        worker = user.apply(worker_manifest(namespace, controller={"template": {"spec": {"hostPID": True}}}))
        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
            user.delete(worker)
            await operator.settle()
        assert user.get(worker) is None

    async def test_children_that_the_garbage_collector_deletes_are_not_recreated(self, served, namespace, user):
        """A foreground deletion bypasses the draining."""
        worker = user.apply(worker_manifest(namespace))
        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
            user.apply(job_manifest(namespace, worker), manager="hypha-worker")
            await operator.settle()
            user.delete(worker, propagation="Foreground")
            user.delete({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "gpu-controller"}})
            await operator.observe()
            await operator.reconcile(Key(WORKER, namespace, "gpu"))
            await operator.observe()
            assert operator.store.get(DEPLOYMENT, namespace, "gpu-controller") is None
        shown = user.get(worker)
        assert conditions(shown)["Ready"] == ("False", "Draining")
        assert "foreground" in shown["status"]["conditions"][0]["message"]
        event = user.events()["Draining"]
        assert "foreground" in event["message"]

    async def test_a_shared_finalizer_is_removed_and_other_finalizers_stay(self, served, namespace, user):
        """For example, a worker that was recreated from an export has such a finalizer."""
        manifest = worker_manifest(namespace)
        manifest["metadata"]["finalizers"] = ["example.org/kept", DRAIN_FINALIZER]
        user.apply(manifest)
        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
            user.delete(manifest)
            await operator.settle()
        left = user.get(manifest)
        assert left is not None
        assert left["metadata"]["finalizers"] == ["example.org/kept"]

    async def test_a_worker_that_changes_during_its_deletion_is_reconciled_again(self, served, namespace, user):
        worker = user.apply(worker_manifest(namespace))
        async with operating(served.kubeconfig, namespace) as operator:
            job = user.apply(job_manifest(namespace, worker), manager="hypha-worker")
            await operator.settle()
            user.delete(worker)
            user.delete(job)
            await operator.observe()
            user.merge(worker, {"metadata": {"annotations": {"example.org/new": "yes"}}})
            assert await operator.reconcile(Key(WORKER, namespace, "gpu")) == 2
            assert user.get(worker) is not None
            await operator.settle()
        assert user.get(worker) is None

    async def test_a_deletion_waits_no_longer_than_the_grace_period_of_jobs_and_a_minute(self, served, namespace, user):
        clock = Later()
        worker = user.apply(worker_manifest(namespace, jobs={"terminationGraceSeconds": 30}))
        async with operating(served.kubeconfig, namespace, clock) as operator:
            user.apply(job_manifest(namespace, worker), manager="hypha-worker")
            await operator.settle()
            user.delete(worker)
            await operator.observe()
            key = Key(WORKER, namespace, "gpu")
            await operator.reconcile(key)
            clock.ahead = timedelta(seconds=80)
            await operator.observe()
            await operator.reconcile(key)
            assert user.get(worker) is not None
            clock.ahead = timedelta(seconds=95)
            await operator.observe()
            await operator.reconcile(key)
        assert user.get(worker) is None

    @pytest.mark.parametrize(("error", "tried"), [(Forbidden, 2), (Unavailable, 1)], ids=["refused", "no answer"])
    async def test_jobs_that_cannot_be_cancelled_do_not_extend_the_deletion(
        self, served, namespace, user, monkeypatch, caplog, error, tried
    ):
        clock = Later()
        worker = user.apply(worker_manifest(namespace, jobs={"terminationGraceSeconds": 30}))
        async with operating(served.kubeconfig, namespace, clock) as operator:
            for _ in range(2):
                user.apply(job_manifest(namespace, worker), manager="hypha-worker")
            await operator.settle()
            user.delete(worker)
            apply, refused = operator.cluster.apply, set[str]()

            async def refuse(manifest: Manifest, **options: Any) -> Manifest:
                if manifest["kind"] != HYPHA_JOB.name:
                    return await apply(manifest, **options)
                refused.add(manifest["metadata"]["name"])
                raise error("PATCH", 0, "", "a webhook denied the request or did not answer")

            monkeypatch.setattr(operator.cluster, "apply", refuse)
            await operator.observe()
            key = Key(WORKER, namespace, "gpu")
            assert await operator.reconcile(key) == 2, "it tries again"
            assert len(refused) == tried
            assert "could not be cancelled: PATCH: a webhook denied the request" in caplog.text
            assert conditions(user.get(worker))["Ready"] == ("False", "Draining")
            clock.ahead = timedelta(seconds=95)
            await operator.observe()
            await operator.reconcile(key)
        assert user.get(worker) is None
