"""`kubectl hypha report`: what helps is in the bundle, and no secret, wherever it hides."""

import json
import stat
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from hypha_contracts.kinds import DEPLOYMENT
from hypha_kubectl.bundle.allowed import Keep, kept
from hypha_kubectl.bundle.scrub import REDACTED, scrub
from support.api_server import PrivateApiServer
from support.kubectl import Scene, ago, condition, furnish, kubectl_hypha
from support.kubelet import Kubelet, kubelet
from support.people import User
from support.resources import PEER, install_definitions

HUB = "hf_" + "AbCdEfGh" * 4
JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQifQ.c2lnbmF0dXJl-X_9"
AWS = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
HEX = "9f86d081884c7d659a2feaa0c55ad015"
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHcGFzc3dvcmQtaXMtaHVudGVyMi1vay1i\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"a {HUB} b", HUB),
        (f"Authorization: Bearer {JWT}", JWT),
        (f"token {JWT}", JWT),
        ("authorization: basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("GET https://ann:hunter2@hub.example.org/a/b?sig=abc#x", "hunter2"),
        ("GET https://hub.example.org/a/b?sig=abc123&x=1", "abc123"),
        ("https://hooks.example.org/services/T01/B02/xyz", "xyz"),
        ("connect ann:hunter2@db.example.org", "hunter2"),
        ("password=hunter2", "hunter2"),
        ('{"password": "correct horse"}', "correct horse"),
        ("{'apiKey': 'correct horse'}", "correct horse"),
        (r"{\"client_secret\":\"correct horse\"}", "correct horse"),
        ("DB_PASSWORD: hunter2", "hunter2"),
        ("PASSWORD => hunter2", "hunter2"),
        ("key passphrase: correct horse hunter2", "hunter2"),
        ("HF_TOKEN=hunter2,X=1", "hunter2"),
        ("encryption-key = hunter2", "hunter2"),
        (f"AKIAIOSFODNN7EXAMPLE {AWS}", AWS),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        (f"hash {HEX}", HEX),
        (PEM, "hunter2"),
        (PEM, "MC4CAQAwBQYDK2VwBCIEIHcGFzc3dvcmQtaXMtaHVudGVyMi1vay1i"),
        (PEM.replace("\n", "\\n"), "MC4CAQAwBQYDK2Vw"),
        (PEM.partition("\n")[2], "MC4CAQAwBQYDK2Vw"),
        (PEM.rpartition("\n")[0], "MC4CAQAwBQYDK2Vw"),
        ("ghp_0123456789abcdefghij", "0123456789"),
        ("sk-abcdefghijkl", "abcdefghijkl"),
    ],
)
def test_a_secret_is_replaced(text: str, secret: str) -> None:
    assert secret not in scrub(text)
    assert REDACTED in scrub(text) or "/..." in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        f"connected to /dns4/gateway.example.org/tcp/4001/p2p/{PEER}/p2p-circuit",
        "hypha-6f3c0c1e-0000-4000-8000-000000000001-x7k2p: OutOfMemory",
        f"image registry.example.org/hypha/worker:0.1.0@sha256:{HEX}{HEX}",
        "Secret broken-identity must exist in hypha with tls.crt and tls.key",
        "tls.key: permission denied",
        "round 12, loss 0.03125 at 2026-01-01T00:00:00.123456Z",
        'User "system:serviceaccount:hypha-system:hypha-worker" cannot list resource "nodes" in API group ""',
        "hypha_worker.runtimes.kubernetes.runtime: task 6f3c0c1e-0000-4000-8000-000000000001: its executor runs",
    ],
)
def test_what_helps_stays(text: str) -> None:
    assert scrub(text) == text


def test_a_text_cannot_control_a_terminal_and_is_bounded() -> None:
    assert scrub("a\x1b[2J\tb\nc") == "a\\x1b[2J   b\nc"
    assert len(scrub("x y " * 100_000)) < 5000


@pytest.mark.parametrize(
    "character", ["a", "A1", "token", "token=", ".", "-----BEGIN X-----", "eyJ", "a:b@", "'", "\\"]
)
def test_a_long_line_of_a_job_costs_little_time(character: str) -> None:
    text = (character * 70_000)[:60_000] + "\n"
    started = time.perf_counter()
    scrub(text * 4)
    assert time.perf_counter() - started < 5


