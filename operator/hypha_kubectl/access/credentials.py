"""Authenticate to the API server with what the kubeconfig names: a token, a certificate, or a program that gives one.

https://kubernetes.io/docs/reference/access-authn-authz/authentication/#client-go-credential-plugins
"""

import json
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any, Final

import httpx

from hypha_kubectl.access.kubeconfig import Context
from hypha_kubectl.errors import UsageError

_API: Final = "client.authentication.k8s.io"
_VERSIONS: Final = (f"{_API}/v1", f"{_API}/v1beta1")
_PROGRAM_S: Final = 300.0
"""How long the program may take: a person may have to log in."""
_EARLY: Final = timedelta(seconds=10)
"""How long before its end a credential is renewed."""


@dataclass(frozen=True)
class Credential:
    """What a program gave."""

    token: str | None = None
    certificate: str | None = None
    key: str | None = None
    expires: datetime | None = None

    def is_current(self, now: datetime) -> bool:
        """Whether it can still be used."""
        return self.expires is None or now + _EARLY < self.expires


class Login(httpx.Auth):
    """Adds the credentials of a context to requests. Threads may share it.

    A program is started when its credential is needed first, has ended, or is refused.
    """

    def __init__(self, context: Context, environ: Mapping[str, str]) -> None:
        self._context, self._environ = context, environ
        self._lock = Lock()
        self._given: Credential | None = None
        if "auth-provider" in context.user:
            name = (context.user["auth-provider"] or {}).get("name")
            raise UsageError(
                f"kubeconfig, context {context.name}: the auth-provider {name} is not supported. Use a program (exec) "
                "that logs in, such as the plugin oidc-login of kubectl."
            )

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the credentials, and renew them once if the API server refuses them."""
        plain = request.headers.multi_items()
        request.headers = httpx.Headers([*plain, *self._headers()])
        response = yield request
        if response.status_code == httpx.codes.UNAUTHORIZED and "exec" in self._context.user:
            with self._lock:
                self._given = None
            request.headers = httpx.Headers([*plain, *self._headers()])
            yield request

    def _headers(self) -> list[tuple[str, str]]:
        user = self._context.user
        headers = [("Impersonate-User", str(user["as"]))] if user.get("as") else []
        headers += [("Impersonate-Group", str(group)) for group in user.get("as-groups") or []]
        if token := self._token():
            headers.append(("Authorization", f"Bearer {token}"))
        return headers

    def _token(self) -> str | None:
        user = self._context.user
        if path := user.get("tokenFile"):
            try:
                return Path(path).read_text(encoding="ascii").strip()
            except (OSError, UnicodeError) as error:
                raise UsageError(f"kubeconfig, tokenFile {path}: {error}. Log in to the cluster again.") from error
        if user.get("token"):
            return str(user["token"])
        return self.given().token if "exec" in user else None

    def given(self) -> Credential:
        """Return what the program of the context gives, or gave and can still be used. UsageError."""
        with self._lock:
            if self._given is None or not self._given.is_current(datetime.now(UTC)):
                self._given = program_of(self._context, self._environ, terminal=sys.stdin.isatty()).run()
            return self._given

    def certificate(self) -> tuple[str | None, str | None]:
        """Return the client's certificate and key as PEM, if it has them."""
        if "exec" in self._context.user:
            given = self.given()
            return given.certificate, given.key
        user = self._context.user
        return self._context.pem(user, "client-certificate"), self._context.pem(user, "client-key")


