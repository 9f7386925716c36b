"""A laboratory of network namespaces: a public network, and NATs with nodes behind them. It needs root, ip and nft.

    public bridge 203.0.113.0/24 ── node, at 203.0.113.N
                                 └─ NAT, at 203.0.113.N ── node, at 192.168.N.2

The host's own namespace has no part in it, so any number of laboratories run beside each other.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import trio

from support.certs import Pki
from support.networks import DEADLINE_S

P, T = ParamSpec("P"), TypeVar("T")
_RULES = """
table ip nat {{
  chain leaving {{
    type nat hook postrouting priority srcnat
    oifname "wan" masquerade {ports}
  }}
}}
table ip filter {{
  chain forwarded {{
    type filter hook forward priority filter; policy drop
    ct state established,related accept
    iifname "lan" accept
  }}
  chain arriving {{
    type filter hook input priority filter; policy drop
    ct state established,related accept
    iifname != "wan" accept
  }}
}}
"""
KEPT, RANDOM = "", "fully-random"
"""How a NAT chooses the port of a connection: the local one if it is free, or any for each destination."""
TCP, QUIC = "tcp/4001", "udp/4001/quic-v1"
"""The ends of the addresses at which the nodes listen."""
_WITH_THIS_PROCESS = ("setpriv", "--pdeathsig", "KILL")
"""Ends a process with this one, however this one ends."""
_names = count()
_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


@cache
def missing() -> str | None:
    """Return why this machine cannot run the laboratory; None if it can."""
    if os.geteuid():
        return "only root makes network namespaces"
    if tools := [tool for tool in ("ip", "nft", "setpriv") if shutil.which(tool) is None]:
        return f"{' and '.join(tools)} missing"
    try:
        with laboratory(Pki(), Path()) as lab:
            lab.behind_nat(KEPT)
    except subprocess.CalledProcessError as error:
        return f"{' '.join(error.cmd)}: {error.stderr.strip()}"
    return None


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str, stdin: str = "") -> None:
    subprocess.run(command, input=stdin, check=True, capture_output=True, text=True)


@dataclass
class Place:
    """A namespace in which processes run, and the address at which it is reached within its own network."""

    namespace: str
    host: str

    @property
    def command(self) -> tuple[str, ...]:
        """The beginning of a command that runs in this place, and ends with this process."""
        return (*_WITH_THIS_PROCESS, "ip", "netns", "exec", self.namespace)


def in_a_process(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a function that enters a place, in a process of its own.

    The threads that start in a place stay there, and trio gives those that are idle to its next tasks.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments, **named).result()


@contextmanager
def inside(place: Place) -> Iterator[None]:
    """Let this thread, and the threads that it starts meanwhile, use the network of a place; see `in_a_process`."""
    with Path("/proc/thread-self/ns/net").open() as own, Path("/run/netns", place.namespace).open() as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")


class Process:
    """A process in a place, which writes a JSON object per line and ends with the laboratory."""

    def __init__(self, place: Place, *arguments: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [*place.command, sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            )

    async def line(self) -> dict[str, Any]:
        """Return the next object that it writes."""
        assert self._process.stdout is not None
        with trio.fail_after(DEADLINE_S):
            line = await trio.to_thread.run_sync(self._process.stdout.readline, abandon_on_cancel=True)
        assert line, self.log.read_text()
        written: dict[str, Any] = json.loads(line)
        return written

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class SlowPath:
    """The rate, the round trip and the part of the packets that are lost. The queue holds what fits on the path."""

    mbit_per_s: float
    round_trip_s: float
    loss: float = 0.0

    @property
    def queue_bytes(self) -> float:
        """The bytes that wait for their turn before more are dropped."""
        return self.mbit_per_s * 1e6 / 8 * self.round_trip_s


@dataclass
class Laboratory:
    """A public network; see `laboratory`."""

    pki: Pki
    directory: Path
    prefix: str
    _stack: ExitStack
    _places: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self._hub = self._namespace("hub")
        _ip("-n", self._hub, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        _ip("-n", self._hub, "link", "set", "bridge", "up")

    def _namespace(self, name: str) -> str:
        namespace = f"{self.prefix}-{name}"
        _ip("netns", "add", namespace)
        self._stack.callback(_ip, "netns", "delete", namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def public(self) -> Place:
        """Make a place with a public address."""
        number = next(self._places)
        place = Place(self._namespace(f"public-{number}"), f"203.0.113.{number}")
        self._join(place, number)
        return place

    def behind_nat(self, ports: str) -> Place:
        """Make a place behind a NAT, which lets nothing in but answers."""
        number = next(self._places)
        router = Place(self._namespace(f"nat-{number}"), f"203.0.113.{number}")
        inside = Place(self._namespace(f"inside-{number}"), f"192.168.{number}.2")
        self._join(router, number)
        _link(router.namespace, "lan", f"192.168.{number}.1/24", inside.namespace, "eth0", f"{inside.host}/24")
        _ip("-n", inside.namespace, "route", "add", "default", "via", f"192.168.{number}.1")
        _run("ip", "netns", "exec", router.namespace, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        _run("ip", "netns", "exec", router.namespace, "nft", "-f", "-", stdin=_RULES.format(ports=ports))
        return inside

    async def apart(self, path: SlowPath) -> tuple[Place, Place]:
        """Make two places that only this path connects."""
        numbers = (next(self._places), next(self._places))
        one, other = (Place(self._namespace(f"end-{n}"), f"198.51.100.{n}") for n in numbers)
        settings = (path.mbit_per_s * 1e6 / 8, path.round_trip_s / 2, path.loss, int(path.queue_bytes))
        link = self.run(Place(self._hub, ""), "support.slow_link", one.namespace, other.namespace, *map(str, settings))
        await link.line()
        for place in (one, other):
            _ip("-n", place.namespace, "address", "add", f"{place.host}/24", "dev", "path")
            _ip("-n", place.namespace, "link", "set", "dev", "path", "up")
        return one, other

    def _join(self, place: Place, number: int) -> None:
        _link(place.namespace, "wan", f"{place.host}/24", self._hub, f"port-{number}")
        _ip("-n", self._hub, "link", "set", f"port-{number}", "master", "bridge")

    def gateway(self, *, bulk: bool, listen: Sequence[str] = (TCP,)) -> str:
        """Start a gateway of the devnet, which relays bulk data or not. Return its addresses, separated by commas."""
        place = self.public()
        files = self.pki.files(place.namespace, self.directory)
        config = self.directory / f"{place.namespace}.toml"
        addresses = [f"/ip4/{place.host}/{ending}" for ending in listen]
        settings = {
            "cert_pem": str(files.cert),
            "key_pem": str(files.key),
            "trust_pem": str(files.trust),
            "listen_addresses": addresses,
        }
        config.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items()))
        more = ("--set", "relay.peer_mb_per_s=50") if bulk else ()
        self.run(place, "hypha_devnet", "gateway", "--config", str(config), *more)
        return ",".join(addresses)

    def node(self, place: Place, name: str, *arguments: str) -> Process:
        """Run `support.lab_node` with these arguments."""
        return self.run(place, "support.lab_node", *self.certificate(name), *arguments)

    def certificate(self, name: str) -> tuple[str, str, str]:
        """Make a node's certificate; return its file, the key's and that of the authorities."""
        files = self.pki.files(name, self.directory)
        return str(files.cert), str(files.key), str(files.trust)

    def run(self, place: Place, *arguments: str) -> Process:
        """Run a module of Python with these arguments in a place."""
        process = Process(place, *arguments, log=self.directory / f"{place.namespace}.log")
        self._stack.callback(process.close)
        return process


def _link(one: str, name: str, address: str, other: str, other_name: str, other_address: str = "") -> None:
    """Connect two namespaces by a cable."""
    _ip("-n", one, "link", "add", name, "type", "veth", "peer", "name", other_name, "netns", other)
    for namespace, end, ip in ((one, name, address), (other, other_name, other_address)):
        if ip:
            _ip("-n", namespace, "address", "add", ip, "dev", end)
        _ip("-n", namespace, "link", "set", end, "up")


@contextmanager
def laboratory(pki: Pki, directory: Path) -> Iterator[Laboratory]:
    """Make a laboratory, and remove its namespaces and processes at the end, and those that a killed test has left."""
    for namespace in Path("/run/netns").glob("lab-*"):
        if not Path("/proc", namespace.name.split("-")[1]).exists():
            _ip("netns", "delete", namespace.name)
    with ExitStack() as stack:
        yield Laboratory(pki, directory, f"lab-{os.getpid()}-{next(_names)}", stack)
