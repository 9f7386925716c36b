"""Policies and webhooks of the cluster change or refuse what the operator makes, on the real API server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hypha_contracts.kinds import CONFIG_MAP, DEPLOYMENT, POD_DISRUPTION_BUDGET
from support.api_server import ApiServer
from support.job_world import open_job_world
from support.operating import operating
from support.people import User
from support.resources import install_definitions, worker_manifest
from support.waiting import until
from support.webhooks import ADMISSION, denied, patched, webhook

pytestmark = pytest.mark.anyio

SPOT = {"key": "spot", "operator": "Exists", "effect": "NoSchedule"}
MESH = {"name": "mesh-proxy", "image": "mesh:1"}


def ready(worker: dict[str, Any] | None) -> tuple[str, str]:
    assert worker is not None
    condition = next(c for c in worker["status"]["conditions"] if c["type"] == "Ready")
    return condition["reason"], condition["message"]


def meshed(request: dict[str, Any]) -> dict[str, Any]:
    """Add a toleration and a sidecar, and pull images through a mirror."""
    spec = request["object"]["spec"]["template"]["spec"]
    image = spec["containers"][0]["image"]
    mirrored = image if image.startswith("mirror/") else f"mirror/{image}"
    at = "/spec/template/spec"
    return patched(
        *([] if SPOT in spec["tolerations"] else [{"op": "add", "path": f"{at}/tolerations/-", "value": SPOT}]),
        *([] if len(spec["containers"]) > 1 else [{"op": "add", "path": f"{at}/containers/-", "value": MESH}]),
        {"op": "replace", "path": f"{at}/containers/0/image", "value": mirrored},
    )


async def test_what_a_webhook_adds_or_changes_is_not_applied_again(
    served: ApiServer, namespace: str, user: User, tmp_path: Path
) -> None:
    with webhook(served, namespace, "mutating", "apps/deployments", meshed, tmp_path / "pki") as asked:
        worker = user.apply(worker_manifest(namespace))
        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
            made = operator.store.get(DEPLOYMENT, namespace, "gpu-controller")
            assert made is not None
            spec = made["spec"]["template"]["spec"]
            assert SPOT in spec["tolerations"]
            assert [container["image"] for container in spec["containers"]] == ["mirror/worker:1", "mesh:1"]
            asked.clear()
            assert await operator.reconcile_all() == 0
            assert asked == []
            user.merge(made, {"spec": {"template": {"spec": {"serviceAccountName": "another"}}}})
            await operator.reconcile_all()
            restored = operator.store.get(DEPLOYMENT, namespace, "gpu-controller")
            assert restored is not None
            assert restored["spec"]["template"]["spec"]["serviceAccountName"] == "gpu-controller"
            assert await operator.reconcile_all() == 0
        assert user.get(worker) is not None


async def test_jobs_may_be_disrupted_although_a_change_of_the_controller_is_refused(
    served: ApiServer, namespace: str, user: User, tmp_path: Path
) -> None:
    """So that an administrator can drain nodes whatever keeps the controller from changing."""
    user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        assert operator.store.get(POD_DISRUPTION_BUDGET, namespace, "gpu-job") is not None
        with webhook(
            served, namespace, "validating", "apps/deployments", lambda _: denied("no", 403), tmp_path / "pki"
        ):
            changes = {"jobs": {"disruption": "Allow"}, "controller": {"image": "worker:2"}}
            worker = user.apply(worker_manifest(namespace, **changes))
            await operator.settle()
        assert ready(user.get(worker))[0] == "AdmissionRefused"
        assert operator.store.get(POD_DISRUPTION_BUDGET, namespace, "gpu-job") is None


@pytest.mark.parametrize("code", [400, 403, 422])
async def test_a_webhook_that_refuses_a_child_of_a_worker_is_named(
    served: ApiServer, namespace: str, user: User, tmp_path: Path, code: int
) -> None:
    def no_images(_: dict[str, Any]) -> dict[str, Any]:
        return denied("images must come from registry.example.org", code)

    with webhook(served, namespace, "validating", "apps/deployments", no_images, tmp_path / "pki"):
        worker = user.apply(worker_manifest(namespace))
        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
        reason, message = ready(user.get(worker))
        assert reason == "AdmissionRefused"
        assert 'admission webhook "validating.example.org"' in message
        assert "images must come from registry.example.org" in message
        assert "`spec.commonLabels`" in message
        assert "chart" not in message


@pytest.mark.parametrize("code", [400, 403, 422])
async def test_a_webhook_that_refuses_a_job_is_named_and_the_template_is_not_blamed(
    control_plane: ApiServer, tmp_path: Path, code: int
) -> None:
    install_definitions(control_plane)
    async with open_job_world(control_plane) as world:
        with webhook(
            control_plane, world.namespace, "validating", "batch/jobs", lambda _: denied("no", code), tmp_path / "pki"
        ):
            world.make_job()
            await world.step()
        assert (world.status["phase"], world.status["reason"]) == ("Pending", "AdmissionRefused")
        message = next(c["message"] for c in world.status["conditions"] if c["type"] == "Ready")
        assert 'admission webhook "validating.example.org" denied the request: no' in message


@contextmanager
def required_label(server: ApiServer, namespace: str, label: str) -> Iterator[None]:
    """Refuse objects without a label, as a ValidatingAdmissionPolicy of the cluster does."""
    resources = ["configmaps", "services", "serviceaccounts", "deployments", "networkpolicies", "poddisruptionbudgets"]
    resources += ["roles", "rolebindings", "jobs", "pods"]
    rule = {"apiGroups": ["*"], "apiVersions": ["*"], "resources": resources, "operations": ["CREATE", "UPDATE"]}
    expression = f"has(object.metadata.labels) && '{label}' in object.metadata.labels"
    if_made = (
        "!has(object.spec.template) || !has(object.spec.template.metadata) ? true : "
        f"has(object.spec.template.metadata.labels) && '{label}' in object.spec.template.metadata.labels"
    )
    template = {"apiGroups": ["apps", "batch"], "apiVersions": ["v1"], "resources": ["deployments", "jobs"]}
    policies = {
        f"{namespace}-objects": (rule, expression),
        f"{namespace}-templates": (template | {"operations": ["CREATE", "UPDATE"]}, if_made),
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    path, bindings = f"{ADMISSION}/validatingadmissionpolicies", f"{ADMISSION}/validatingadmissionpolicybindings"
    with server.client() as client:
        for name, (rules, required) in policies.items():
            spec = {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [rules], "namespaceSelector": selector},
                "validations": [{"expression": required, "message": f"every object needs the label {label}"}],
            }
            client.post(path, json={"metadata": {"name": name}, "spec": spec}).raise_for_status()
            binding = {"metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]}}
            client.post(bindings, json=binding).raise_for_status()
        probe = {"metadata": {"name": "probe"}}
        config_maps = CONFIG_MAP.path(namespace)
        until(lambda: "denied request" in client.post(f"{config_maps}?dryRun=All", json=probe).text)
        yield
        for name in policies:
            client.delete(f"{path}/{name}").raise_for_status()
            client.delete(f"{bindings}/{name}").raise_for_status()


async def test_a_policy_that_requires_labels_is_named_and_satisfied_by_common_labels(
    served: ApiServer, namespace: str, user: User
) -> None:
    with required_label(served, namespace, "example.org/team"):
        worker = user.apply(worker_manifest(namespace))
        async with operating(served.kubeconfig, namespace) as operator:
            await operator.settle()
            reason, message = ready(user.get(worker))
            assert reason == "AdmissionRefused"
            assert "every object needs the label example.org/team" in message
            common = {"commonLabels": {"example.org/team": "ml"}, "commonAnnotations": {"example.org/cost": "7 a day"}}
            user.apply(worker_manifest(namespace, **common))
            await operator.settle()
            assert ready(user.get(worker))[0] != "AdmissionRefused"
            made = await operator.objects()
    for name, manifest in made.items():
        if name != "HyphaWorker gpu":
            assert manifest["metadata"]["labels"]["example.org/team"] == "ml", name
            assert manifest["metadata"]["annotations"]["example.org/cost"] == "7 a day", name
    pod = made["Deployment gpu-controller"]["spec"]["template"]["metadata"]
    assert pod["labels"]["example.org/team"] == "ml"
    assert pod["annotations"]["example.org/cost"] == "7 a day"


async def test_a_job_has_the_common_labels_where_a_policy_requires_them(control_plane: ApiServer) -> None:
    install_definitions(control_plane)
    async with open_job_world(control_plane, commonLabels={"example.org/team": "ml"}) as world:
        with required_label(control_plane, world.namespace, "example.org/team"):
            world.make_job()
            await world.until(lambda: world.pods)
        assert world.pods[0]["metadata"]["labels"]["example.org/team"] == "ml"


async def test_a_quota_that_refuses_a_child_of_a_worker_is_named(control_plane: ApiServer) -> None:
    install_definitions(control_plane)
    namespace = control_plane.namespace()
    user = User(control_plane, namespace)
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/deployments.apps": "0"}}}
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    control_plane.post(quotas, quota)
    with control_plane.client() as client:
        until(lambda: (client.get(f"{quotas}/none").json().get("status") or {}).get("hard"))
    worker = user.apply(worker_manifest(namespace))
    async with operating(control_plane.kubeconfig, namespace) as operator:
        await operator.settle()
    reason, message = ready(user.get(worker))
    assert reason == "QuotaExceeded"
    assert "exceeded quota: none" in message
    assert "chart" not in message
