"""The operator with the chart's arguments, environment and permissions, on a real API server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from chart.operator_process import OperatorProcess, Release, running
from chart.rendering import Manifest, of_kind, render
from e2e.cluster.tools import ROOT
from e2e.monitoring import running_prometheus
from hypha_telemetry.metric import Kind
from hypha_telemetry.operator_metrics import OPERATOR_METRICS
from hypha_telemetry.process_metrics import PROCESS_METRICS
from support.api_server import ApiServer, PrivateApiServer
from support.dashboards import assert_series, dashboard_queries, is_about_the_operator, scraping
from support.waiting import until

EXAMPLE = ROOT / "examples" / "hyphaworker.yaml"
DRA_WORKER = ROOT / "examples" / "dra.yaml"
JOB = ROOT / "charts/argocd/resource_customizations/hypha.space/HyphaJob/testdata/new.yaml"


@dataclass(frozen=True)
class Confined:
    """A running operator that serves one namespace of the test run's API server."""

    api: ApiServer
    namespace: str
    process: OperatorProcess

    def assert_it_lacked_no_right(self) -> None:
        assert "forbidden: user" not in self.process.log.read_text().lower()


@pytest.fixture(scope="module")
def confined(definitions: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confined]:
    namespace = definitions.namespace()
    values = {"watchNamespace": namespace, "operator": {"logging": {"level": "debug"}}}
    with running(definitions, values, tmp_path_factory.mktemp("operator")) as process:
        yield Confined(definitions, namespace, process)


def get(api: ApiServer, namespace: str, name: str) -> Manifest:
    arguments = ("--ignore-not-found", "--show-managed-fields", "-oyaml")
    return dict(yaml.safe_load(api.kubectl("get", f"-n{namespace}", name, *arguments)) or {})


def test_an_operator_of_one_namespace_creates_and_removes_a_controller(confined: Confined) -> None:
    _make_and_take_away(confined.api, confined.namespace)
    confined.assert_it_lacked_no_right()


def test_an_operator_of_the_cluster_creates_and_removes_controllers_in_any_namespace(
    private_api_server: PrivateApiServer, tmp_path: Path
) -> None:
    api = private_api_server.api
    api.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    with running(api, {}, tmp_path) as operator:
        _make_and_take_away(api, api.namespace())
        assert "forbidden" not in operator.log.read_text().lower()


def _make_and_take_away(api: ApiServer, namespace: str) -> None:
    worker = yaml.safe_load(EXAMPLE.read_text())
    worker["metadata"]["namespace"] = namespace
    api.kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump(worker))
    until(lambda: get(api, namespace, "deployment/worker-controller"))
    api.kubectl("wait", f"-n{namespace}", "hyphaworker/worker", "--for=condition=Ready=False", "--timeout=30s")
    api.kubectl("delete", f"-n{namespace}", "hyphaworker/worker", "--timeout=30s")


def test_a_hyphajob_gets_a_job_that_ends_when_it_is_cancelled(confined: Confined) -> None:
    """The job claims devices. No garbage collector runs here, so deleted objects keep their deletion timestamp."""
    api, namespace = confined.api, confined.namespace
    worker, job = yaml.safe_load(DRA_WORKER.read_text()), yaml.safe_load(JOB.read_text())
    worker["metadata"] = {"name": "job-worker", "namespace": namespace}
    api.kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump(worker))
    uid = get(api, namespace, "hyphaworker/job-worker")["metadata"]["uid"]
    name = job["metadata"]["name"]
    job["metadata"] |= {"namespace": namespace, "labels": {"hypha.space/worker": "job-worker"}}
    job["spec"] |= {"workerRef": {"name": "job-worker", "uid": uid}}
    job["spec"]["resources"] |= {"gpu": 80}
    job["spec"]["lease"]["deadline"] = "2100-01-01T00:00:00Z"
    api.kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump(job))
    until(lambda: get(api, namespace, f"job/{name}"))
    assert get(api, namespace, f"networkpolicy/{name}")
    assert get(api, namespace, f"resourceclaimtemplate/{name}")
    api.kubectl("wait", f"-n{namespace}", f"hyphajob/{name}", "--for=jsonpath={.status.phase}=Pending", "--timeout=30s")
    cancel = json.dumps({"spec": {"cancel": {"reason": "enough"}}})
    api.kubectl("patch", f"-n{namespace}", f"hyphajob/{name}", "--type=merge", "-p", cancel)
    until(lambda: "deletionTimestamp" in get(api, namespace, f"job/{name}")["metadata"])
    confined.assert_it_lacked_no_right()


