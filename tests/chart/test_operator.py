"""The operator with exactly the arguments, environment and rights that the chart gives it, on a real API server."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from chart.operator_process import running
from chart.rendering import CHART, Manifest, of_kind, render
from e2e.cluster.tools import ROOT
from support.api_server import ApiServer, PrivateApiServer
from support.waiting import until

EXAMPLE = ROOT / "examples" / "hyphaworker.yaml"


def example(namespace: str) -> Manifest:
    worker: Manifest = yaml.safe_load(EXAMPLE.read_text())
    worker["metadata"]["namespace"] = namespace
    return worker


def get(api: ApiServer, namespace: str, name: str) -> Manifest:
    return dict(yaml.safe_load(api.kubectl("get", f"-n{namespace}", name, "--ignore-not-found", "-oyaml")) or {})


def test_confined_to_a_namespace_it_makes_a_controller_and_takes_it_away_again(
    definitions: ApiServer, namespace: str, tmp_path: Path
) -> None:
    with running(definitions, {"watchNamespace": namespace}, tmp_path) as operator:
        _make_and_take_away(definitions, namespace)
        assert "forbidden" not in operator.log.read_text().lower()


def test_for_the_whole_cluster_it_does_so_in_any_namespace(
    private_api_server: PrivateApiServer, tmp_path: Path
) -> None:
    api = private_api_server.api
    api.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    with running(api, {}, tmp_path) as operator:
        _make_and_take_away(api, api.namespace())
        assert "forbidden" not in operator.log.read_text().lower()


def _make_and_take_away(api: ApiServer, namespace: str) -> None:
    api.kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump(example(namespace)))
    until(lambda: get(api, namespace, "deployment/worker-controller"))
    until(lambda: "conditions" in get(api, namespace, "hyphaworker/worker").get("status", {}))
    conditions = {c["type"]: c for c in get(api, namespace, "hyphaworker/worker")["status"]["conditions"]}
    assert conditions["Ready"]["reason"] == "Starting", conditions
    binding = f"clusterrolebinding/hypha-{namespace}-worker-token-reviewer"
    assert get(api, namespace, binding)
    assert get(api, namespace, "hyphaworker/worker")["spec"] == example(namespace)["spec"]
    api.kubectl("delete", f"-n{namespace}", "hyphaworker/worker", "--timeout=30s")
    assert not get(api, namespace, binding)


def test_the_dashboard_asks_for_metrics_that_the_operator_has(
    definitions: ApiServer, namespace: str, tmp_path: Path
) -> None:
    dashboard = json.loads((CHART / "dashboards" / "hypha-operator.json").read_text())
    asked = {
        metric
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for metric in re.findall(r"\b(?:hypha|process)_\w+", target["expr"])
    }
    with running(definitions, {"watchNamespace": namespace}, tmp_path) as operator:
        api = definitions
        api.kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump(example(namespace)))
        until(lambda: "hypha_operator_reconcile_seconds_count{" in operator.metrics())
        shown = set(re.findall(r"^(\w+?)(?:\{| )", operator.metrics(), re.MULTILINE))
        api.kubectl("delete", f"-n{namespace}", "hyphaworker/worker", "--timeout=30s")
    assert asked - shown == set()


@dataclass(frozen=True)
class HelmTest:
    """The pod of `helm test`, as a process: its account has no rights."""

    api: ApiServer
    account: Path

    @classmethod
    def of(cls, api: ApiServer, namespace: str, directory: Path) -> "HelmTest":
        (directory / "ca.crt").write_bytes(api.ca.read_bytes())
        (directory / "token").write_text(api.token(namespace, "nobody"))
        return cls(api, directory)

    def run(self, operator: str) -> tuple[int, str]:
        """The exit code and the output, with the operator at an address."""
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


def test_the_helm_test_needs_no_rights_and_tells_what_is_wrong(
    definitions: ApiServer, namespace: str, tmp_path: Path
) -> None:
    helm_test = HelmTest.of(definitions, namespace, tmp_path)
    with running(definitions, {"watchNamespace": namespace}, tmp_path) as operator:
        assert helm_test.run(operator.address) == (
            0,
            "HyphaWorkers and HyphaJobs are served, and the operator is healthy\n",
        )
    assert "look at its log" in helm_test.run(operator.address)[1]
    (tmp_path / "token").write_text("nobody's")
    assert "401 Unauthorized" in helm_test.run(operator.address)[1]


def test_the_helm_test_says_which_definitions_are_missing(private_api_server: PrivateApiServer, tmp_path: Path) -> None:
    code, output = HelmTest.of(private_api_server.api, "default", tmp_path).run("127.0.0.1:9")
    assert code == 1
    assert "lacks hyphajobs, hyphajobs/status, hyphaworkers, hyphaworkers/status" in output
