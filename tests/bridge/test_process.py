"""The bridge as a process, driven by a client with the requests of the stock executor."""

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hypha_bridge.bridge import Bridge
from hypha_bridge.config import ConfigError
from hypha_contracts.bridge_config import BridgeConfig
from support.bridge_node import FakeNode, safetensors
from support.waiting import until

from .conftest import OTHER, PROVIDER, SCHEDULER, SERVER, peers

COMMAND = [sys.executable, "-m", "hypha_bridge"]


class StockClient:
    """Blocking calls without a time limit, bare references and the first `data:` lines of an endless answer."""

    def __init__(self, path: Path) -> None:
        self._http = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://hypha", timeout=None)

    def __enter__(self) -> "StockClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def post(self, path: str, body: Any) -> httpx.Response:
        return self._http.post(path, json=body).raise_for_status()

    def pushes(self, body: Any, opened: threading.Event) -> Iterator[Any]:
        with self._http.stream("POST", "/resources/receive", json=body) as response:
            opened.set()
            for line in response.iter_lines():
                field, _, value = line.partition(":")
                if field == "data":
                    yield json.loads(value)


@pytest.fixture
def config_file(config: BridgeConfig) -> Path:
    assert config.state_dir is not None
    return config.state_dir.parent / "bridge.json"


@pytest.fixture
def process(config: BridgeConfig, config_file: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([*COMMAND, "--config", config_file], stderr=subprocess.PIPE, text=True) as process:
        probe = socket.socket(socket.AF_UNIX)
        for _ in range(1000):
            try:
                probe.connect(str(config.socket))
                break
            except OSError:
                threading.Event().wait(0.02)
                assert process.poll() is None, process.stderr and process.stderr.read()
        probe.close()
        yield process
        process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts processes of other users")
def test_a_bridge_runs_as_a_user_that_the_machine_does_not_know(
    node: FakeNode, config: BridgeConfig, config_file: Path
) -> None:
    """OpenShift chooses a user id for each namespace, and group 0."""
    user = 1_000_680_000
    with pytest.raises(KeyError):
        pwd.getpwuid(user)
    volume = config_file.parent
    for directory in volume.parents[:3]:  # pytest's own directories are private
        directory.chmod(directory.stat().st_mode | 0o011)
    for path in (volume, *volume.rglob("*")):
        os.chown(path, user, 0)
    node.slices["digits", 3] = safetensors(1003)
    node.assign("digits", PROVIDER, 3)
    # It imports all modules as root, because the interpreter of the tests may be root's alone.
    program = (
        "import certifi, os, uvicorn.lifespan.on, uvicorn.loops.auto, uvicorn.protocols.http.h11_impl; "
        "from hypha_bridge.__main__ import main; "
        f"certifi.where(); os.setgroups([]); os.setgid(0); os.setuid({user}); main()"
    )
    command = [sys.executable, "-c", program, "--config", config_file]
    environment = {"PATH": os.environ["PATH"], "HOME": "/"}
    with subprocess.Popen(command, env=environment, cwd="/") as process:
        until(lambda: config.socket.is_socket() or process.poll() is not None)
        with StockClient(config.socket) as client:
            slices = {"type": "scheduler", "peer": SCHEDULER, "dataset": "digits"}
            [fetched] = client.post("/resources/fetch", slices).json()
        file = config.work_dir / fetched["path"]
        assert (file.read_bytes(), file.stat().st_uid) == (node.slices["digits", 3], user)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_round_of_the_stock_executor_succeeds(
    process: subprocess.Popen[str], node: FakeNode, config: BridgeConfig
) -> None:
    for index in (3, 1):
        node.slices["digits", index] = safetensors(1000 + index)
        node.assign("digits", PROVIDER, index)
    node.answers.put({"type": "ScheduleUpdate", "counter": 0})
    with StockClient(config.socket) as client:
        opened = threading.Event()
        updates = client.pushes({"resource": peers(SERVER), "path": "incoming"}, opened)
        slices = {"type": "scheduler", "peer": SCHEDULER, "dataset": "digits"}
        for index in (3, 1):
            [fetched] = client.post("/resources/fetch", slices).json()
            assert (config.work_dir / fetched["path"]).read_bytes() == node.slices["digits", index]
        status = {"status": {"batch_size": 16, "round_time": 12}}
        assert client.post("/status/send", status).json() == {"type": "ScheduleUpdate", "counter": 0}
        client.post("/status/send", "update")
        (config.work_dir / "1_local_gradients.pt").write_bytes(safetensors(77))
        assert (
            client.post("/resources/send", {"resource": peers(SERVER), "path": "1_local_gradients.pt"}).content == b""
        )
        assert node.received.get(timeout=10) == (SERVER, safetensors(77))
        client.post("/status/send", {"metrics": {"round": 1, "metrics": {"loss": 0.25}}})
        node.incoming.put((SERVER, safetensors(88)))
        update = next(updates)
        assert (config.work_dir / update["path"]).read_bytes() == safetensors(88)
        node.answers.put({"type": "Done"})
        assert client.post("/status/send", "update-received").json() == {"type": "Done"}
        updates.close()  # type: ignore[attr-defined]
    assert node.reported[0] == {"status": {"batch_size": 16}}


def test_only_its_user_may_connect(process: subprocess.Popen[str], config: BridgeConfig) -> None:
    mode = config.socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert config.state_dir is not None
    assert stat.S_IMODE(config.state_dir.stat().st_mode) == 0o700


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopping_bridge_sends_accepted_files_leaves_no_file_and_exits_0(
    process: subprocess.Popen[str], node: FakeNode, config: BridgeConfig, number: signal.Signals
) -> None:
    node.push_gate.clear()
    with StockClient(config.socket) as client:
        (config.work_dir / "x").write_bytes(b"last words")
        client.post("/resources/send", {"resource": peers(SERVER, OTHER), "path": "x"})
        opened = threading.Event()
        updates = client.pushes({"resource": peers(SERVER)}, opened)
        listener = threading.Thread(target=lambda: list(updates))
        listener.start()
        assert opened.wait(10)
        process.send_signal(number)
        listener.join(10)
        assert not listener.is_alive(), "the event stream ends"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        node.push_gate.set()
        assert process.wait(20) == 0
    assert {node.received.get(timeout=1), node.received.get(timeout=1)} == {
        (SERVER, b"last words"),
        (OTHER, b"last words"),
    }
    assert not config.socket.exists()
    assert config.state_dir is not None
    assert not config.state_dir.exists()


@pytest.mark.parametrize(("peers_of_last_file", "code"), [([SERVER], 1), ([SERVER, OTHER], 0)])
def test_an_undelivered_file_delays_the_end_only_as_configured_and_sets_the_exit_code(
    config: BridgeConfig,
    config_file: Path,
    node: FakeNode,
    request: pytest.FixtureRequest,
    peers_of_last_file: list[str],
    code: int,
) -> None:
    settings = json.loads(config_file.read_text()) | {"drain_s": 0.5}
    config_file.write_text(json.dumps(settings))
    node.refusing_peers[SERVER] = 1_000_000
    process: subprocess.Popen[str] = request.getfixturevalue("process")
    with StockClient(config.socket) as client:
        (config.work_dir / "x").write_bytes(b"x")
        client.post("/resources/send", {"resource": peers(*peers_of_last_file), "path": "x"})
        process.terminate()
        assert process.wait(20) == code
    assert process.stderr is not None
    said = process.stderr.read()
    assert "1 files not sent" in said
    assert ("no peer received the last 1 files of the job" in said) == bool(code)


def test_a_bridge_replaces_the_files_of_a_killed_one(
    process: subprocess.Popen[str], config: BridgeConfig, config_file: Path
) -> None:
    process.kill()
    process.wait()
    assert config.socket.exists()
    with subprocess.Popen([*COMMAND, "--config", config_file]) as second:
        transport = httpx.HTTPTransport(uds=str(config.socket), retries=0)
        with httpx.Client(transport=transport, base_url="http://hypha") as client:
            for _ in range(1000):
                try:
                    assert client.get("/healthz").status_code == 200
                    break
                except httpx.TransportError:
                    threading.Event().wait(0.02)
        second.terminate()
        assert second.wait(20) == 0


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("change", "named", "code"),
    [
        ({"work_dir": "/nowhere/work"}, "/nowhere", 1),
        ({"storage_bytes": -1}, "storage_bytes", 2),
        ({"speed": "fast"}, "speed", 2),
        ({"job_file": "/nowhere/job.json"}, "/nowhere/job.json", 2),
        ({"connector": {"uds": "x"}}, "connector.token_file", 2),
    ],
)
def test_an_unusable_configuration_is_named(config_file: Path, change: dict[str, Any], named: str, code: int) -> None:
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | change))
    ended = run("--config", config_file)
    assert ended.returncode == code
    assert named in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_version_is_printed() -> None:
    assert run("--version").stdout.startswith("hypha-bridge ")
    assert "--config FILE" in run("--help").stdout