def test_no_example_is_changed_by_the_operator(confined: Confined) -> None:
    """Fields and managers stay. Every worker starts, except those that need cert-manager or a sandbox."""
    api, namespace = confined.api, confined.namespace
    workers = [
        {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
        for path in sorted((ROOT / "examples").glob("*.yaml"))
        for manifest in yaml.safe_load_all(path.read_text())
        if manifest["kind"] == "HyphaWorker" and path != EXAMPLE
    ]
    names = [worker["metadata"]["name"] for worker in workers]
    reasons = {"issued-worker": "CertManagerMissing", "sandboxed-worker": "ExecutorsInvalid"}

    def users_part(name: str) -> tuple[Manifest, list[Manifest]]:
        live = get(api, namespace, f"hyphaworker/{name}")
        return live["spec"], [entry for entry in live["metadata"]["managedFields"] if entry["manager"] == "kubectl"]

    api.kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump_all(workers))
    before = {name: users_part(name) for name in names}
    for name in names:
        reason = reasons.get(name, "Starting")
        condition = f"--for=jsonpath={{.status.conditions[?(@.type=='Ready')].reason}}={reason}"
        api.kubectl("wait", f"-n{namespace}", f"hyphaworker/{name}", condition, "--timeout=30s")
    assert {name: users_part(name) for name in names} == before
    api.kubectl("delete", f"-n{namespace}", *(f"hyphaworker/{name}" for name in names), "--timeout=50s")
    confined.assert_it_lacked_no_right()


def test_every_query_of_the_dashboards_about_the_operator_returns_a_series(confined: Confined, tmp_path: Path) -> None:
    asked = [expression for expression in dashboard_queries() if is_about_the_operator(expression)]
    assert len(asked) >= 6
    with running_prometheus(tmp_path, scraping("hypha-operator", confined.process.address)) as prometheus:
        _make_and_take_away(confined.api, confined.namespace)
        assert_series(prometheus, asked)


def test_the_operator_exports_what_the_catalogue_says(confined: Confined) -> None:
    _make_and_take_away(confined.api, confined.namespace)
    until(lambda: "hypha_operator_reconcile_seconds_count{" in confined.process.metrics())
    page = confined.process.metrics()
    families = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    kinds = {Kind.UP_DOWN_COUNTER: "gauge"}
    documented = {m.prometheus_name: kinds.get(m.kind, m.kind.value) for m in (*OPERATOR_METRICS, *PROCESS_METRICS)}
    assert {name: families.get(name) for name in documented} == documented
    assert {name for name in families if name.startswith("hypha_")} <= documented.keys()
    assert 'service_name="hypha-operator"' in page


@dataclass(frozen=True)
class HelmTest:
    """The pod of `helm test`, as a process whose account has no permissions."""

    api: ApiServer
    account: Path

    @classmethod
    def of(cls, api: ApiServer, namespace: str, directory: Path) -> "HelmTest":
        (directory / "ca.crt").write_bytes(api.ca.read_bytes())
        (directory / "token").write_text(api.token(namespace, "nobody"))
        return cls(api, directory)

    def run(self, operator: str) -> tuple[int, str]:
        """Return the exit code and the output for an operator at an address."""
        (pod,) = of_kind(render(), "Pod")
        (container,) = pod["spec"]["containers"]
        server = urlsplit(self.api.url)
        environment = os.environ | {
            "ACCOUNT_DIR": str(self.account),
            "OPERATOR": operator,
            "KUBERNETES_SERVICE_HOST": str(server.hostname),
            "KUBERNETES_SERVICE_PORT": str(server.port),
        }
        command = [sys.executable, *container["command"][1:], *container["args"]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr


def test_the_helm_test_needs_no_permissions_and_reports_problems(confined: Confined, tmp_path: Path) -> None:
    helm_test = HelmTest.of(confined.api, confined.namespace, tmp_path)
    passed = "HyphaWorkers and HyphaJobs are served, and the operator is ready: it leads\n"
    assert helm_test.run(confined.process.address) == (0, passed)
    assert "Look at its log" in helm_test.run("127.0.0.1:9")[1]
    (tmp_path / "token").write_text("nobody's")
    assert "401 Unauthorized" in helm_test.run(confined.process.address)[1]


def test_an_operator_that_may_list_nothing_is_healthy_but_not_ready_and_the_helm_test_says_why(
    definitions: ApiServer, tmp_path: Path
) -> None:
    release = Release(definitions, {}, apply=False)
    operator = release.start(tmp_path / "operator.log")
    try:
        until(lambda: "cannot list resource" in operator.probe("/readyz")[1], timeout_s=60)
        assert operator.probe("/readyz")[0] == 503
        assert operator.probe("/healthz") == (200, "ok")
        code, output = HelmTest.of(definitions, definitions.namespace(), tmp_path).run(operator.address)
        assert code == 1
        assert "cannot list resource" in output
    finally:
        operator.kill()


def test_an_operator_is_ready_once_the_definitions_are_served(
    private_api_server: PrivateApiServer, tmp_path: Path
) -> None:
    api = private_api_server.api
    release = Release(api, {})
    operator = release.start(tmp_path / "operator.log")
    try:
        until(lambda: "does not serve hyphaworkers, hyphajobs" in operator.probe("/readyz")[1], timeout_s=60)
        assert operator.probe("/healthz") == (200, "ok")
        api.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        assert operator.process.wait(30) == 0  # the kubelet starts it again
        operator = release.start(tmp_path / "operator.log")
        until(lambda: operator.probe("/readyz") == (200, "leads"), timeout_s=60)
    finally:
        operator.kill()


def test_the_helm_test_says_which_definitions_are_missing(private_api_server: PrivateApiServer, tmp_path: Path) -> None:
    code, output = HelmTest.of(private_api_server.api, "default", tmp_path).run("127.0.0.1:9")
    assert code == 1
    assert "lacks hyphajobs, hyphajobs/status, hyphaworkers, hyphaworkers/status" in output
