"""The node: containerd, the kubelet, kube-proxy, kube-router and DNS, all in the cluster's network namespace."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.image import BUSYBOX
from e2e.cluster.network import Network
from e2e.cluster.pki import write_private
from e2e.cluster.processes import Program
from e2e.cluster.tools import ToolError, tool
from images.base import install
from images.tool import BuildError

NAME: Final = "node-1"
CGROUPS: Final = Path("/sys/fs/cgroup")
PACKAGES: Final = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ipset": "ipset",
    "nft": "nftables",
    "ip": "iproute2",
    "busybox": "busybox-static",
}
PLUGINS: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
_KUBELET_PORT: Final = 10248
_PROXY_PORT: Final = 10256
_ROUTER_PORT: Final = 20244
_DNS_PORT: Final = 8181


def install_packages() -> None:
    """Install the distribution's packages that the node needs and the machine lacks.

    Raises:
        ToolError: If the machine has no apt, or it fails.
    """
    missing = [package for program, package in PACKAGES.items() if not shutil.which(program)]
    if not any((directory / "ptp").exists() for directory in PLUGINS):
        missing.append("containernetworking-plugins")
    try:
        install(missing)
    except BuildError as error:
        raise ToolError(str(error)) from error


@dataclass(frozen=True)
class Node:
    """The programs of a node, which keeps everything in one directory.

    Attributes:
        directory: Holds data, sockets and configuration files.
        network: Its network namespace.
        plane: The control plane that it belongs to.
    """

    directory: Path
    network: Network
    plane: ControlPlane

    @property
    def containerd_socket(self) -> Path:
        """The socket that containerd listens on."""
        return self.directory / "containerd" / "containerd.sock"

    @property
    def cgroup(self) -> str:
        """The control group of all pods."""
        return f"{self.network.name}-cluster"

    def ctr(self, *arguments: str) -> str:
        """Run containerd's own client and return its output.

        Raises:
            ToolError: If it fails.
        """
        command = ["ctr", f"--address={self.containerd_socket}", "--namespace=k8s.io", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolError(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def programs(self) -> list[Program]:
        """Return the programs, each after those that it needs."""
        return [
            Program("containerd", self._containerd(), self._containerd_answers),
            Program("kubelet", self._kubelet(), lambda: self._answers(_KUBELET_PORT, "/healthz")),
            Program("kube-proxy", self._kube_proxy(), lambda: self._answers(_PROXY_PORT, "/livez")),
            Program("kube-router", self._kube_router(), lambda: self._answers(_ROUTER_PORT, "/healthz")),
            Program("coredns", self._coredns(), lambda: self._answers(_DNS_PORT, "/ready")),
        ]

    def forget_policies(self) -> None:
        """Remove the rules of network policies, which stay in the kernel when kube-router ends."""
        for chain in ("INPUT", "FORWARD", "OUTPUT"):
            subprocess.run([*self.network.enter, "iptables", "--flush", f"KUBE-ROUTER-{chain}"], check=True)

    def make_cgroups(self) -> None:
        """Create the control group of all pods, in each hierarchy of version 1 or with all controllers of version 2."""
        controllers = CGROUPS / "cgroup.controllers"
        if controllers.exists():
            wanted = " ".join(f"+{controller}" for controller in controllers.read_text().split())
            (CGROUPS / "cgroup.subtree_control").write_text(wanted)
            (CGROUPS / self.cgroup).mkdir(exist_ok=True)
            (CGROUPS / self.cgroup / "cgroup.subtree_control").write_text(wanted)
            (CGROUPS / self.cgroup / "cpu.weight").write_text("1000")
            return
        for hierarchy in CGROUPS.iterdir():
            if hierarchy.is_dir() and not hierarchy.is_symlink():
                (hierarchy / self.cgroup).mkdir(exist_ok=True)
        # Otherwise all pods together would get no more of the machine's cores than one process outside.
        (CGROUPS / "cpu" / self.cgroup / "cpu.shares").write_text("10240")
        # Nothing can run in a group of version 1 without cores.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (CGROUPS / "cpuset" / self.cgroup / name).exists():
                (CGROUPS / "cpuset" / self.cgroup / name).write_text((CGROUPS / "cpuset" / name).read_text())

    def _answers(self, port: int, path: str) -> bool:
        try:
            return httpx.get(f"http://{self.network.node}:{port}{path}", timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _containerd_answers(self) -> bool:
        try:
            self.ctr("version")
        except ToolError:
            return False
        return True

    @cached_property
    def _configuration(self) -> Path:
        directory = self.directory / "etc"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def _write(self, name: str, content: str) -> Path:
        return write_private(self._configuration / name, content.encode())

    def _containerd(self) -> tuple[str, ...]:
        plugins = next((directory for directory in PLUGINS if (directory / "ptp").exists()), PLUGINS[0])
        networks = self._configuration / "networks"
        networks.mkdir(exist_ok=True)
        # Point to point, not a bridge. Between two pods on one bridge, the answers of a Service would bypass the node's
        # address translation, unless the kernel has br_netfilter.
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": self.network.pod_range}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.directory / "addresses"),
        }
        chain = [{"type": "ptp", "ipam": addresses}, {"type": "portmap", "capabilities": {"portMappings": True}}]
        network = {"cniVersion": "0.4.0", "name": self.network.name, "plugins": chain}
        write_private(networks / "10-pods.conflist", json.dumps(network).encode())
        # restrict_oom_score_adj: without CAP_SYS_RESOURCE no sandbox could be started otherwise.
        path = self._write(
            "containerd.toml",
            f"""\
