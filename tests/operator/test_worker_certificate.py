"""The Certificate of a HyphaWorker: the operator changes no other Certificate."""

from collections.abc import Iterator
from typing import Any

import pytest

from hypha_contracts.kinds import CERTIFICATE, Manifest
from support.api_server import ApiServer, PrivateApiServer
from support.operating import operating
from support.people import User
from support.resources import install_definitions, worker_manifest
from support.waiting import until

pytestmark = pytest.mark.anyio

GROUP, _, VERSION = CERTIFICATE.api_version.partition("/")
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": f"{CERTIFICATE.plural}.{GROUP}"},
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"kind": CERTIFICATE.name, "plural": CERTIFICATE.plural},
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
ISSUED = {"issuerRef": {"name": "ca"}, "trustSecretName": "network"}
PLACE: Manifest = {
    "apiVersion": CERTIFICATE.api_version,
    "kind": CERTIFICATE.name,
    "metadata": {"name": "gpu-identity"},
}
THEIRS = {**PLACE, "spec": {"secretName": "gpu-identity", "issuerRef": {"name": "mine"}}}


@pytest.fixture(scope="module")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server for this module, which serves Certificates."""
    with PrivateApiServer(tmp_path_factory.mktemp("cert-manager") / "api-server") as server:
        install_definitions(server.api)
        with server.api.client() as client:
            client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=DEFINITION).raise_for_status()
            until(lambda: client.get(CERTIFICATE.path(None)).is_success, 30)
        yield server.api


def stalled(user: User) -> tuple[str, str, str]:
    worker = user.get(worker_manifest(""))
    assert worker is not None
    condition: dict[str, Any] = next(c for c in worker["status"]["conditions"] if c["type"] == "Stalled")
    return condition["status"], condition["reason"], condition["message"]


async def test_a_certificate_is_created_restored_and_deleted_with_its_issuer_reference(
    served: ApiServer, namespace: str, user: User
):
    user.apply(worker_manifest(namespace, identity=ISSUED))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        made = user.get(PLACE)
        assert made is not None
        assert made["spec"]["issuerRef"]["name"] == "ca"
        user.merge(PLACE, {"spec": {"issuerRef": {"name": "other"}}})
        await operator.reconcile_all()
        restored = user.get(PLACE)
        assert restored is not None
        assert restored["spec"] == made["spec"]
        user.apply(worker_manifest(namespace))
        await operator.settle()
    assert user.get(PLACE) is None


async def test_a_certificate_of_the_user_is_never_changed(served: ApiServer, namespace: str, user: User):
    """The user's Certificate fills the Secret that `identity.secretName` names."""
    theirs = user.apply(THEIRS)
    user.apply(worker_manifest(namespace))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
        user.apply(worker_manifest(namespace, suspend=True))
        await operator.settle()
        user.delete(worker_manifest(namespace))
        await operator.settle()
    assert user.get(PLACE) == theirs


async def test_a_certificate_of_another_owner_is_not_taken_over(served: ApiServer, namespace: str, user: User):
    theirs = user.apply(THEIRS)
    user.apply(worker_manifest(namespace, identity=ISSUED))
    async with operating(served.kubeconfig, namespace) as operator:
        await operator.settle()
    assert user.get(PLACE) == theirs
    status, reason, message = stalled(user)
    assert (status, reason) == ("True", "NameTaken")
    assert "Certificate gpu-identity" in message
