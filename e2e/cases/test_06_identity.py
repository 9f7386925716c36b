"""Certificates that change while the node runs."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from e2e.devnet import Devnet
from e2e.kube import Kube, eventually
from e2e.tasks import Tasks
from e2e.workers import Worker, restarts
from hypha_devnet import certs

_KUBELET_SYNC_S = 150
"""The kubelet updates a Secret in a pod within about a minute and a half."""


def other_certificate(devnet: Devnet, worker: Worker, key: Ed25519PrivateKey | None = None) -> certs.Credential:
    """Return a certificate of the same network that expires sooner, for the worker's key or another."""
    directory = devnet.files.certificates
    authority = certs.load_credential(
        directory / "organisation-cert.pem", directory / "organisation-key.pem", [directory / "root-cert.pem"]
    )
    own = certs.load_credential(directory / f"{worker.node}-cert.pem", directory / f"{worker.node}-key.pem")
    until = (datetime.now(UTC) + timedelta(days=7)).replace(microsecond=0)
    return certs.create_node(authority, worker.node, key=key or own.key, not_after=until)


def put(kube: Kube, worker: Worker, credential: certs.Credential) -> None:
    """Replace the certificate and key in the worker's Secret, as a renewal does."""
    secret = worker.devnet.secret(worker.spec["identity"]["secretName"], worker.namespace, worker.node)
    secret["stringData"] |= {"tls.crt": credential.cert_pem.decode(), "tls.key": credential.key_pem.decode()}
    kube.apply(secret)


def running_since(worker: Worker) -> tuple[str, list[int]]:
    pod = worker.controller()
    assert pod is not None
    return pod["metadata"]["uid"], restarts(pod)


@pytest.mark.timeout(600)
def test_a_renewed_certificate_reaches_the_node_without_a_restart(kube: Kube, devnet: Devnet, worker: Worker) -> None:
    before = running_since(worker)
    renewed = other_certificate(devnet, worker)
    put(kube, worker, renewed)
    expected = renewed.certificate.not_valid_after_utc

    def expires() -> bool:
        reported = worker.status_of_node().get("certificateExpires")
        return reported is not None and abs(datetime.fromisoformat(reported) - expected) < timedelta(seconds=2)

    eventually("the node has the new certificate", expires, _KUBELET_SYNC_S)
    assert running_since(worker) == before
    assert worker.condition("IdentityValid")["status"] == "True"


@pytest.mark.timeout(600)
def test_another_key_is_refused_and_the_node_keeps_its_identity(
    kube: Kube, devnet: Devnet, worker: Worker, tasks: Tasks
) -> None:
    before, peer_id = running_since(worker), worker.peer_id
    put(kube, worker, other_certificate(devnet, worker, Ed25519PrivateKey.generate()))
    try:
        eventually(
            "IdentityValid is False",
            lambda: worker.condition("IdentityValid").get("status") == "False",
            _KUBELET_SYNC_S,
        )
        assert "allowPeerIdChange" in worker.condition("IdentityValid")["message"]
        assert running_since(worker) == before
        assert worker.get()["status"]["peerId"] == peer_id
        assert tasks.healthy(peer_id)
    finally:
        kube.apply(devnet.secret(worker.spec["identity"]["secretName"], worker.namespace, worker.node))
    eventually(
        "IdentityValid is True again",
        lambda: worker.condition("IdentityValid").get("status") == "True",
        _KUBELET_SYNC_S,
    )
    worker.ready()


@pytest.mark.timeout(600)
def test_a_revocation_list_that_changes_is_respected(kube: Kube, devnet: Devnet, worker: Worker) -> None:
    before = running_since(worker)
    devnet.certify("outcast")
    outcast = Tasks(devnet.identity("outcast"), devnet.gateway, devnet.host)
    outcast.start()
    try:
        assert outcast.healthy(worker.peer_id)
        directory = devnet.files.certificates
        original = (directory / "crls.pem").read_bytes()
        # Only the worker gets the new revocation list. The gateway still forwards the revoked node's messages.
        devnet.certify(revoke=("outcast",))
        secret = devnet.secret(worker.spec["identity"]["secretName"], worker.namespace, worker.node)
        (directory / "crls.pem").write_bytes(original)
        kube.apply(secret)
        eventually("the outcast is refused", lambda: not outcast.healthy(worker.peer_id), _KUBELET_SYNC_S, 2)
    finally:
        outcast.stop()
    assert running_since(worker) == before
    worker.ready()