def test_only_listed_fields_are_kept_whatever_they_hold() -> None:
    shape = {
        "value": Keep.VALUE,
        "numbers": Keep.NUMBERS,
        "names": Keep.NAMES,
        "count": Keep.COUNT,
        "list": [{"a": Keep.VALUE}],
    }
    manifest = {
        "metadata": {"name": "n", "annotations": {"a": "s"}, "labels": {"own": "s", "hypha.space/worker": "w"}},
        "value": {"hidden": "s"},
        "numbers": {"cpu": "500m", "gpu": 1, "x": "s", "y": {"z": "s"}},
        "names": [{"name": "N", "value": "s"}, "s"],
        "count": ["s", "s"],
        "list": [{"a": ["b", {"c": "s"}], "d": "s"}, "s"],
        "other": "s",
    }
    assert kept(manifest, shape) == {
        "metadata": {"name": "n", "labels": {"hypha.space/worker": "w"}},
        "value": None,
        "numbers": {"cpu": "500m", "gpu": 1},
        "names": ["N"],
        "count": 2,
        "list": [{"a": ["b"]}, {}],
    }


class Planted:
    """Secrets, each with the place where it hides."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def __call__(self, place: str, form: str = "{}") -> str:
        """Return a new secret for a place, in some form."""
        secret = f"hunter2-{len(self.places):03}"
        self.places[secret] = place
        return form.replace("{}", secret)

    def found_in(self, text: str) -> list[str]:
        return [place for secret, place in self.places.items() if secret in text]


def plant(scene: Scene, node: Kubelet, planted: Planted) -> None:
    """Put a secret into every place that a bundle could take it from."""
    api, namespace = scene.server, scene.namespace
    furnish(scene)
    api.post(
        f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "s"}, "stringData": {"k": planted("Secret")}}
    )
    api.post(
        f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "c"}, "data": {"k": planted("ConfigMap")}}
    )
    pod_template = {"spec": {"containers": [{"name": "x", "env": [{"name": "A", "value": planted("template")}]}]}}
    executor = {
        "class": "train",
        "name": "diloco-transformer",
        "args": ["--password", planted("args")],
        "env": {"PASSWORD": planted("env of the specification")},
        "annotations": {"note": planted("annotations of the executor")},
        "template": pod_template,
    }
    worker = scene.serving(
        "full",
        executors=[executor],
        commonLabels={"team": planted("commonLabels")},
        commonAnnotations={"team": planted("commonAnnotations")},
        telemetry={"endpoint": planted("telemetry.endpoint", "https://u:{}@collector:4318/x?token={}")},
        controller={"template": pod_template, "image": planted("image", "https://u:{}@registry/x")},
        jobs={"hubEndpoint": planted("hubEndpoint", "https://hub/{}")},
    )
    last_applied = {"kubectl.kubernetes.io/last-applied-configuration": planted("last-applied", '{"password":"{}"}')}
    scene.user.merge(worker, {"metadata": {"annotations": last_applied, "labels": {"own": planted("label")}}})
    message = planted("status message", "the hub refused https://hub/?token={} and Bearer {}")
    scene.say(worker, condition("Ready", False, "NoGateway", message))
    refusal = {"reason": "X", "message": planted("refusal", "password: {}")}
    reported = {"problem": planted("problem", "token={}"), "requests": {"lastRefusal": refusal}}
    scene.user.status(worker, "hypha-worker", node=reported)
    job = scene.job(worker, "Failed", UUID(int=7), lastLines=[planted("last lines")])
    scene.user.merge(job, {"spec": {"cancel": {"reason": planted("cancel", "api_key={}")}}})
    hidden = {"hypha.space/worker": "full", "app.kubernetes.io/component": "controller"}
    container = {
        "name": "worker",
        "image": "none",
        "args": [planted("args of a pod")],
        "command": ["x", planted("command of a pod")],
        "env": [{"name": "TOKEN", "value": planted("env of a pod")}],
    }
    node.pod(namespace, "full-controller-1", "worker", labels=hidden, containers=[container])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "full-controller-1"}}
    scene.user.merge(pod, {"metadata": {"annotations": {"a": planted("annotation of a pod")}}})
    ended = {
        "exitCode": 1,
        "message": planted("termination message", "HF_TOKEN={}"),
        "finishedAt": ago(5),
        "startedAt": ago(9),
    }
    status = {"name": "worker", "image": "x", "imageID": "", "ready": True, "restartCount": 1, "state": {"running": {}}}
    scene.user.status(pod, "kubelet", containerStatuses=[status | {"lastState": {"terminated": ended}}])
    node.logs[namespace, "full-controller-1", "worker"] += [
        f"2026-01-01T00:00:{second:02}.000000000Z {text}"
        for second, text in enumerate(
            (
                "the node starts",
                planted("log: address", "GET https://u:{}@hub/x?token={}"),
                planted("log: header", "Authorization: Bearer {}"),
                planted("log: assignment", "HF_TOKEN={}"),
                planted("log: JSON", '{"client_secret": "{} and more"}'),
                f"{HUB} {JWT} {AWS}",
                "-----BEGIN PRIVATE KEY-----",
                planted("log: key", "{}"),
                "-----END PRIVATE KEY-----",
                "the node ends",
            )
        )
    ]
    event = {
        "metadata": {"name": "e", "namespace": namespace},
        "involvedObject": {"kind": "HyphaWorker", "name": "full", "namespace": namespace},
        "reason": "Failed",
        "message": planted("event", "could not fetch https://u:{}@hub/x: password={}"),
        "type": "Warning",
    }
    api.post(f"/api/v1/namespaces/{namespace}/events", event)
    other = event | {
        "metadata": {"name": "f", "namespace": namespace},
        "message": planted("event about another object"),
    }
    api.post(
        f"/api/v1/namespaces/{namespace}/events",
        other | {"involvedObject": {"kind": "Pod", "name": "theirs", "namespace": namespace}},
    )
    annotated = {
        "metadata": {"annotations": {"a": planted("node annotation")}, "labels": {"own": planted("node label")}}
    }
    with api.client() as client:
        headers = {"Content-Type": "application/merge-patch+json"}
        assert client.patch(f"/api/v1/nodes/{node.node}", json=annotated, headers=headers).is_success


AUDIT = json.dumps(
    {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "rules": [{"level": "Metadata", "omitStages": ["RequestReceived"]}],
    }
)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateApiServer]:
    """An API server that records each request."""
    with PrivateApiServer(tmp_path_factory.mktemp("audited"), audit_policy=AUDIT) as server:
        install_definitions(server.api)
        yield server


def read(path: Path) -> dict[str, str]:
    """Return the files of a bundle by name, without its directory."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert all(member.isfile() and member.mode == 0o600 for member in members)
        return {m.name.partition("/")[2]: archive.extractfile(m).read().decode() for m in members}  # type: ignore[union-attr]


