"""`kubectl hypha check` before and after an installation, on an API server of its own with a real operator."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chart.operator_process import Release
from chart.rendering import one
from e2e.cluster.tools import ROOT
from hypha_contracts.findings import Finding, Mark
from hypha_contracts.kinds import Manifest
from hypha_contracts.operator_lease import CLUSTER_LEASE
from hypha_contracts.reasons import WorkerReason
from hypha_kubectl.checks import environment, installation, page
from hypha_kubectl.checks.checks import CHECKS
from hypha_kubectl.checks.facts import RUNTIME_CLASS, STORAGE_CLASS
from hypha_kubectl.views.operators import Held, Operator, held_of, operators_of
from support.api_server import ApiServer, PrivateApiServer
from support.kubectl import Scene, condition, furnish, kubectl_hypha
from support.operator_objects import hypha_job, worker_manifest
from support.people import User
from support.resources import install_definitions
from support.waiting import until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OPERATOR = Operator("system", "hypha", "system/hypha", (), "0.1.0", "operator:1", replicas=2, ready=2)


def marks(findings: Iterable[Finding]) -> list[Mark]:
    return [finding.mark for finding in findings]


def node(name: str = "n", *, ready: bool = True, cordoned: bool = False, **allocatable: str) -> Manifest:
    status = {
        "conditions": [condition("Ready", ready, "x")],
        "allocatable": {k.replace("_", "/"): v for k, v in allocatable.items()},
    }
    return {"metadata": {"name": name}, "spec": {"unschedulable": cordoned}, "status": status}


class TestWhatACheckFinds:
    @pytest.mark.parametrize(
        ("version", "mark"),
        [("v1.31.0", Mark.OK), ("v2.0.1-gke.1", Mark.OK), ("v1.30.9", Mark.FAILURE), ("devel", Mark.WARNING)],
    )
    def test_an_old_or_unknown_api_server_is_no_good(self, version: str, mark: Mark) -> None:
        assert environment.judge_version({"gitVersion": version}).mark is mark

    def test_nodes_that_are_not_ready_or_cordoned_take_no_pods(self) -> None:
        good, lost, cordoned = node("a"), node("b", ready=False), node("c", cordoned=True)
        assert environment.judge_nodes([good]).mark is Mark.OK
        assert environment.judge_nodes([good, lost, cordoned]).message == "1 of 3 nodes are ready; not b, c"
        assert environment.judge_nodes([lost, cordoned]).mark is Mark.FAILURE
        assert environment.judge_nodes([]).message == "none of 0 nodes is ready and accepts pods"

    def test_workers_may_not_offer_more_gpus_than_device_plugins(self) -> None:
        nodes = [node(cpu="8", **{"nvidia.com_gpu": "1"}), node(**{"nvidia.com_gpu": "1", "amd.com_gpu": "1"})]
        worker = worker_manifest()
        [failure, present] = environment.judge_gpus(nodes, [worker])
        assert failure.message == "workers offer 4 nvidia.com/gpu, and the nodes have 2"
        assert present.message == "device plugins offer 1 amd.com/gpu, 2 nvidia.com/gpu"
        worker["spec"]["resources"]["gpu"]["count"] = 2
        assert marks(environment.judge_gpus(nodes, [worker])) == [Mark.OK]
        assert marks(environment.judge_gpus([node(cpu="8")], [])) == [Mark.SKIPPED]

    def test_a_namespace_without_the_restricted_level_is_a_warning(self) -> None:
        def judged(**labels: str) -> Finding:
            return environment.judge_pod_security("ns", {"metadata": {"labels": labels}})

        assert judged(**{"pod-security.kubernetes.io/enforce": "restricted"}).mark is Mark.OK
        assert "no Pod Security level" in judged().message
        assert environment.judge_pod_security("ns", None).remedy == "Create it: `kubectl create namespace ns`."

    def test_the_objects_that_a_worker_names_are_found(self) -> None:
        manifest = worker_manifest(executor={"queueName": "gpus", "runtimeClassName": "gvisor"})
        manifest["spec"]["jobs"] = {"storage": {"storageClassName": "fast"}}
        assert list(environment.references(manifest)) == [
            (STORAGE_CLASS, "", "fast"),
            (RUNTIME_CLASS, "", "gvisor"),
            (environment.QUEUE, "gpu", "gpus"),
        ]

    def test_an_operator_without_a_ready_pod_or_of_another_version_is_found(self) -> None:
        def judged(**changes: Any) -> list[Finding]:
            return list(installation.judge_operators([replace(OPERATOR, **changes)], "0.1.0"))

        assert marks(judged()) == [Mark.OK]
        assert marks(judged(ready=1)) == [Mark.WARNING]
        assert marks(judged(ready=0)) == [Mark.FAILURE]
        assert marks(judged(version="0.2.0")) == [Mark.OK, Mark.WARNING]
        assert marks(installation.judge_operators([], "0.1.0")) == [Mark.FAILURE]

    def test_an_operator_leads_only_while_it_renews_its_lease(self) -> None:
        def judged(release: str, seconds: float) -> Finding:
            held = Held(*CLUSTER_LEASE, release, NOW + timedelta(seconds=seconds))
            return installation.judge_leader(OPERATOR, held, NOW)

        assert judged("system/hypha", 10).mark is Mark.OK
        assert "nobody renews Lease default/hypha-operator-cluster" in judged("system/hypha", -60).message
        assert "release other/hypha holds Lease" in judged("other/hypha", 10).message
        assert installation.judge_leader(OPERATOR, None, NOW).mark is Mark.FAILURE

    def test_a_suspended_worker_is_a_warning_and_a_broken_one_a_failure(self) -> None:
        def judged(status: Manifest, **spec: Any) -> list[Finding]:
            manifest = worker_manifest(**spec) | {"status": status}
            manifest["metadata"]["creationTimestamp"] = NOW.isoformat()
            [worker] = installation.workers_of([manifest], [], NOW)
            return list(installation.judge_worker(worker))

        fine = {"conditions": [condition("Ready", True, "Serving")], "offering": {"enabled": True}}
        assert marks(judged(fine | {"observedGeneration": 1})) == [Mark.OK]
        assert marks(judged(fine | {"observedGeneration": 0})) == [Mark.OK, Mark.WARNING]
        assert marks(judged(fine | {"observedGeneration": 1}, suspend=True)) == [Mark.WARNING]
        assert marks(judged({})) == [Mark.FAILURE]
        refused = {"requests": {"refused": 9, "lastRefusal": {"reason": "BidBelowFloor", "message": "60"}}}
        [_, warning] = judged(fine | {"observedGeneration": 1, "node": refused})
        assert warning.remedy == WorkerReason.BID_BELOW_FLOOR.remedy

    def test_jobs_that_the_cluster_did_not_start_are_warnings_and_those_that_failed_themselves_are_not(self) -> None:
        def job(phase: str, reason: str, *more: Manifest, **status: Any) -> Manifest:
            ready = condition("Ready", False, reason)
            return hypha_job(status={"phase": phase, "conditions": [ready, *more], **status})

        pulled, own = job("Failed", "ImagePull"), job("Failed", "ExecutorFailed", startTime=NOW.isoformat())
        blocked = job("Pending", "Unschedulable", condition("Stalled", True, "Unschedulable"))
        found = list(installation.judge_jobs([pulled, own, blocked], NOW))
        assert [(f.mark, f.message.partition(" ")[2]) for f in found] == [
            (Mark.WARNING, "failed: ImagePull"),
            (Mark.WARNING, "does not start: Unschedulable"),
        ]
        assert marks(installation.judge_jobs([own], NOW)) == [Mark.OK]
        assert marks(installation.judge_jobs([], NOW)) == [Mark.SKIPPED]


def test_a_lease_that_nobody_holds_or_renews_is_not_held() -> None:
    metadata = {"namespace": "default", "name": "x"}
    assert held_of(None) is None
    assert held_of({"metadata": metadata, "spec": {"renewTime": "2026-01-01T00:00:00.0Z"}}) is None
    assert held_of({"metadata": metadata, "spec": {"holderIdentity": "a/b/c"}}) is None
    spec = {"holderIdentity": "a/b/c", "renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 13}
    held = held_of({"metadata": metadata, "spec": spec})
    assert held == Held("default", "x", "a/b", NOW + timedelta(seconds=13))
    assert held.is_current(NOW + timedelta(seconds=17))
    assert not held.is_current(NOW + timedelta(seconds=19))


def test_the_page_shows_every_check() -> None:
    text = (ROOT / "docs" / "kubectl.md").read_text()
    assert page.with_table(text) == text, "run `make checks`"


def test_every_check_has_an_id_of_its_own() -> None:
    assert len({check.id for check in CHECKS}) == len(CHECKS)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A cluster in which nothing is installed at first."""
    with PrivateApiServer(tmp_path_factory.mktemp("cluster")) as server:
        yield server.api