def test_a_state_dir_with_files_that_no_bridge_made_is_refused_and_unchanged(config: BridgeConfig) -> None:
    assert config.state_dir is not None
    config.state_dir.mkdir()
    (config.state_dir / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files that no bridge made"):
        Bridge(config)
    assert (config.state_dir / "notes.txt").read_text() == "mine"


def _bomb(header_bytes: int) -> bytes:
    """Return a file of this many bytes of header, in which every entry is an empty tensor."""
    entry = b'"%08d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    count = header_bytes // len(b"," + entry % 0)
    header = b"{" + b",".join(entry % number for number in range(count)) + b"}"
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize("header_mib", [5, 92])
def test_pushes_with_large_headers_cost_the_bridge_little_memory(
    process: subprocess.Popen[str], node: FakeNode, config: BridgeConfig, header_mib: int
) -> None:
    bomb = _bomb(header_mib << 20)

    def peak_mib() -> float:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    with StockClient(config.socket) as client:
        pushes = client.pushes({"resource": peers(SERVER), "path": "incoming"}, threading.Event())
        node.incoming.put((SERVER, safetensors(10)))
        next(pushes)
        before = peak_mib()
        for _ in range(4):
            node.incoming.put((SERVER, bomb))
        assert [next(pushes)["size"] for _ in range(4)] == [len(bomb)] * 4
        assert peak_mib() - before < 100
