"""The control plane: etcd and the API server, and on request the controllers and the scheduler."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

import httpx

from e2e.cluster.pki import Authority
from e2e.cluster.processes import Program
from e2e.cluster.tools import tool

ADMIN: Final = "admin"
"""The administrator's user at the API server."""
_PROBE_TIMEOUT_S: Final = 2


@dataclass(frozen=True)
class Ports:
    """The ports that the parts listen on."""

    etcd: int = 2379
    api_server: int = 6443
    controller_manager: int = 10257
    scheduler: int = 10259


@contextmanager
def reserved_ports() -> Iterator[Ports]:
    """Reserve free ports of loopback. Only programs that share ports, as a control plane's do, may listen there."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in fields(Ports)]
        for reserved in sockets:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("127.0.0.1", 0))
        yield Ports(*(reserved.getsockname()[1] for reserved in sockets))


@dataclass(frozen=True)
class ControlPlane:
    """The programs of a control plane, which keeps everything in one directory.

    Attributes:
        directory: Holds certificates, data and kubeconfigs.
        address: The address that all parts listen on.
        ports: The ports that they listen on.
        controllers: Whether to run the controller manager and the scheduler. Without them, nothing acts on objects.
            For example, no garbage is collected and no Job gets pods.
        service_range: The address range of Services.
        prefix: A command that starts every program.
    """

    directory: Path
    address: str = "127.0.0.1"
    ports: Ports = Ports()
    controllers: bool = True
    service_range: str = "10.96.0.0/16"
    prefix: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """The API server's URL."""
        return f"https://{self.address}:{self.ports.api_server}"

    @cached_property
    def pki(self) -> Authority:
        """The authority that issues the certificates."""
        return Authority(self.directory / "pki")

    @cached_property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self._kubeconfig("admin", ADMIN, "system:masters")

    def programs(self) -> list[Program]:
        """Return the programs, each after those that it needs."""
        programs = [
            Program("etcd", self._etcd(), self.answers(self.ports.etcd, "/readyz")),
            Program("kube-apiserver", self._api_server(), self.answers(self.ports.api_server, "/readyz")),
        ]
        if self.controllers:
            manager, scheduler = self.ports.controller_manager, self.ports.scheduler
            programs += [
                Program("kube-controller-manager", self._controller_manager(), self.answers(manager, "/healthz")),
                Program("kube-scheduler", self._scheduler(), self.answers(scheduler, "/healthz")),
            ]
        return programs

    def answers(self, port: int, path: str) -> Callable[[], bool]:
        """Return a probe: whether the administrator gets a good answer from a port of the address."""

        def probe() -> bool:
            try:
                url = f"https://{self.address}:{port}{path}"
                return httpx.get(url, verify=self._tls, timeout=_PROBE_TIMEOUT_S, trust_env=False).is_success
            except httpx.TransportError:
                return False

        return probe

    def client(self) -> httpx.Client:
        """Return a client of the API with the administrator's rights."""
        return httpx.Client(base_url=self.url, verify=self._tls, timeout=30, trust_env=False)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.pki.ca))
        context.load_cert_chain(*self.pki.issue("admin", ADMIN, ("system:masters",)))
        return context

    @cached_property
    def serving_certificate(self) -> tuple[str, str]:
        """The files of the certificate and key that every part uses."""
        names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        hosts = (self.address, "127.0.0.1", str(ip_network(self.service_range)[1]), *names)
        certificate, key = self.pki.issue("server", "server", hosts=hosts)
        return str(certificate), str(key)

    def _kubeconfig(self, name: str, user: str, *groups: str) -> Path:
        return self.pki.kubeconfig(self.directory / f"{name}.kubeconfig", self.url, user, groups)

    def _etcd(self) -> tuple[str, ...]:
        certificate, key = self.serving_certificate
        url = f"https://{self.address}:{self.ports.etcd}"
        return (
            *self.prefix,
            tool("etcd"),
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            "--listen-peer-urls=http://localhost:0",
            "--client-cert-auth",
            f"--trusted-ca-file={self.pki.ca}",
            f"--cert-file={certificate}",
            f"--key-file={key}",
            "--socket-reuse-port",
            "--unsafe-no-fsync",  # a power failure may lose its data
            "--log-level=warn",
        )

    def _api_server(self) -> tuple[str, ...]:
        certificate, key = self.serving_certificate
        etcd_certificate, etcd_key = self.pki.issue("etcd-client", "kube-apiserver")
        kubelet_certificate, kubelet_key = self.pki.issue("kubelet-client", "kube-apiserver", ("system:masters",))
        signing_key = self.pki.signing_key("service-accounts")
        exceptions = []
        if not self.controllers:  # nothing would create the default account that the plugin requires
            exceptions.append("--disable-admission-plugins=ServiceAccount")
        if ip_address(self.address).is_loopback:  # the Service `kubernetes` cannot have such an endpoint
            exceptions.append("--endpoint-reconciler-type=none")
        return (
            *self.prefix,
            tool("kube-apiserver"),
            f"--etcd-servers=https://{self.address}:{self.ports.etcd}",
            f"--etcd-cafile={self.pki.ca}",
            f"--etcd-certfile={etcd_certificate}",
            f"--etcd-keyfile={etcd_key}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self.ports.api_server}",
            "--permit-port-sharing",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.pki.ca}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--service-cluster-ip-range={self.service_range}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={signing_key}",
            f"--service-account-signing-key-file={signing_key}",
            f"--kubelet-certificate-authority={self.pki.ca}",
            f"--kubelet-client-certificate={kubelet_certificate}",
            f"--kubelet-client-key={kubelet_key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged",
            "--profiling=false",
            # The pods of a lost node are evicted after half a minute, not five.
            "--default-not-ready-toleration-seconds=30",
            "--default-unreachable-toleration-seconds=30",
            *exceptions,
        )

    def _controller_manager(self) -> tuple[str, ...]:
        name = "kube-controller-manager"
        return (
            *self._controller(name, self.ports.controller_manager),
            f"--service-account-private-key-file={self.pki.signing_key('service-accounts')}",
            f"--root-ca-file={self.pki.ca}",
            "--use-service-account-credentials",
            "--node-monitor-grace-period=20s",
        )

    def _scheduler(self) -> tuple[str, ...]:
        return self._controller("kube-scheduler", self.ports.scheduler)

    def _controller(self, name: str, port: int) -> tuple[str, ...]:
        kubeconfig = self._kubeconfig(name, f"system:{name}")
        certificate, key = self.serving_certificate
        return (
            *self.prefix,
            tool(name),
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--authentication-skip-lookup",
            f"--bind-address={self.address}",
            f"--secure-port={port}",
            "--permit-port-sharing",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            "--leader-elect=false",
            "--profiling=false",
        )