def results(api: ApiServer, *arguments: str, code: int) -> dict[str, list[tuple[str, str]]]:
    """Return mark and message of each finding by the id of its check."""
    done = kubectl_hypha(api.kubeconfig, "check", "-o", "json", *arguments)
    assert (done.returncode, done.stderr) == (code, ""), done.stdout + done.stderr
    shown = json.loads(done.stdout)
    return {check["id"]: [(f["mark"], f["message"]) for f in check["findings"]] for check in shown["checks"]}


def add_node(api: ApiServer, name: str) -> None:
    api.post("/api/v1/nodes", {"metadata": {"name": name}})
    status = {"conditions": [condition("Ready", True, "KubeletReady")], "allocatable": {"nvidia.com/gpu": "8"}}
    User(api, "").status({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}, "kubelet", **status)


def test_before_and_after_an_installation(fresh: ApiServer, tmp_path: Path) -> None:
    """One test, because each step needs the one before it."""
    empty = results(fresh, "--pre", code=1)
    assert empty["cluster.version"][0][1].startswith("the API server answers: Kubernetes v1.")
    assert empty["cluster.nodes"] == [("failure", "none of 0 nodes is ready and accepts pods")]
    assert empty["cluster.tokens"][0][0] == empty["rights.cluster"][0][0] == empty["rights.namespace"][0][0] == "ok"
    assert empty["namespace.pod_security"][0][1] == "namespace default enforces no Pod Security level"
    assert "workers.state" not in empty

    add_node(fresh, "node-1")
    ready = results(fresh, "--pre", code=0)
    assert ready["cluster.gpus"] == [("ok", "device plugins offer 8 nvidia.com/gpu")]

    missing = results(fresh, code=1)
    assert missing["installation.definitions"][0] == ("failure", "the definition hyphaworkers.hypha.space is missing")
    assert missing["installation.operator"] == [("failure", "no operator is installed")]
    assert missing["workers.state"] == [("skipped", "the definitions are not installed")]

    install_definitions(fresh)
    release = Release(fresh, {})
    deployment = one(release.manifests, "Deployment")
    user = User(fresh, deployment["metadata"]["namespace"])
    user.apply(deployment)
    user.status(deployment, "controller", replicas=2, readyReplicas=2)
    assert results(fresh, code=1)["installation.leader"][0][0] == "failure"

    scene = Scene(fresh, fresh.namespace())
    furnish(scene)
    operator = release.start(tmp_path / "operator.log")
    try:
        until(lambda: operator.probe("/readyz") == (200, "leads"), timeout_s=60)
        found = results(fresh, "-A", code=1)
        assert found["installation.definitions"] == [
            ("ok", "the definition hyphaworkers.hypha.space serves v1alpha1"),
            ("ok", "the definition hyphajobs.hypha.space serves v1alpha1"),
        ]
        assert found["installation.operator"] == [
            ("ok", f"operator {release.name} for the complete cluster: 2 of 2 pods are ready")
        ]
        assert found["installation.leader"] == [
            ("ok", f"operator {release.name} leads: it holds Lease default/hypha-operator-cluster")
        ]
    finally:
        operator.end()


