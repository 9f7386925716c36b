"""A worker whose certificate the real cert-manager issues."""

import subprocess
from collections.abc import Iterator

import pytest
from cryptography import x509

from e2e import addons, examples, workers
from e2e.devnet import Devnet
from e2e.kube import Kube, Object, eventually
from e2e.settings import Settings
from e2e.tasks import Tasks
from e2e.workers import Namespaces, Worker, restarts

_ISSUER = "hypha-network"
_KUBELET_SYNC_S = 150


@pytest.fixture(scope="module")
def issued(kube: Kube, devnet: Devnet, namespaces: Namespaces) -> Iterator[Worker]:
    """A worker with a certificate of the network's authority, to which a ClusterIssuer has the key."""
    namespace = namespaces("hypha-e2e-issued")
    issuer = {
        "apiVersion": "cert-manager.io/v1",
        "kind": "ClusterIssuer",
        "metadata": {"name": _ISSUER},
        "spec": {"ca": {"secretName": _ISSUER}},
    }
    spec = workers.server_spec(devnet, "issued")
    spec["identity"] = {"issuerRef": {"name": _ISSUER, "kind": "ClusterIssuer"}, "trustSecretName": "network-trust"}
    worker = Worker(kube, devnet, namespace, "issued", spec)
    with addons.cert_manager(kube):
        kube.apply(
            _authority(devnet, _ISSUER, addons.CLUSTER_SECRETS),
            _trust(devnet, namespace),
            issuer,
            worker.object,
        )
        yield worker.ready()
        worker.delete()
    kube.delete("secrets", addons.CLUSTER_SECRETS, _ISSUER)


def _authority(devnet: Devnet, name: str, namespace: str) -> Object:
    """Return the Secret of an issuer: the network's authority and its key."""
    directory = devnet.files.certificates
    files = {"tls.crt": directory / "organisation-cert.pem", "tls.key": directory / "organisation-key.pem"}
    return _secret(name, namespace, {key: path.read_text() for key, path in files.items()})


def _trust(devnet: Devnet, namespace: str) -> Object:
    return _secret("network-trust", namespace, {"ca.crt": (devnet.files.certificates / "root-cert.pem").read_text()})


def _secret(name: str, namespace: str, content: dict[str, str]) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": content}


def served(worker: Worker) -> x509.Certificate:
    """Return the certificate of the worker's node, which this dials with the rules of the reference."""
    directory, pod = worker.devnet.files.certificates, worker.controller()
    assert pod is not None
    own = directory / "e2e-cert.pem", directory / "e2e-key.pem", directory / "e2e-trust.pem"
    return x509.load_der_x509_certificate(addons.dial_as_the_reference(pod["status"]["podIP"], 4001, *own))


def test_a_node_with_the_certificate_rules_of_the_reference_dials_a_worker_with_an_issued_certificate(
    issued: Worker, tasks: Tasks
) -> None:
    assert tasks.healthy(issued.get()["status"]["peerId"])
    names = served(issued).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name) for name in names.get_values_for_type(x509.IPAddress)] == ["0.0.0.0"]


def test_the_example_for_cert_manager_runs_a_job(
    kube: Kube, devnet: Devnet, issued: Worker, namespaces: Namespaces, tasks: Tasks
) -> None:
    namespace = namespaces(examples.NAMESPACE)
    kube.apply(_authority(devnet, "network-ca", namespace), _trust(devnet, namespace))
    with examples.started(kube, devnet, "cert-manager") as example:
        assert examples.run(example, tasks).ended() == "Finished"


def test_the_probe_of_the_reference_reports_a_worker_with_an_issued_certificate_as_healthy(
    issued: Worker, settings: Settings
) -> None:
    if settings.hypha_bin is None:
        pytest.skip("HYPHA_BIN is not set; it names the directory of the reference's hypha-worker")
    directory, pod = issued.devnet.files.certificates, issued.controller()
    assert pod is not None
    address = f"/ip4/{pod['status']['podIP']}/tcp/4001"
    keys = {"--cert-pem": "e2e-cert.pem", "--key-pem": "e2e-key.pem", "--trust-pem": "e2e-trust.pem"}
    options = [part for option, name in keys.items() for part in (option, str(directory / name))]
    command = [str(settings.hypha_bin / "hypha-worker"), "probe", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_a_renewed_certificate_keeps_the_peer_id_and_reaches_the_node_without_a_restart(
    kube: Kube, issued: Worker, tasks: Tasks
) -> None:
    peer_id, before, pod = issued.get()["status"]["peerId"], served(issued), issued.controller()
    assert pod is not None
    issuing = {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "renewed by a person"}
    name = f"{issued.name}-identity"
    path = f"/apis/cert-manager.io/v1/namespaces/{issued.namespace}/certificates/{name}/status"
    certificate = kube.request("GET", path)
    certificate["status"]["conditions"].append(issuing)
    kube.request("PUT", path, certificate)

    def renewed() -> bool:
        return served(issued).serial_number != before.serial_number

    eventually("the node serves the renewed certificate", renewed, _KUBELET_SYNC_S, 2)
    assert served(issued).public_key() == before.public_key()
    assert issued.get()["status"]["peerId"] == peer_id
    after = issued.controller()
    assert after is not None
    assert (after["metadata"]["uid"], restarts(after)) == (pod["metadata"]["uid"], restarts(pod))
    assert tasks.healthy(peer_id)
