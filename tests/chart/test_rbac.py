"""The chart's roles grant the operator exactly the permissions it needs, on a real API server."""

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
import yaml

from chart.operator_process import Release
from chart.rendering import CHART, HELMS, Manifest, helm, one, render
from e2e.cluster.tools import ROOT
from hypha_contracts.kinds import kind_of
from hypha_operator.jobs.children import job_children
from hypha_operator.settings import Settings
from hypha_resources.job import HyphaJobSpec
from hypha_resources.worker import HyphaWorkerSpec
from support.api_server import ApiServer

DRA_WORKER = ROOT / "examples" / "dra.yaml"
JOB = ROOT / "charts/argocd/resource_customizations/hypha.space/HyphaJob/testdata/new.yaml"
READ = ("get", "list", "watch")
KEEP = (*READ, "create", "patch")
OWN = (*KEEP, "delete")
NEEDED = {
    "hypha.space/hyphaworkers": (*READ, "patch"),
    "hypha.space/hyphaworkers/status": ("patch",),
    "hypha.space/hyphaworkers/finalizers": ("update",),
    "hypha.space/hyphajobs": OWN,
    "hypha.space/hyphajobs/status": ("patch",),
    "hypha.space/hyphajobs/finalizers": ("update",),
    "/secrets": ("create",),
    "/configmaps": KEEP,
    "/serviceaccounts": KEEP,
    "/services": OWN,
    "/pods": (*READ, "create"),
    "/resourcequotas": ("list",),
    "/events": ("list", "create", "patch"),
    "apps/deployments": KEEP,
    "batch/jobs": (*READ, "create", "delete"),
    "policy/poddisruptionbudgets": ("get", "list", "create", "patch", "delete"),
    "networking.k8s.io/networkpolicies": KEEP,
    "rbac.authorization.k8s.io/roles": KEEP,
    "rbac.authorization.k8s.io/rolebindings": KEEP,
    "cert-manager.io/certificates": ("get", "create", "patch", "delete"),
    "resource.k8s.io/resourceclaimtemplates": ("create",),
    "coordination.k8s.io/leases": ("create",),
}
CERTIFICATES = {"cert-manager.io/certificates": NEEDED["cert-manager.io/certificates"]}
LEASES = "coordination.k8s.io/leases"
LEASE_VERBS = ("get", "list", "patch", "delete")
"""What the operator may do with its own Leases, by name."""
NEEDED_IN_ALL_NAMESPACES = {"/nodes": ("list",)}
"""What an operator of a single namespace does not have."""
ALL = (*OWN, "update", "deletecollection", "escalate", "bind", "impersonate", "use")
NEVER = {
    "/secrets": (*READ, "update", "patch", "delete", "deletecollection"),
    "/pods": ("update", "patch", "delete", "deletecollection"),
    "/pods/exec": ALL,
    "/pods/attach": ALL,
    "/pods/log": ALL,
    "/pods/portforward": ALL,
    "/pods/ephemeralcontainers": ALL,
    "/serviceaccounts": ("impersonate", "update"),
    "/serviceaccounts/token": ALL,
    "/nodes": ("get", "watch", "create", "patch", "delete", "update", "deletecollection"),
    "/nodes/proxy": ALL,
    "/namespaces": ALL,
    "/persistentvolumes": ALL,
    "/users": ALL,
    "/groups": ALL,
    "hypha.space/hyphaworkers": ("create", "update", "delete", "deletecollection"),
    "authentication.k8s.io/tokenreviews": ALL,
    "apiextensions.k8s.io/customresourcedefinitions": ALL,
    "rbac.authorization.k8s.io/roles": ("escalate", "bind", "update"),
    "rbac.authorization.k8s.io/rolebindings": ("update", "deletecollection"),
    "rbac.authorization.k8s.io/clusterroles": ALL,
    "rbac.authorization.k8s.io/clusterrolebindings": ALL,
    "coordination.k8s.io/leases": (*LEASE_VERBS, "update", "deletecollection"),
    "admissionregistration.k8s.io/mutatingwebhookconfigurations": ALL,
    "admissionregistration.k8s.io/validatingwebhookconfigurations": ALL,
}


@dataclass(frozen=True)
class Operator:
    """The service account of an installed release, and the settings of its pod."""

    client: httpx.Client
    settings: Settings

    def may(self, resource: str, verb: str, namespace: str | None, name: str = "") -> bool:
        group, _, rest = resource.partition("/")
        plural, _, subresource = rest.partition("/")
        about = {"group": group, "resource": plural, "subresource": subresource, "verb": verb, "name": name}
        review = {"spec": {"resourceAttributes": about | ({"namespace": namespace} if namespace else {})}}
        answer = self.client.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", json=review)
        return bool(answer.raise_for_status().json()["status"]["allowed"])

    def allowed(self, rights: dict[str, tuple[str, ...]], namespace: str | None) -> set[str]:
        return {f"{verb} {what}" for what, verbs in rights.items() for verb in verbs if self.may(what, verb, namespace)}

    def apply(self, path: str, manifest: Manifest) -> httpx.Response:
        headers = {"Content-Type": "application/apply-patch+yaml"}
        query = {"fieldManager": "hypha-operator", "force": "true"}
        name = manifest["metadata"]["name"]
        return self.client.patch(f"{path}/{name}", params=query, headers=headers, content=yaml.safe_dump(manifest))


def listed(rights: dict[str, tuple[str, ...]]) -> set[str]:
    return {f"{verb} {what}" for what, verbs in rights.items() for verb in verbs}


def granted(role: Manifest) -> set[str]:
    """Return what a role grants without naming objects."""
    rules = [rule for rule in role["rules"] if "resourceNames" not in rule]
    for rule in rules:
        assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
    return {
        f"{v} {g}/{r}" for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]
    }


