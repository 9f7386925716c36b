"""The cluster's own network namespace, joined to the host by a pair of virtual interfaces."""

import subprocess
from pathlib import Path


class Network:
    """A namespace and its addresses, all in 10.NUMBER.0.0/16.

    The host reaches all of them, pods and Services included, by one route. Pods reach the host at `host`, and nothing
    beyond it.
    """

    def __init__(self, name: str = "hypha", number: int = 97) -> None:
        self.name = name
        self.range = f"10.{number}.0.0/16"
        self.host = f"10.{number}.0.1"
        self.node = f"10.{number}.0.2"
        self.pod_range = f"10.{number}.64.0/18"
        self.service_range = f"10.{number}.128.0/18"
        self.dns = f"10.{number}.128.10"

    @property
    def enter(self) -> tuple[str, ...]:
        """The prefix that runs a command in the namespace. `ip netns exec` would hide the control groups from it."""
        return ("nsenter", f"--net=/run/netns/{self.name}", "--")

    @property
    def exists(self) -> bool:
        """Whether the namespace exists."""
        return Path("/run/netns", self.name).exists()

    def pids(self) -> list[int]:
        """Return the processes in it."""
        listing = subprocess.run(["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True)
        return [int(pid) for pid in listing.stdout.split()]

    def up(self) -> None:
        """Make the namespace unless it exists."""
        if self.exists:
            return
        outside = f"veth-{self.name}"[:15]
        _run("ip", "netns", "add", self.name)
        inside = ("ip", "-netns", self.name)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _run("ip", "address", "add", f"{self.host}/24", "dev", outside)
        _run("ip", "link", "set", outside, "up")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "address", "add", f"{self.node}/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")
        _run(*inside, "route", "add", "default", "via", self.host)
        _run(*self.enter, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        _run("ip", "route", "replace", self.range, "via", self.node)

    def down(self) -> None:
        """Remove the namespace; its interfaces and the route go with it."""
        if self.exists:
            _run("ip", "netns", "delete", self.name)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