def tls_context(context: Context, login: Login) -> ssl.SSLContext:
    """Return how to verify the API server and what to present to it. UsageError."""
    authority = context.pem(context.cluster, "certificate-authority")
    where = f"kubeconfig, context {context.name}"
    try:
        tls = ssl.create_default_context(cadata=authority)
        if context.cluster.get("insecure-skip-tls-verify"):
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        certificate, key = login.certificate()
        if certificate and key:
            _load(tls, certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(f"{where}: a certificate or key cannot be used: {error}. Log in again.") from error
    return tls


def _load(tls: ssl.SSLContext, certificate: str, key: str) -> None:
    """Load a certificate and its key, which the library takes from files only. They exist for this moment."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # 0700
        (cert_file := directory / "cert.pem").write_text(certificate)
        (key_file := directory / "key.pem").write_text(key)
        tls.load_cert_chain(cert_file, key_file, password=lambda: b"")


@dataclass(frozen=True)
class Program:
    """The program of a context that gives credentials.

    Attributes:
        where: how errors name it.
    """

    where: str
    command: tuple[str, ...]
    environ: Mapping[str, str]
    interactive: bool
    hint: str

    def run(self) -> Credential:
        """Run it. Its standard error is the person's. UsageError."""
        try:
            done = subprocess.run(
                self.command,
                env=self.environ,
                stdin=None if self.interactive else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=_PROGRAM_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise UsageError(f"{self.where} was not found. {self.hint}") from error
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise UsageError(f"{self.where} failed: {error}. Log in to the cluster again.") from error
        if done.returncode:
            raise UsageError(f"{self.where} ended with exit code {done.returncode}. Log in to the cluster again.")
        return parse_credential(done.stdout, self.where)


def program_of(context: Context, environ: Mapping[str, str], *, terminal: bool) -> Program:
    """Return the program of a context. UsageError if it cannot be run."""
    exec_ = context.user["exec"]
    try:
        command = (str(exec_["command"]), *map(str, exec_.get("args") or []))
        variables = {str(item["name"]): str(item["value"]) for item in exec_.get("env") or []}
        version, mode = str(exec_["apiVersion"]), exec_.get("interactiveMode")
        hint = str(exec_.get("installHint") or "Install it, or log in to the cluster in another way.")
        cluster = _cluster_info(context) if exec_.get("provideClusterInfo") else None
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"kubeconfig, context {context.name}: exec is malformed. Log in to the cluster again."
        ) from error
    where = f"kubeconfig, context {context.name}: the program {command[0]} that logs in"
    if version not in _VERSIONS:
        raise UsageError(f"{where} has apiVersion {version}. Set it to {_VERSIONS[0]}.")
    if mode == "Always" and not terminal:
        raise UsageError(f"{where} needs a terminal. Run this command in one.")
    interactive = terminal and mode != "Never"
    spec = {"interactive": interactive} | ({"cluster": cluster} if cluster else {})
    info = json.dumps({"apiVersion": version, "kind": "ExecCredential", "spec": spec})
    return Program(where, command, {**environ, **variables, "KUBERNETES_EXEC_INFO": info}, interactive, hint)


def _cluster_info(context: Context) -> dict[str, Any]:
    kept = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
    info = {key: context.cluster[key] for key in kept if key in context.cluster}
    for extension in context.cluster.get("extensions") or []:
        if extension["name"] == f"{_API}/exec":
            info["config"] = extension["extension"]
    return info


def parse_credential(output: bytes, where: str) -> Credential:
    """Return the credential that a program wrote as an ExecCredential. UsageError."""
    try:
        status = json.loads(output)["status"]
        expires = status.get("expirationTimestamp")
        credential = Credential(
            status.get("token"),
            status.get("clientCertificateData"),
            status.get("clientKeyData"),
            datetime.fromisoformat(expires) if expires else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{where} wrote no ExecCredential. Log in to the cluster again.") from error
    if not (credential.token or (credential.certificate and credential.key)):
        raise UsageError(f"{where} gave neither a token nor a certificate with its key. Log in to the cluster again.")
    return credential


def proxy_of(context: Context, environ: Mapping[str, str]) -> str | None:
    """Return the proxy through which the API server is reached, or None."""
    if url := context.cluster.get("proxy-url"):
        return str(url)

    def variable(name: str) -> str:
        return environ.get(name) or environ.get(name.lower()) or ""

    server = httpx.URL(context.server)
    url = variable(f"{server.scheme.upper()}_PROXY")
    if not url:
        return None
    from hypha_contracts.proxies import Proxies  # noqa: PLC0415 - it takes a while to load

    direct = [entry.strip() for entry in variable("NO_PROXY").split(",") if entry.strip()]
    return Proxies.model_construct(http=url, https=url, no_proxy=direct).of(server.scheme, server.host)
