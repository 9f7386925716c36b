"""The chart on a real API server."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from chart.rendering import CHART, EVERYTHING, HELMS, NAMESPACE, RELEASE, WORKER_SPEC, Manifest, helm, of_kind, render
from e2e.cluster.tools import ROOT, tool
from support.api_server import ApiServer, PrivateApiServer
from support.waiting import until


@pytest.mark.parametrize("which", HELMS)
def test_a_worker_created_by_an_upgrade_outlives_the_release(which: str, private_api_server: PrivateApiServer) -> None:
    api = private_api_server.api

    def run(*arguments: str, values: Manifest | None = None) -> str:
        return helm(which, *arguments, f"--namespace={NAMESPACE}", kubeconfig=api.kubeconfig, values=values)

    with_worker = {"worker": {"create": True, "name": "w", "spec": WORKER_SPEC}}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run("install", RELEASE, str(CHART), "--create-namespace", values=with_worker)
    assert "does not serve HyphaWorkers yet" in refused.value.stderr

    notes = run("install", RELEASE, str(CHART), "--create-namespace", values={})
    assert "kubectl -n hypha create secret generic worker-identity" in notes
    assert "Before you uninstall this release, delete the HyphaWorkers" in notes
    until(lambda: "hyphaworkers" in api.kubectl("api-resources", "--api-group=hypha.space", "-o=name"))

    run("upgrade", RELEASE, str(CHART), values=with_worker)
    assert _get(api, "hyphaworker/w")["spec"] == WORKER_SPEC
    before = _get(api, "hyphaworker/w")["metadata"]
    run("upgrade", RELEASE, str(CHART), values=with_worker)
    assert _get(api, "hyphaworker/w")["metadata"]["generation"] == before["generation"]

    run("uninstall", RELEASE, "--no-hooks")  # no kubelet runs the hook's pod here
    assert _get(api, "hyphaworker/w")["metadata"]["uid"] == before["uid"]
    kinds = "deployments,services,serviceaccounts,clusterroles,clusterrolebindings,configmaps"
    assert not api.kubectl("get", kinds, "-A", "-lapp.kubernetes.io/instance=hypha-worker", "-o=name")
    assert "clusterrole.rbac.authorization.k8s.io/hypha-edit" in api.kubectl("get", "clusterroles", "-o=name")


def test_a_release_of_helm_3_is_upgraded_by_helm_4(private_api_server: PrivateApiServer) -> None:
    api = private_api_server.api
    place = (RELEASE, str(CHART), f"--namespace={NAMESPACE}", "--create-namespace")
    helm("helm3", "install", *place, kubeconfig=api.kubeconfig, values={})
    values = {"operator": {"logging": {"level": "debug"}}}
    helm("helm", "upgrade", "--install", *place, kubeconfig=api.kubeconfig, values=values)
    (container,) = _get(api, "deployment/hypha-worker")["spec"]["template"]["spec"]["containers"]
    assert {"name": "HYPHA_LOG_LEVEL", "value": "debug"} in container["env"]


def test_the_api_server_accepts_every_object_by_server_side_apply(definitions: ApiServer, namespace: str) -> None:
    manifests = render(values=EVERYTHING, namespace=namespace)
    for manifest in manifests:
        manifest["metadata"].setdefault("annotations", {}).pop("helm.sh/hook", None)
    definitions.kubectl("apply", "--server-side", "--dry-run=server", "-f-", stdin=yaml.safe_dump_all(manifests))


@pytest.mark.parametrize("namespace", ["hypha", "team-a"])
def test_the_command_of_the_notes_creates_a_worker_in_the_namespace_that_is_watched(
    definitions: ApiServer, namespace: str
) -> None:
    place = (RELEASE, str(CHART), "--namespace", namespace, "--dry-run=client")
    notes = helm("helm", "install", *place, values={"watchNamespace": namespace}).partition("NOTES:")[2]
    assert "create namespace" not in notes, "it exists, and an admin of a namespace cannot create one"
    (command,) = (line for line in notes.splitlines() if "examples/" in line)
    path = f"{Path(tool('kubectl')).parent}:{os.environ['PATH']}"
    environment = os.environ | {"KUBECONFIG": str(definitions.kubeconfig), "PATH": path}
    definitions.kubectl("create", "namespace", namespace)
    dry_run = f"{command} --dry-run=server -o name"
    ran = ["bash", "-euo", "pipefail", "-c", dry_run]
    created = subprocess.check_output(ran, cwd=ROOT, env=environment, text=True, timeout=60)
    assert created == "hyphaworker.hypha.space/worker\n"


@pytest.mark.parametrize("quota", [{}, {"limits.cpu": "4", "limits.memory": "4Gi", "requests.cpu": "4"}])
def test_the_pods_of_the_chart_run_where_restricted_and_a_quota_are_enforced(
    api_server: ApiServer, quota: dict[str, str]
) -> None:
    namespace = api_server.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    if quota:
        limited = {"metadata": {"name": "q"}, "spec": {"hard": quota}}
        api_server.post(f"/api/v1/namespaces/{namespace}/resourcequotas", limited)
        status = json.dumps({"status": {"hard": quota, "used": dict.fromkeys(quota, "0")}})
        api_server.kubectl("patch", f"-n{namespace}", "quota/q", "--subresource=status", "--type=merge", "-p", status)
    resources = {"limits": {"cpu": "1"}} if quota else {}
    manifests = render(values={"operator": {"resources": resources}}, namespace=namespace)
    (deployment,) = of_kind(manifests, "Deployment")
    operator = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator", "namespace": namespace}}
    operator["spec"] = deployment["spec"]["template"]["spec"]
    account = of_kind(manifests, "ServiceAccount")
    default = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}
    api_server.kubectl("apply", "-f-", stdin=yaml.safe_dump_all([*account, default]))
    (hook,) = of_kind(manifests, "Job")
    uninstall = {**operator, "metadata": {"name": "uninstall", "namespace": namespace}}
    uninstall["spec"] = hook["spec"]["template"]["spec"]
    pods = [operator, uninstall, *of_kind(manifests, "Pod")]
    api_server.kubectl("create", "--dry-run=server", "-f-", stdin=yaml.safe_dump_all(pods))


def _get(api: ApiServer, name: str) -> Manifest:
    return dict(yaml.safe_load(api.kubectl("get", f"-n{NAMESPACE}", name, "-oyaml")))
