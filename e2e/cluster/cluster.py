"""A cluster of one real node: start it, repair it, break it on purpose, remove it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Final

import httpx

from e2e.cluster import node
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.image import BUSYBOX, write_busybox_image
from e2e.cluster.network import Network
from e2e.cluster.node import Node
from e2e.cluster.processes import Processes, StartError
from e2e.cluster.tools import ROOT, ToolError, tool

GPUS: Final = {"nvidia.com/gpu": "4"}
_ACTION_TIMEOUT_S: Final = 60


@dataclass(frozen=True)
class Cluster:
    """A cluster and its directory.

    Attributes:
        directory: Holds all its files.
        network: Its network namespace and addresses; two clusters need two.
    """

    directory: Path = ROOT / ".cluster"
    network: Network = field(default_factory=Network)

    @cached_property
    def plane(self) -> ControlPlane:
        """Its control plane."""
        return ControlPlane(
            self.directory,
            address=self.network.node,
            service_range=self.network.service_range,
            prefix=self.network.enter,
        )

    @cached_property
    def node(self) -> Node:
        """Its node."""
        return Node(self.directory, self.network, self.plane)

    @cached_property
    def processes(self) -> Processes:
        """Its programs as processes.

        Raises:
            ToolError: If this user may not run them.
        """
        _need_root()
        programs = [*self.plane.programs(), *self.node.programs()]
        return Processes(self.directory / "run", programs, die_with_parent=False)

    @property
    def exists(self) -> bool:
        """Whether anything of it exists."""
        return self.directory.exists() or self.network.exists

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, which works in the cluster's network namespace and outside."""
        return self.directory / "kubeconfig"

    def up(self) -> None:
        """Start the cluster, or repair its unhealthy programs.

        Raises:
            ToolError: If the machine lacks what it needs.
            StartError: If a program does not start.
        """
        _need_root()
        node.install_packages()
        if not self.network.exists and self.directory.exists():
            self._end_processes()  # they belong to a namespace that is gone
        if self.network.exists and not self.directory.exists():
            self._take_network()
        self.network.up()
        self.node.make_cgroups()
        self.directory.mkdir(mode=0o700, exist_ok=True)
        for name, program in self.processes.programs.items():
            if not program.healthy():
                self.stop(name)
            self.start(name)

    def start(self, name: str) -> None:
        """Start a program unless it runs, wait until it is healthy, and complete its setup.

        Raises:
            StartError: If it does not start.
        """
        started_at = time.time()
        was_running = self.processes.pid(name) is not None
        self.processes.start(name)
        match name:
            case "kube-apiserver":
                shutil.copy2(self.plane.kubeconfig, self.kubeconfig)
            case "kube-controller-manager":
                self._await_default_account()
            case "containerd":
                self._load_busybox()
            case "kubelet":
                self._await_node(since=0 if was_running else started_at)
            case "kube-proxy":
                self._apply_dns()

    def stop(self, name: str) -> None:
        """Stop a program."""
        self.processes.stop(name)

    def load(self, archive: Path) -> str:
        """Load the images of an OCI or Docker archive, so that pods can use them; returns what was loaded."""
        return self.node.ctr("images", "import", str(archive))

    def status(self) -> dict[str, str]:
        """Return each program's state; `well` is the healthy one. Empty if there is no cluster."""
        states: dict[str, str] = {}
        if not self.exists:
            return states
        for name, program in self.processes.programs.items():
            pid = self.processes.pid(name)
            health = "well" if pid and program.healthy() else "not healthy"
            states[name] = f"{health}, pid {pid}" if pid else "not running"
        return states

    def down(self) -> None:
        """Remove the cluster and all its traces; do nothing if it does not exist."""
        if not self.exists:
            return
        self.processes.stop("kubelet")  # it would start containers again
        if self.processes.pid("containerd"):
            with contextlib.suppress(ToolError):  # the rest is ended below
                self.node.ctr("tasks", "rm", "--force", *self.node.ctr("tasks", "list", "-q").split())
        self._end_processes()
        self.network.down()
        _unmount_below(self.directory)
        for link in Path("/var/log/containers").glob("*"):
            if link.is_symlink() and link.readlink().is_relative_to(self.directory):
                link.unlink()
        if self.directory.exists():
            shutil.rmtree(self.directory)
        for made_from_it in ("plane", "node", "processes"):
            self.__dict__.pop(made_from_it, None)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl as the administrator and return its output.

        Raises:
            ToolError: If it fails.
        """
        command = [tool("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _load_busybox(self) -> None:
        if BUSYBOX in self.node.ctr("images", "list", "-q").split():
            return
        archive = self.directory / "busybox.tar"
        write_busybox_image(archive, Path(shutil.which("busybox") or "/bin/busybox"))
        self.load(archive)

    def _await_default_account(self) -> None:
        """Wait for the service account that every pod needs."""
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        with self.plane.client() as client:
            self._await(lambda: client.get(path).is_success, "kube-controller-manager", "makes no service accounts")

    def _await_node(self, since: float) -> None:
        """Wait until the node is ready, and advertise its GPUs, because a kubelet that starts resets them."""
        path = f"/api/v1/nodes/{node.NAME}"
        with self.plane.client() as client:
            self._await(lambda: _is_ready(client.get(path), since), "kubelet", "does not call its node ready")
            headers = {"Content-Type": "application/merge-patch+json"}
            patch = json.dumps({"status": {"capacity": GPUS}})
            client.patch(f"{path}/status", content=patch, headers=headers).raise_for_status()

            def taken() -> bool:
                return bool(client.get(path).json()["status"]["allocatable"].items() >= GPUS.items())

            self._await(taken, "kubelet", "does not take the GPUs")

    def _await(self, condition: Callable[[], bool], name: str, complaint: str) -> None:
        deadline = time.monotonic() + _ACTION_TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise StartError(f"{name} {complaint}; see {self.processes.log(name)}")
            time.sleep(0.1)

    def _apply_dns(self) -> None:
        """Create the Service and the permissions of DNS, which runs as a process on the node and not as a pod."""
        meta = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
        ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
        slice_labels = {"kubernetes.io/service-name": "kube-dns"}
        watched = [("", "services"), ("", "namespaces"), ("discovery.k8s.io", "endpointslices")]
        rules = [{"apiGroups": [group], "resources": [kind], "verbs": ["list", "watch"]} for group, kind in watched]
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns"}
        objects = [
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": meta,
                "spec": {"clusterIP": self.network.dns, "ports": ports},
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": meta | {"labels": slice_labels},
                "addressType": "IPv4",
                "ports": ports,
                "endpoints": [{"addresses": [self.network.node]}],
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {"name": "system:coredns"},
                "rules": rules,
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": "system:coredns"},
                "roleRef": role,
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:coredns"}],
            },
        ]
        self.kubectl(
            "apply", "--server-side", "-f-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def _take_network(self) -> None:
        """Remove a namespace that a cluster of another directory left; ToolError if that one still runs."""
        if pids := self.network.pids():
            raise ToolError(
                f"network namespace {self.network.name} is in use by a cluster that was started from another directory"
                f" (process {pids[0]}, now in {Path(f'/proc/{pids[0]}/cwd').readlink()}): run `make cluster-down` there"
            )
        self.network.down()

    def _end_processes(self) -> None:
        """End all programs, the processes that containerd left, and every process of a pod."""
        self.processes.down()
        for pid in _shims(self.node.containerd_socket):
            _kill(pid)
        groups = [group for group in node.CGROUPS.glob(f"**/{self.node.cgroup}") if group.is_dir()]
        for group in groups:
            for inner in [*sorted((path for path in group.glob("**/") if path != group), reverse=True), group]:
                _empty_and_remove(inner)


def _need_root() -> None:
    if os.geteuid() != 0:
        raise ToolError("the cluster needs root (network namespace, mounts, control groups): run it with sudo")


def _is_ready(answer: httpx.Response, since: float) -> bool:
    """Return whether, by the API server's answer, a node exists and has reported since a time that it is ready."""
    if not answer.is_success:
        return False
    ready = next(c for c in answer.json()["status"]["conditions"] if c["type"] == "Ready")
    return ready["status"] == "True" and datetime.fromisoformat(ready["lastHeartbeatTime"]).timestamp() >= since - 1


def _shims(socket: Path) -> list[int]:
    """Return the processes that hold pods' containers for the containerd of a socket."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (directory / "cmdline").read_bytes().split(b"\0")
            if b"containerd-shim" in command[0] and str(socket).encode() in command:
                found.append(int(directory.name))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _empty_and_remove(group: Path) -> None:
    """Kill the processes of a control group until it is empty, and remove it."""
    deadline = time.monotonic() + 10
    while True:
        for pid in (group / "cgroup.procs").read_text().split():
            _kill(int(pid))
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _unmount_below(directory: Path) -> None:
    """Unmount every mount in a directory, the innermost first."""
    mounted = [line.split()[1].replace("\\040", " ") for line in Path("/proc/self/mounts").read_text().splitlines()]
    for path in sorted((path for path in mounted if Path(path).is_relative_to(directory)), reverse=True):
        subprocess.run(["umount", "--lazy", path], check=True)
