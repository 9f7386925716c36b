"""A node under attack: its gateway and its attackers on one core, itself and an honest scheduler on another."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import trio

from hypha_devnet.certs import Credential, write_node
from hypha_devnet.ports import free_port
from hypha_network.network import Network
from support.attacks.catalogue import Role
from support.attacks.target import Credentials, Target
from support.certs import Pki, identity_of
from support.networks import node
from support.node_process import NodeProcess, Scheduler

START_S = 60.0
TESTS = Path(__file__).parents[1]
ROOM = {"gpu": 0, "cpu": 4096, "memory": 16_384, "storage": 80_000}
"""Enough for all leases that the node grants at once, so that one scheduler cannot buy all of it."""
FLEXIBLE = {"strategy": "flexible", "floor": 1.0}
LEASES = {"duration_s": 5}

ECHO = """
import http.client, json, os, socket, time

def connect():
    connection = http.client.HTTPConnection("bridge")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(os.environ["SOCKET_PATH"])
    return connection

def post(connection, path, body):
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()

def named(*peers):
    return {"type": "Peers", "peers": peers, "strategy": "All"}

calls, rounds = connect(), 0
for line in post(connect(), "/resources/receive", {"receive": named(ECHO, *HOSTILE), "out_dir": "incoming"}):
    if not line.startswith(b"data: "):
        continue
    event = json.loads(line[6:])
    if event["from_peer"] == ECHO:
        time.sleep(TRAIN_S)
        status = {"status": {"batch_size": 1}}
        for call, body in ("resources/send", {"send": named(ECHO), "path": event["path"]}), ("status/send", status):
            answer = post(calls, "/" + call, body)
            assert answer.status == 200, answer.read()
            answer.read()
        rounds += 1
    else:
        os.unlink(os.path.join(os.environ["WORK_DIR"], event["path"]))
    if rounds == ROUNDS:
        break