def asked_by(user_agent: str, server: PrivateApiServer) -> set[str]:
    """Return the resources for which a client asked."""
    events = map(json.loads, server.audit_log.read_text().splitlines())
    return {
        event["objectRef"]["resource"] for event in events if user_agent in event["userAgent"] and "objectRef" in event
    }


def test_no_secret_is_in_the_bundle_and_secrets_are_not_even_read(audited: PrivateApiServer, tmp_path: Path) -> None:
    scene, planted, path = Scene(audited.api, audited.api.namespace()), Planted(), tmp_path / "r.tar.gz"
    with kubelet(audited.api) as node:
        plant(scene, node, planted)
        done = scene.run("report", "--output", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    files = read(path)
    assert planted.found_in("\n".join(files.values())) == []
    for secret in (HUB, JWT, AWS):
        assert secret not in "\n".join(files.values())
    assert len(planted.places) > 25
    assert not asked_by("kubectl-hypha", audited) & {"secrets", "configmaps"}
    assert {"hyphaworkers", "pods", "events", "nodes"} <= asked_by("kubectl-hypha", audited)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    _assert_useful(files, scene.namespace)


def _assert_useful(files: dict[str, str], namespace: str) -> None:
    workers: list[dict[str, Any]] = json.loads(files["hyphaworkers.json"])
    full = next(worker for worker in workers if worker["metadata"]["name"] == "full")
    assert full["spec"]["executors"][0] == {
        "class": "train",
        "name": "diloco-transformer",
        "args": 2,
        "env": ["PASSWORD"],
        "template": ["spec"],
    }
    assert full["spec"]["network"]["gateways"] == ["/dns4/gateway.example.org/tcp/4001"]
    assert full["status"]["conditions"][0]["reason"] == "NoGateway"
    job = json.loads(files["hyphajobs.json"])[0]
    assert job["status"]["phase"] == "Failed"
    [pod] = json.loads(files["pods.json"])
    assert pod["spec"]["containers"][0]["env"] == ["TOKEN"]
    assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1
    assert [event["reason"] for event in json.loads(files["events.json"])] == ["Failed"]
    log = files[f"logs/{namespace}/full-controller-1/worker.log"]
    assert "the node starts" in log
    assert "the node ends" in log
    assert f"logs/{namespace}/full-controller-1/worker.previous.log" in files
    assert "workers.state" in files["check.txt"]
    assert json.loads(files["versions.json"])["server"]["gitVersion"].startswith("v1.")
    assert "It was made without reading Secrets or ConfigMaps." in files["README.txt"]


def test_what_a_user_may_not_read_is_omitted_and_named(audited: PrivateApiServer, tmp_path: Path) -> None:
    api = audited.api
    scene, path = Scene(api, api.namespace()), tmp_path / "r.tar.gz"
    furnish(scene)
    api.kubectl("create", "role", "see", f"-n{scene.namespace}", "--verb=list", "--resource=hyphaworkers.hypha.space")
    api.kubectl("create", "rolebinding", "see", f"-n{scene.namespace}", "--role=see", "--user=vera")
    done = scene.run("report", "-o", str(path), KUBECONFIG=str(api.user_kubeconfig("vera")))
    assert done.returncode == 0
    files = read(path)
    assert len(json.loads(files["hyphaworkers.json"])) == 3
    assert "nodes.json" not in files
    assert 'omitted: nodes.json: you lack a right: nodes is forbidden: User "vera" cannot list' in done.stdout
    assert "nodes.json: you lack a right" in files["omitted.txt"]


def test_an_existing_file_is_not_replaced(scene: Scene, tmp_path: Path) -> None:
    (path := tmp_path / "mine").write_text("x")
    done = scene.run("report", "-o", str(path))
    assert done.returncode == 1
    assert done.stderr == f"error: {path} exists. Choose another file with --output.\n"
    assert path.read_text() == "x"
    assert "No such file or directory" in scene.run("report", "-o", str(tmp_path / "no" / "x")).stderr


def test_the_logs_of_the_operator_are_in_the_bundle(audited: PrivateApiServer, tmp_path: Path) -> None:
    api, path = audited.api, tmp_path / "r.tar.gz"
    scene, home = Scene(api, api.namespace()), api.namespace()
    with kubelet(api) as node:
        container = {
            "name": "operator",
            "image": "x",
            "command": ["hypha-operator"],
            "args": ["run", "--all-namespaces"],
        }
        labels = {"app.kubernetes.io/component": "operator", "app.kubernetes.io/version": "9.9.9"}
        node.pod(home, "hypha-1", "operator", labels=labels, containers=[container])
        node.pod(home, "theirs", "operator", labels=labels)
        node.logs[home, "hypha-1", "operator"].append("2026-01-01T00:00:00.000000000Z serving all namespaces")
        template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
        deployment = {
            "apiVersion": DEPLOYMENT.api_version,
            "kind": DEPLOYMENT.name,
            "metadata": {"name": "hypha", "labels": labels},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }
        User(api, home).apply(deployment)
        assert kubectl_hypha(api.kubeconfig, "report", "-n", scene.namespace, "-o", str(path)).returncode == 0
    files = read(path)
    assert files[f"logs/{home}/hypha-1/operator.log"] == "serving all namespaces\n"
    assert not any("theirs" in name for name in files)
    assert json.loads(files["versions.json"])["operators"][0]["version"] == "9.9.9"
