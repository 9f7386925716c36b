"""Kubeconfigs as kubectl reads them, and the credentials in them, on a real API server."""

import base64
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hypha_kubectl.access.credentials import Login, parse_credential, program_of, proxy_of, tls_context
from hypha_kubectl.access.kubeconfig import Context, load_context
from hypha_kubectl.errors import UsageError
from support.api_server import ApiServer
from support.certs import Pki
from support.kubectl import Scene, kubectl_hypha


def write(path: Path, *, current: str = "", **lists: list[dict[str, Any]]) -> Path:
    path.write_text(yaml.safe_dump({"current-context": current, **lists}))
    return path


def context(name: str, cluster: str = "c", user: str = "u", **rest: str) -> dict[str, Any]:
    return {"name": name, "context": {"cluster": cluster, "user": user, **rest}}


def cluster(name: str = "c", server: str = "https://one", **rest: Any) -> dict[str, Any]:
    return {"name": name, "cluster": {"server": server, **rest}}


def test_of_several_files_the_first_that_has_a_name_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "a", contexts=[context("x")], clusters=[cluster()])
    second = write(
        tmp_path / "b",
        current="x",
        contexts=[context("x", namespace="late"), context("y", "d")],
        clusters=[cluster(server="https://late"), cluster("d", "https://two")],
    )
    environ = {"KUBECONFIG": f"{first}:{second}:{tmp_path / 'missing'}"}
    assert (load_context(environ).server, load_context(environ).namespace) == ("https://one", "default")
    assert load_context(environ, name="y").server == "https://two"


def test_a_context_without_a_server_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "config", current="x", contexts=[context("x", "unknown")])
    with pytest.raises(UsageError, match="context x names no cluster with the address of a server"):
        load_context({}, file)


def test_paths_are_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    user = {"name": "u", "user": {"tokenFile": "token", "exec": {"command": "./login"}}}
    file = write(tmp_path / "config", current="x", contexts=[context("x")], clusters=[cluster()], users=[user])
    found = load_context({}, file)
    assert Path(found.user["tokenFile"]).read_text() == "secret\n"
    assert found.user["exec"]["command"] == str(tmp_path / "login")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("]", "is not YAML"),
        ("- 1", "is no kubeconfig"),
        ("contexts: [1]", "contexts is no list of items with a name and a context"),
        ("{}", "no context is selected"),
        ("current-context: x", "there is no context x. There are no contexts."),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path, text: str, message: str) -> None:
    (file := tmp_path / "config").write_text(text)
    with pytest.raises(UsageError, match=message) as raised:
        load_context({}, file)
    assert str(file) in str(raised.value)


def test_an_unknown_context_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    file = write(tmp_path / "config", current="x", contexts=[context("x"), context("y")], clusters=[cluster()])
    done = kubectl_hypha(file, "status", "--context", "z")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {file}: there is no context z. There are: x, y. Use --context NAME.\n"


def of(user: dict[str, Any], **of_cluster: Any) -> Context:
    return Context("x", "default", {"server": "https://one:6443", **of_cluster}, user)


PROGRAM = {
    "apiVersion": "client.authentication.k8s.io/v1",
    "command": "login",
    "installHint": "Run `brew install login`.",
}


