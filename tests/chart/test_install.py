"""The chart on a real API server."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from chart.rendering import CHART, EVERYTHING, HELMS, NAMESPACE, RELEASE, WORKER_SPEC, Manifest, helm, of_kind, render
from support.api_server import ApiServer, PrivateApiServer
from support.waiting import until


@pytest.mark.parametrize("which", HELMS)
def test_a_release_is_installed_gets_a_worker_by_an_upgrade_and_leaves_it_behind(
    which: str, private_api_server: PrivateApiServer
) -> None:
    api = private_api_server.api

    def run(*arguments: str, values: Manifest | None = None) -> str:
        return helm(which, *arguments, f"--namespace={NAMESPACE}", kubeconfig=api.kubeconfig, values=values)

    with_worker = {"worker": {"create": True, "name": "w", "spec": WORKER_SPEC}}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run("install", RELEASE, str(CHART), "--create-namespace", values=with_worker)
    assert "does not serve HyphaWorkers yet" in refused.value.stderr

    notes = run("install", RELEASE, str(CHART), "--create-namespace", values={})
    assert "kubectl -n hypha create secret generic worker-identity" in notes
    assert "Delete HyphaWorkers before this release" in notes
    until(lambda: "hyphaworkers" in api.kubectl("api-resources", "--api-group=hypha.space", "-o=name"))

    run("upgrade", RELEASE, str(CHART), values=with_worker)
    assert _get(api, "hyphaworker/w")["spec"] == WORKER_SPEC
    before = _get(api, "hyphaworker/w")["metadata"]
    run("upgrade", RELEASE, str(CHART), values=with_worker)
    assert _get(api, "hyphaworker/w")["metadata"]["generation"] == before["generation"]

    run("uninstall", RELEASE)
    assert _get(api, "hyphaworker/w")["metadata"]["uid"] == before["uid"]
    kinds = "deployments,services,serviceaccounts,clusterroles,clusterrolebindings,configmaps"
    assert not api.kubectl("get", kinds, "-A", "-lapp.kubernetes.io/instance=hypha-worker", "-o=name")


def test_the_api_server_accepts_every_object_by_server_side_apply(definitions: ApiServer, namespace: str) -> None:
    manifests = [m for m in render(values=EVERYTHING, namespace=namespace) if m["kind"] != "ServiceMonitor"]
    for manifest in manifests:
        manifest["metadata"].setdefault("annotations", {}).pop("helm.sh/hook", None)
    definitions.kubectl("apply", "--server-side", "--dry-run=server", "-f-", stdin=yaml.safe_dump_all(manifests))


def test_the_pods_of_the_chart_run_where_restricted_is_enforced(api_server: ApiServer) -> None:
    namespace = api_server.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    manifests = render(namespace=namespace)
    (deployment,) = of_kind(manifests, "Deployment")
    operator = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator", "namespace": namespace}}
    operator["spec"] = deployment["spec"]["template"]["spec"]
    account = of_kind(manifests, "ServiceAccount")
    default = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}
    api_server.kubectl("apply", "-f-", stdin=yaml.safe_dump_all([*account, default]))
    pods = [operator, *of_kind(manifests, "Pod")]
    api_server.kubectl("create", "--dry-run=server", "-f-", stdin=yaml.safe_dump_all(pods))


@pytest.fixture
def health() -> Iterator[tuple[str, dict[str, int]]]:
    """What answers in the operator's place: its address, and the status of its answers, which may be changed."""
    answers = {"status": 200}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers["status"] if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}", answers
        server.shutdown()


def test_the_helm_test_needs_no_rights_and_tells_what_is_wrong(
    definitions: ApiServer, namespace: str, tmp_path: Path, health: tuple[str, dict[str, int]]
) -> None:
    address, answers = health
    (tmp_path / "token").write_text(definitions.token(namespace, "default"))
    (tmp_path / "ca.crt").write_bytes(definitions.ca.read_bytes())
    (pod,) = of_kind(render(), "Pod")
    (container,) = pod["spec"]["containers"]

    def check(url: str = definitions.url) -> subprocess.CompletedProcess[str]:
        server = urlsplit(url)
        environment = os.environ | {
            "ACCOUNT_DIR": str(tmp_path),
            "OPERATOR": address,
            "KUBERNETES_SERVICE_HOST": str(server.hostname),
            "KUBERNETES_SERVICE_PORT": str(server.port),
        }
        command = [sys.executable, *container["command"][1:], *container["args"]]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert check().stdout == "HyphaWorkers and HyphaJobs are served, and the operator is healthy\n"
    answers["status"] = 500
    assert "look at its log" in check().stderr
    (tmp_path / "token").write_text("nobody's")
    assert "401 Unauthorized" in check().stderr
    assert check(url="https://127.0.0.1:9").returncode == 1


def _get(api: ApiServer, name: str) -> Manifest:
    return dict(yaml.safe_load(api.kubectl("get", f"-n{NAMESPACE}", name, "-oyaml")))
