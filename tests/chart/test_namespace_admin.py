"""An account that has only `admin` in one namespace installs the chart there and uses it."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from chart.operator_process import Release
from chart.rendering import CHART, HELMS, RELEASE, Manifest, helm
from e2e.cluster.tools import ROOT, tool
from support.api_server import ApiServer
from support.resources import job_manifest, worker_manifest
from support.waiting import until

Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def prepared(control_plane: ApiServer) -> ApiServer:
    """A control plane on which a cluster administrator has applied the directory crds/.

    It may have just started, so wait until a controller has put the rules of other roles into the role `admin`.
    """
    control_plane.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    control_plane.wait_for_definitions()
    until(lambda: "hyphajobs/status" in control_plane.kubectl("get", "clusterrole", "admin", "-oyaml"))
    return control_plane


@pytest.fixture
def namespace(prepared: ApiServer) -> str:
    return prepared.namespace()


@pytest.fixture
def account(prepared: ApiServer, namespace: str) -> Path:
    """The kubeconfig of a user with the role `admin` in the namespace, and no other right."""
    user = f"owner-of-{namespace}"
    prepared.kubectl("create", "rolebinding", "owner", "--clusterrole=admin", f"--user={user}", f"-n{namespace}")
    return prepared.user_kubeconfig(user)


@pytest.fixture
def kubectl(account: Path, namespace: str) -> Kubectl:
    def run(*arguments: str, stdin: str = "") -> str:
        command = [tool("kubectl"), f"--kubeconfig={account}", f"-n{namespace}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def values(namespace: str) -> Manifest:
    return {"watchNamespace": namespace, "crds": {"install": False}}


def install(which: str, account: Path, namespace: str, values: Manifest) -> None:
    helm(which, "install", RELEASE, str(CHART), f"--namespace={namespace}", kubeconfig=account, values=values)


@pytest.fixture(params=HELMS)
def installed(
    request: pytest.FixtureRequest, prepared: ApiServer, account: Path, namespace: str, values: Manifest
) -> Iterator[None]:
    until(lambda: "hyphajobs" in prepared.kubectl("get", "clusterrole", "admin", "-oyaml"))
    install(request.param, account, namespace, values)
    yield
    helm(request.param, "uninstall", RELEASE, f"--namespace={namespace}", "--no-hooks", kubeconfig=account)


def test_an_admin_of_a_namespace_installs_the_chart_and_runs_a_job(
    prepared: ApiServer, installed: None, kubectl: Kubectl, namespace: str, values: Manifest, tmp_path: Path
) -> None:
    release = Release(prepared, values, namespace, apply=False)
    operator = release.start(tmp_path / "operator.log")
    try:
        until(lambda: operator.probe("/readyz") == (200, "leads"), timeout_s=60)
        kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump(worker_manifest(namespace)))
        kubectl("wait", "hyphaworker/gpu", "--for=condition=Ready=False", "--timeout=30s")
        worker = yaml.safe_load(kubectl("get", "hyphaworker/gpu", "-oyaml"))
        job = job_manifest(namespace, worker)
        kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump(job))
        until(lambda: kubectl("get", "pods", "-oname", f"-lhypha.space/job={job['metadata']['name']}"))
        kubectl("delete", "hyphajob", job["metadata"]["name"])
        kubectl("delete", "hyphaworker/gpu", "--timeout=30s")
        assert "forbidden" not in operator.log.read_text().lower()
    finally:
        operator.end()


def test_a_release_of_the_cluster_is_refused_to_such_an_account(account: Path, namespace: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        install("helm", account, namespace, {"crds": {"install": False}})
    assert "clusterroles" in refused.value.stderr