version = 2
root = "{self.directory / "containerd" / "root"}"
state = "{self.directory / "containerd" / "state"}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "{self.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{BUSYBOX}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
""",
        )
        return (*self.network.enter, "containerd", f"--config={path}")

    def _kubelet(self) -> tuple[str, ...]:
        node = self.network.node
        certificate, key = self.plane.pki.issue("kubelet", f"system:node:{NAME}", ("system:nodes",), hosts=(node, NAME))
        kubeconfig = self.plane.pki.kubeconfig(
            self.directory / "kubelet.kubeconfig", self.plane.url, f"system:node:{NAME}", ("system:nodes",)
        )
        configuration: dict[str, Any] = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": node,
            "healthzBindAddress": node,
            "healthzPort": _KUBELET_PORT,
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(self.plane.pki.ca)}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{self.containerd_socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "syncFrequency": "10s",  # the delay until a changed Secret is in the pods
            "oomScoreAdj": 0,
            "clusterDomain": "cluster.local",
            "clusterDNS": [self.network.dns],
            "resolvConf": "",
            "seccompDefault": True,
            "podLogsDir": str(self.directory / "logs"),
            "volumePluginDir": str(self.directory / "plugins"),
            "imageGCHighThresholdPercent": 100,  # images are loaded by hand, so nothing would pull them again
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%"},
            "volumeStatsAggPeriod": "5s",  # how long a volume may exceed its size unnoticed
        }
        return (
            *self.network.enter,
            tool("kubelet"),
            f"--config={self._write('kubelet.yaml', yaml.safe_dump(configuration))}",
            f"--kubeconfig={kubeconfig}",
            f"--root-dir={self.directory / 'kubelet'}",
            f"--hostname-override={NAME}",
            f"--node-ip={node}",
        )

    def _kube_proxy(self) -> tuple[str, ...]:
        kubeconfig = self.plane.pki.kubeconfig(
            self.directory / "kube-proxy.kubeconfig", self.plane.url, "system:kube-proxy"
        )
        configuration = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "hostnameOverride": NAME,
            "clusterCIDR": self.network.pod_range,
            "healthzBindAddress": f"{self.network.node}:{_PROXY_PORT}",
            "metricsBindAddress": "127.0.0.1:10249",
            "oomScoreAdj": 0,
            "conntrack": {"maxPerCore": 0},
        }
        path = self._write("kube-proxy.yaml", yaml.safe_dump(configuration))
        return (*self.network.enter, tool("kube-proxy"), f"--config={path}")

    def _kube_router(self) -> tuple[str, ...]:
        """Return the command of the engine of NetworkPolicies; kube-router can also route and proxy."""
        kubeconfig = self.plane.pki.kubeconfig(
            self.directory / "kube-router.kubeconfig", self.plane.url, "kube-router", ("system:masters",)
        )
        return (
            *self.network.enter,
            tool("kube-router"),
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={NAME}",
            f"--service-cluster-ip-range={self.network.service_range}",
            "--run-firewall",
            "--run-router=false",
            "--run-service-proxy=false",
            f"--health-port={_ROUTER_PORT}",
        )

    def _coredns(self) -> tuple[str, ...]:
        kubeconfig = self.plane.pki.kubeconfig(self.directory / "coredns.kubeconfig", self.plane.url, "system:coredns")
        corefile = f"""\
. {{
    bind {self.network.node}
    errors
    ready {self.network.node}:{_DNS_PORT}
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
    }}
    cache 5
}}
"""
        return (*self.network.enter, tool("coredns"), f"-conf={self._write('Corefile', corefile)}")
