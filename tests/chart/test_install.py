"""The chart on a real API server."""

import subprocess

import pytest
import yaml

from chart.rendering import CHART, EVERYTHING, HELMS, NAMESPACE, RELEASE, WORKER_SPEC, Manifest, helm, of_kind, render
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


def test_the_pods_of_the_chart_run_where_restricted_is_enforced(api_server: ApiServer) -> None:
    namespace = api_server.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    manifests = render(namespace=namespace)
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