"""


def cores() -> tuple[int, int]:
    """Return the core of the node and that of its attackers."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run this process on one core while inside."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class Siege:
    """The scene: the node, its gateway, and honest peers in this process.

    `scheduler` runs jobs, and `asker` takes offers that it does not use. `hostile` has the peer ids of the attackers.
    """

    pki: Pki
    node: NodeProcess
    scheduler: Scheduler
    asker: Scheduler
    echo: Network
    address: str
    gateway: str
    directory: Path
    attackers: list[Credentials]
    hostile: dict[Role, list[str]]
    attack_core: int

    @property
    def worker(self) -> str:
        """The node's peer id."""
        return self.address.rpartition("/")[2]

    @contextmanager
    def attack(self, attacks: Sequence[tuple[Role, str]], leases: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Let these attacks go on while inside. Fill the yielded figures afterwards."""
        connector = str(self.node.work_dir / "connector.sock")
        names = [f"{role}: {name}" for role, name in attacks]
        target = Target(self.address, self.gateway, connector, self.attackers, names, leases=list(leases))
        file = self.directory / "target.json"
        target.write(file)
        process = subprocess.Popen(
            [sys.executable, "-m", "support.attacks", str(file)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=TESTS,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
        )
        os.sched_setaffinity(process.pid, {self.attack_core})
        assert process.stdout is not None
        figures: dict[str, Any] = {}
        try:
            assert "attackers" in json.loads(process.stdout.readline())
            yield figures
            process.terminate()
            figures |= json.loads(process.stdout.read())
            assert process.wait() == 0
        finally:
            process.kill()
            process.wait()


def recruit(pki: Pki, counts: Mapping[Role, int]) -> dict[Role, list[Credential]]:
    """Make attackers. Strangers have a certificate of another network, and use it in some of their attacks."""
    foreign = Pki()
    return {
        role: [(foreign if role is Role.STRANGER else pki).node(f"{role} {number}") for number in range(count)]
        for role, count in counts.items()
    }


def credentials(role: Role, credential: Credential) -> Credentials:
    pem = credential.cert_pem, credential.key_pem, credential.trust_pem
    return Credentials(role, *(text.decode() for text in pem))


@asynccontextmanager
async def siege(
    counts: Mapping[Role, int], *, max_files: int | None = None, profile: bool = False, **settings: Any
) -> AsyncIterator[Siege]:
    """Start a gateway, a node and honest peers. Make so many attackers of each role, which are yet to attack.

    Args:
        counts: by role, the number of attackers.
        max_files: the node's limit of descriptors.
        profile: whether the node writes a profile when it ends.
        settings: of the node.
    """
    pki = Pki()
    node_core, attack_core = cores()
    attackers = recruit(pki, counts)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(on_core(node_core))
        gateway = await _start_gateway(pki, directory, attack_core, stack)
        shop = {"resources": ROOM, "offer": FLEXIBLE, "leases": LEASES, "relay_circuit": True} | settings
        victim = NodeProcess(pki, directory, gateway, "echo", **shop)
        if profile:
            victim.module = "support.profiled_node"
            victim.environ = {"PYTHONPATH": str(TESTS), "PROFILE": str(directory / "profile.txt")}
        victim.start()
        stack.callback(victim.close)
        if max_files is not None:
            resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, (max_files, max_files))
        async with (
            node(pki, "scheduler", gateways=(gateway,)) as network,
            node(pki, "asker", gateways=(gateway,)) as asker,
            node(pki, "echo", gateways=(gateway,)) as echo,
        ):
            address = await until_listening(victim)
            scene = Siege(
                pki,
                victim,
                Scheduler(network),
                Scheduler(asker),
                echo,
                address,
                gateway,
                directory,
                [credentials(role, member) for role, members in attackers.items() for member in members],
                {role: [identity_of(m).peer_id for m in members] for role, members in attackers.items()},
                attack_core,
            )
            with trio.fail_after(START_S):
                await network.wait_ready()
                await asker.wait_ready()
                await echo.wait_ready()
            yield scene


async def _start_gateway(pki: Pki, directory: Path, core: int, stack: ExitStack) -> str:
    """Start a gateway as a process, the reference's if HYPHA_BIN names its directory; return its address."""
    credential = pki.node("gateway")
    files = write_node(credential, directory, "gateway")
    port = free_port()
    address = f"/ip4/127.0.0.1/tcp/{port}"
    settings = {"cert_pem": str(files.cert), "key_pem": str(files.key), "trust_pem": str(files.trust)}
    lists = {"listen_addresses": [address], "external_addresses": [address], "exclude_cidr": ["10.0.0.0/8"]}
    config = directory / "gateway.toml"
    config.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in (settings | lists).items()))
    reference = os.environ.get("HYPHA_BIN")
    program = [f"{reference}/hypha-gateway", "run"] if reference else [sys.executable, "-m", "hypha_devnet", "gateway"]
    log = stack.enter_context((directory / "gateway.log").open("wb"))
    stack.enter_context(_running([*program, "--config", str(config)], core, log))
    with trio.fail_after(START_S):
        while True:
            with suppress(OSError):
                await trio.aclose_forcefully(await trio.open_tcp_stream("127.0.0.1", port))
                return f"{address}/p2p/{identity_of(credential).peer_id}"
            await trio.sleep(0.05)


@contextmanager
def _running(command: list[str], core: int, log: IO[bytes]) -> Iterator[None]:
    """Run a program on one core while inside."""
    process = subprocess.Popen(command, stdout=log, stderr=log)
    os.sched_setaffinity(process.pid, {core})
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def until_listening(victim: NodeProcess) -> str:
    """Return the node's address."""
    with trio.fail_after(START_S):
        while not (found := [word for word in victim.log.split() if "/ip4/127.0.0.1/tcp/" in word and "/p2p/" in word]):  # noqa: ASYNC110 - another process writes it
            await trio.sleep(0.05)
    return found[0].strip('"')


@dataclass(frozen=True)
class Sample:
    """What a process uses: resident memory, open descriptors, bytes of its log, and its time on and off the CPU.

    `waited_s` is how long its main thread was ready to run while its core was busy with other programs.
    """

    at: float
    resident_mib: float
    cpu_s: float
    waited_s: float
    files: int
    log_bytes: int


def sample(victim: NodeProcess) -> Sample:
    process = Path("/proc") / str(victim.pid)
    (line,) = [text for text in (process / "status").read_text().splitlines() if text.startswith("VmRSS")]
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    waited_s = int((process / "schedstat").read_text().split()[1]) / 1e9
    files = len(list((process / "fd").iterdir()))
    log_bytes = (victim.directory / "worker.log").stat().st_size
    return Sample(time.monotonic(), int(line.split()[1]) / 1024, cpu_s, waited_s, files, log_bytes)