@pytest.mark.parametrize(
    ("exec_", "message"),
    [
        ({}, "exec is malformed"),
        ({**PROGRAM, "env": [1]}, "exec is malformed"),
        ({**PROGRAM, "apiVersion": "v1alpha1"}, "has apiVersion v1alpha1. Set it to client.authentication.k8s.io/v1"),
        ({**PROGRAM, "interactiveMode": "Always"}, "needs a terminal"),
    ],
)
def test_a_program_that_cannot_be_run_is_refused(exec_: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        program_of(of({"exec": exec_}), {}, terminal=False)


def test_a_program_that_is_missing_is_answered_with_its_hint() -> None:
    with pytest.raises(UsageError, match=r"the program login that logs in was not found. Run `brew install login`."):
        program_of(of({"exec": PROGRAM}), {"PATH": "/nowhere"}, terminal=False).run()


@pytest.mark.parametrize("output", [b"", b"[]", b'{"status": 1}', b'{"status": {"expirationTimestamp": "soon"}}'])
def test_what_is_no_credential_is_refused(output: bytes) -> None:
    with pytest.raises(UsageError, match="wrote no ExecCredential"):
        parse_credential(output, "login")


def test_half_a_credential_is_refused() -> None:
    with pytest.raises(UsageError, match="neither a token nor a certificate with its key"):
        parse_credential(b'{"status": {"clientCertificateData": "x"}}', "login")


def test_an_old_auth_provider_is_refused_with_its_replacement() -> None:
    with pytest.raises(UsageError, match=r"the auth-provider oidc is not supported. Use a program"):
        Login(of({"auth-provider": {"name": "oidc"}}), {})


@pytest.mark.parametrize("in_a_file", [True, False])
def test_an_authority_may_have_a_comment_in_any_encoding(tmp_path: Path, in_a_file: bool) -> None:
    pem = "# Société Générale\n".encode("latin-1") + Pki().root.trust_pem
    (file := tmp_path / "ca.crt").write_bytes(pem)
    data = {"certificate-authority-data": base64.b64encode(pem).decode()}
    found = of({}, **({"certificate-authority": str(file)} if in_a_file else data))
    assert tls_context(found, Login(found, {})).cert_store_stats()["x509"] == 1


@pytest.mark.parametrize("data", ["?", "Générale", 1])
def test_an_authority_that_is_not_base64_is_named_with_the_remedy(data: str | int) -> None:
    found = of({}, **{"certificate-authority-data": data})
    with pytest.raises(UsageError, match="certificate-authority holds no certificate or key"):
        tls_context(found, Login(found, {}))


@pytest.mark.parametrize(
    ("environ", "of_cluster", "proxy"),
    [
        ({}, {}, None),
        ({"https_proxy": "http://proxy:3128"}, {}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8, one"}, {}, None),
        ({"NO_PROXY": "*"}, {"proxy-url": "http://own:3128"}, "http://own:3128"),
    ],
)
def test_the_proxy_is_that_of_the_cluster_or_of_the_environment(
    environ: dict[str, str], of_cluster: dict[str, str], proxy: str | None
) -> None:
    assert proxy_of(of({}, **of_cluster), environ) == proxy


class LoginProgram:
    """A program that gives credentials, and the kubeconfig that names it."""

    def __init__(self, directory: Path, server: ApiServer, *credentials: dict[str, Any], **exec_: Any) -> None:
        self._runs, self._info = directory / "runs", directory / "info"
        answers = [json.dumps({"status": credential}) for credential in credentials]
        (program := directory / "login").write_text(
            f"#!{sys.executable}\nimport os\nruns = open({str(self._runs)!r}, 'a+')\nruns.seek(0)\n"
            f"done = len(runs.read())\nruns.write('x')\nprint({answers!r}[min(done, {len(answers) - 1})])\n"
            f"open({str(self._info)!r}, 'w').write(os.environ['KUBERNETES_EXEC_INFO'] + os.environ.get('ROLE', ''))\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        user = {"exec": {"apiVersion": PROGRAM["apiVersion"], "command": "./login", **exec_}}
        authority = base64.b64encode(server.ca.read_bytes()).decode()
        self.kubeconfig = write(
            directory / "config",
            current="x",
            contexts=[context("x")],
            clusters=[cluster(server=server.url, **{"certificate-authority-data": authority})],
            users=[{"name": "u", "user": user}],
        )

    @property
    def runs(self) -> int:
        return len(self._runs.read_text())

    @property
    def info(self) -> str:
        return self._info.read_text()


@pytest.fixture
def viewer(scene: Scene) -> dict[str, str]:
    """The credential of an account that may read workers and jobs of the scene."""
    api, namespace = scene.server, scene.namespace
    token = api.token(namespace, "viewer")
    rights = ("--verb=get,list,watch", "--resource=hyphaworkers.hypha.space,hyphajobs.hypha.space")
    api.kubectl("create", "role", "viewer", f"-n{namespace}", *rights)
    api.kubectl(
        "create", "rolebinding", "viewer", f"-n{namespace}", "--role=viewer", f"--serviceaccount={namespace}:viewer"
    )
    return {"token": token}


def test_a_program_gives_a_token_and_learns_the_cluster(scene: Scene, viewer: dict[str, str], tmp_path: Path) -> None:
    login = LoginProgram(
        tmp_path, scene.server, viewer, provideClusterInfo=True, env=[{"name": "ROLE", "value": "reader"}]
    )
    done = kubectl_hypha(login.kubeconfig, "status", "-n", scene.namespace)
    assert (done.returncode, done.stderr) == (0, "")
    assert "There are no HyphaWorkers" in done.stdout
    assert login.runs == 1
    info = json.loads(login.info.removesuffix("reader"))
    assert info["spec"]["interactive"] is False
    assert info["spec"]["cluster"]["server"] == scene.server.url


def test_a_token_that_is_refused_is_renewed_once(scene: Scene, viewer: dict[str, str], tmp_path: Path) -> None:
    login = LoginProgram(tmp_path, scene.server, {"token": "old"}, viewer)
    assert kubectl_hypha(login.kubeconfig, "status", "-n", scene.namespace).returncode == 0
    assert login.runs in (2, 3)  # two calls at the same time may both be refused
    useless = LoginProgram(tmp_path, scene.server, {"token": "old"})
    done = kubectl_hypha(useless.kubeconfig, "status")
    assert done.returncode == 1
    assert "does not accept your credentials. Log in to the cluster again." in done.stderr


def test_a_program_gives_a_certificate(scene: Scene, tmp_path: Path) -> None:
    pki = scene.server.directory / "pki"
    certificate = {
        "clientCertificateData": (pki / "admin.crt").read_text(),
        "clientKeyData": (pki / "admin.key").read_text(),
        "expirationTimestamp": "2099-01-01T00:00:00Z",
    }
    login = LoginProgram(tmp_path, scene.server, certificate)
    assert kubectl_hypha(login.kubeconfig, "status", "-n", scene.namespace).returncode == 0
    assert login.runs == 1


def test_a_user_may_act_as_another(scene: Scene, viewer: dict[str, str], tmp_path: Path) -> None:
    config = yaml.safe_load(scene.server.kubeconfig.read_text())
    config["users"][0]["user"] |= {"as": f"system:serviceaccount:{scene.namespace}:viewer", "as-groups": ["people"]}
    (file := tmp_path / "config").write_text(yaml.safe_dump(config))
    assert kubectl_hypha(file, "status", "-n", scene.namespace).returncode == 0
    done = kubectl_hypha(file, "status", "-A")
    assert done.returncode == 1
    assert f'User "system:serviceaccount:{scene.namespace}:viewer" cannot list resource "hypha' in done.stderr
    assert "Ask an administrator for this right" in done.stderr