def test_the_text_has_marks_and_remedies(fresh: ApiServer) -> None:
    done = kubectl_hypha(fresh.kubeconfig, "check", "--pre", "-n", "nowhere")
    assert done.returncode == 1
    assert "  failure there is no namespace nowhere  [namespace.pod_security]\n" in done.stdout
    assert "          -> Create it: `kubectl create namespace nowhere`.\n" in done.stdout
    assert " of 7 checks" in done.stdout.splitlines()[-1]


def test_a_user_without_rights_gets_what_can_be_found_out(fresh: ApiServer) -> None:
    done = kubectl_hypha(fresh.user_kubeconfig("eve"), "check", "--pre", "-o", "json")
    assert done.returncode == 1
    checks = {check["id"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["cluster.version"]["mark"] == "ok"
    assert checks["cluster.nodes"]["mark"] == "skipped"
    assert 'cannot list resource "nodes"' in checks["cluster.nodes"]["findings"][0]["message"]
    assert checks["rights.cluster"]["mark"] == "warning"
    assert "you may not create deployments, roles, rolebindings" in checks["rights.namespace"]["findings"][0]["message"]


def test_a_cluster_that_does_not_answer_is_one_error(fresh: ApiServer, tmp_path: Path) -> None:
    (file := tmp_path / "config").write_text(fresh.kubeconfig.read_text().replace(fresh.url, "https://127.0.0.1:1"))
    done = kubectl_hypha(file, "check")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "no answer from the API server" in done.stderr


def test_only_deployments_that_run_the_operator_are_operators() -> None:
    def deployment(*command: str, args: tuple[str, ...] = ()) -> Manifest:
        container = {"command": list(command), "args": list(args), "image": "x"}
        spec = {"template": {"spec": {"containers": [container]}}}
        return {"metadata": {"namespace": "s", "name": "o"}, "spec": spec}

    args = ("run", "--namespace=a", "--namespace=b", "--release=s/o")
    [operator] = operators_of([deployment("other"), deployment("hypha-operator", args=args)])
    assert (operator.namespaces, operator.release, operator.ready) == (("a", "b"), "s/o", 0)
    assert operator.lease_place == ("a", "hypha-operator")