def installed(api: ApiServer, values: Manifest) -> Iterator[Operator]:
    home = api.namespace()
    release = Release(api, values, home)
    account = one(release.manifests, "ServiceAccount")["metadata"]["name"]
    settings = Settings.from_environment(release.environment())
    with api.client(api.token(home, account)) as client:
        yield Operator(client, settings)


@pytest.fixture
def operator(definitions: ApiServer) -> Iterator[Operator]:
    """The operator of a release that serves all namespaces."""
    yield from installed(definitions, {})


@pytest.fixture
def confined(definitions: ApiServer, namespace: str) -> Iterator[Operator]:
    """The operator of a release that serves the test's namespace."""
    yield from installed(definitions, {"watchNamespace": namespace})


def test_the_operator_has_its_permissions_in_every_namespace(operator: Operator) -> None:
    needed = NEEDED | NEEDED_IN_ALL_NAMESPACES
    assert operator.allowed(needed, None) == listed(needed)


def test_the_operator_has_no_other_permissions(operator: Operator) -> None:
    assert operator.allowed(NEVER, None) == set()


def test_an_operator_of_one_namespace_has_permissions_only_there(
    confined: Operator, namespace: str, api_server: ApiServer
) -> None:
    assert confined.allowed(NEEDED, namespace) == listed(NEEDED) - listed(CERTIFICATES)
    assert confined.allowed(NEVER, namespace) == set()
    assert confined.allowed(NEEDED, api_server.namespace()) == set()
    assert confined.allowed(NEEDED | NEEDED_IN_ALL_NAMESPACES, None) == set()


@pytest.mark.parametrize("verb", LEASE_VERBS)
def test_the_operator_may_use_only_its_own_leases(
    verb: str, operator: Operator, confined: Operator, namespace: str
) -> None:
    assert operator.may(LEASES, verb, "default", "hypha-operator-cluster")
    assert operator.may(LEASES, verb, namespace, "hypha-operator")
    assert confined.may(LEASES, verb, namespace, "hypha-operator")
    assert not confined.may(LEASES, verb, "default", "hypha-operator-cluster")
    assert not operator.may(LEASES, verb, "kube-system", "kube-scheduler")


def test_a_release_of_one_namespace_has_the_right_to_certificates_only_where_cert_manager_is_installed() -> None:
    values = {"watchNamespace": "n"}
    for which in HELMS:
        text = helm(which, "template", "r", str(CHART), "--api-versions=cert-manager.io/v1", values=values)
        role = one([m for m in yaml.safe_load_all(text) if m], "Role")
        assert granted(role) - granted(one(render(which, values), "Role")) == listed(CERTIFICATES)


def test_a_release_of_one_namespace_has_no_object_outside_of_namespaces() -> None:
    manifests = render(values={"watchNamespace": "n", "crds": {"install": False}})
    assert [m["kind"] for m in manifests if "namespace" not in m["metadata"]] == []


def test_the_lists_above_name_every_rule_of_the_chart() -> None:
    """A new rule of the chart must be added to the lists of this module."""
    role = one(render(values={"crds": {"install": False}}), "ClusterRole")
    assert granted(role) == listed(NEEDED | NEEDED_IN_ALL_NAMESPACES)
    (named,) = [rule for rule in role["rules"] if "resourceNames" in rule]
    assert (named["resources"], named["verbs"]) == (["leases"], list(LEASE_VERBS))


@pytest.mark.parametrize("mode", ["operator", "confined"])
def test_the_operator_can_grant_a_controller_its_permissions_and_no_more(
    mode: str, namespace: str, request: pytest.FixtureRequest
) -> None:
    operator: Operator = request.getfixturevalue(mode)

    def grant(*rules: Manifest) -> int:
        role = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": f"w-{uuid4().hex[:8]}", "namespace": namespace},
            "rules": list(rules),
        }
        return operator.apply(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles", role).status_code

    def rule(group: str, resource: str, *verbs: str, names: tuple[str, ...] = ()) -> Manifest:
        return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs), "resourceNames": list(names)}

    controller = (
        rule("hypha.space", "hyphajobs", *READ, "create", "patch"),
        rule("hypha.space", "hyphajobs/status", "patch"),
        rule("hypha.space", "hyphaworkers", "get", names=("w",)),
        rule("hypha.space", "hyphaworkers/status", "patch", names=("w",)),
        rule("", "secrets", "create"),
    )
    assert grant(*controller) == 201
    assert grant(rule("", "secrets", "get")) == 403
    assert grant(rule("", "pods/exec", "create")) == 403
    assert grant(rule("*", "*", "*")) == 403


@pytest.mark.parametrize("mode", ["operator", "confined"])
def test_the_operator_creates_every_child_of_a_job(mode: str, namespace: str, request: pytest.FixtureRequest) -> None:
    operator: Operator = request.getfixturevalue(mode)
    worker = HyphaWorkerSpec.model_validate(yaml.safe_load(DRA_WORKER.read_text())["spec"])
    job = yaml.safe_load(JOB.read_text())
    job["metadata"] |= {"namespace": namespace, "uid": str(uuid4())}
    job["spec"]["resources"] |= {"gpu": 80}
    children = job_children(job, HyphaJobSpec.model_validate(job["spec"]), worker, operator.settings)
    assert [child["kind"] for child in children] == ["NetworkPolicy", "ResourceClaimTemplate", "Job"]
    answers = [operator.client.post(kind_of(child).path(namespace), json=child) for child in children]
    assert [answer.status_code for answer in answers] == [201] * 3, [answer.text for answer in answers]
