"""The API server that tests use is a real one: it authenticates, authorises, signs tokens, and can be killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from e2e.cluster.tools import ROOT, tool
from support.api_server import ApiServer, PrivateApiServer
from support.waiting import until

AUDIENCE = "hypha-connector"


def kubectl_as(kubeconfig: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [tool("kubectl"), f"--kubeconfig={kubeconfig}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_it_keeps_objects_in_a_namespace_of_the_tests_own(api_server: ApiServer, namespace: str) -> None:
    api_server.kubectl("-n", namespace, "create", "configmap", "settings", "--from-literal=colour=blue")
    assert api_server.kubectl("-n", namespace, "get", "cm", "settings", "-o=jsonpath={.data.colour}") == "blue"


def test_the_administrators_kubeconfig_is_for_its_owner_alone(api_server: ApiServer) -> None:
    assert api_server.kubeconfig.stat().st_mode & 0o777 == 0o600


def test_a_user_may_do_what_rbac_grants_and_no_more(api_server: ApiServer, namespace: str) -> None:
    ann = api_server.user_kubeconfig("ann", ["readers"])
    refused = kubectl_as(ann, "-n", namespace, "get", "configmaps")
    assert refused.returncode != 0
    assert 'User "ann" cannot list resource "configmaps"' in refused.stderr
    api_server.kubectl("-n", namespace, "create", "role", "reader", "--verb=list", "--resource=configmaps")
    api_server.kubectl("-n", namespace, "create", "rolebinding", "readers", "--role=reader", "--group=readers")
    until(lambda: kubectl_as(ann, "-n", namespace, "get", "configmaps").returncode == 0)
    assert kubectl_as(ann, "-n", namespace, "create", "configmap", "hers").returncode != 0


def test_a_service_account_acts_under_its_own_name(api_server: ApiServer, namespace: str) -> None:
    kubeconfig = api_server.service_account_kubeconfig(namespace, "robot")
    assert f"system:serviceaccount:{namespace}:robot" in kubectl_as(kubeconfig, "auth", "whoami").stdout


def test_a_token_is_known_for_its_audience_only(api_server: ApiServer, namespace: str) -> None:
    token = api_server.token(namespace, "job", [AUDIENCE])

    def review(audience: str) -> dict[str, object]:
        with api_server.client() as client:
            body = {"spec": {"token": token, "audiences": [audience]}}
            answer = client.post("/apis/authentication.k8s.io/v1/tokenreviews", json=body)
        return dict(answer.json()["status"])

    known = review(AUDIENCE)
    assert known["authenticated"] is True
    assert known["audiences"] == [AUDIENCE]
    assert not review("another").get("authenticated")
    with api_server.client(token) as client:
        assert client.get("/api").status_code == 401


def test_a_test_may_kill_and_restart_an_api_server_of_its_own(private_api_server: PrivateApiServer) -> None:
    api, processes = private_api_server.api, private_api_server.processes
    namespace = api.namespace()
    processes.signal("kube-apiserver", signal.SIGKILL)
    until(lambda: processes.pid("kube-apiserver") is None)
    processes.start("kube-apiserver")
    assert namespace in api.kubectl("get", "namespaces", "-o=name")


def test_nothing_outlives_a_test_run_that_is_killed(tmp_path: Path) -> None:
    run = tmp_path / "test_run.py"
    run.write_text(
        "import time\ndef test_it(api_server):\n    print(api_server.directory, flush=True)\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "pytest", "-s", "-p", "support.api_server", "-p", "no:cacheprovider", str(run)]
    command += [f"--basetemp={tmp_path / 'base'}", f"--rootdir={tmp_path}", "-c/dev/null"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as pytest_run:
        directory = tmp_path / "base" / "api-server"
        until(lambda: (directory / "url").exists() or pytest_run.poll() is not None)
        pids = [(directory / "run" / f"{name}.pid").read_text().split()[0] for name in ("etcd", "kube-apiserver")]
        pytest_run.kill()
    until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))
