"""The nodes as a user starts them: as processes, which signals stop."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hypha_devnet import certs

CLI = (sys.executable, "-m", "hypha_devnet")


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen((*CLI, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def event(running: subprocess.Popen[str], name: str) -> dict[str, Any]:
    assert running.stdout is not None
    for line in running.stdout:
        if (entry := json.loads(line))["event"] == name:
            return entry
    raise AssertionError(f"no event {name}: {running.stderr.read() if running.stderr else ''}")


def node_file(directory: Path, name: str, text: str) -> str:
    files = "".join(f'{kind}_pem = "{directory}/{name}-{kind}.pem"\n' for kind in ("cert", "key", "trust"))
    path = directory / f"{name}.toml"
    path.write_text(files + 'listen_addresses = ["/ip4/127.0.0.1/tcp/0"]\nexclude_cidr = []\n' + text)
    return str(path)


def test_a_data_node_joins_through_a_gateway_and_both_end_on_a_signal(tmp_path: Path) -> None:
    certs.make(tmp_path, "Acme", ["gateway", "data"])
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "0.safetensors").write_bytes(b"slice")
    with process("gateway", "--config", node_file(tmp_path, "gateway", ""), "--events") as gateway:
        address = event(gateway, "listening")["addresses"][0]
        file = node_file(tmp_path, "data", f'gateway_addresses = ["{address}"]\ndataset_path = "{tmp_path}/digits"\n')
        with process("data", "--config", file, "--events") as data:
            assert event(data, "announced")["slices"] == 1
            data.send_signal(signal.SIGTERM)
            assert data.wait(20) == 0
        gateway.send_signal(signal.SIGINT)
        assert gateway.wait(20) == 130


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["gateway", "--config", "nowhere.toml"], 2, "nowhere.toml: no such file"),
        (["data", "--config", "FILE", "--set", "cert_pem=nowhere.pem"], 1, "nowhere.pem: No such file"),
        (["gateway", "--config", "FILE", "--set", 'listen_addresses=["nonsense"]'], 2, "nonsense"),
        (["scheduler", "--config", "FILE"], 2, "scheduler: Field required"),
        (["certs", "DIRECTORY", "--revoke", "nobody"], 1, "nobody-cert.pem"),
    ],
)
def test_a_wrong_option_or_file_is_reported_in_one_line(
    tmp_path: Path, arguments: list[str], code: int, reason: str
) -> None:
    certs.make(tmp_path, "Acme", ["node"])
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "0").write_bytes(b"")
    file = node_file(tmp_path, "node", f'dataset_path = "{tmp_path}/digits"\n')
    given = [{"FILE": file, "DIRECTORY": str(tmp_path)}.get(argument, argument) for argument in arguments]
    with process(*given) as running:
        _, errors = running.communicate(timeout=30)
    assert running.returncode == code
    [line] = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert reason in line
    assert "Traceback" not in errors


JOB = """
[scheduler.job]
model = { type = "auto", repository = "a/b", filenames = ["config.json"] }
dataset = { dataset = "digits" }
rounds = { update_rounds = 1, avg_samples_between_updates = 1 }
inner_optimizer = { learning-rate = 0.1 }
outer_optimizer = { learning-rate = 0.7, momentum = 0.9 }
resources = { num_workers = 1, worker = {}, parameter_server = {} }
"""


def test_a_scheduler_without_a_dataset_fails_with_that_reason(tmp_path: Path) -> None:
    certs.make(tmp_path, "Acme", ["scheduler"])
    file = node_file(tmp_path, "scheduler", JOB)
    with process(
        "scheduler", "--config", file, "--set", "scheduler.job.resources.deadline_s=0.5", "--events"
    ) as running:
        assert "'digits'" in event(running, "failed")["reason"]
        assert running.wait(20) == 1


def test_a_scheduler_that_is_stopped_has_failed(tmp_path: Path) -> None:
    certs.make(tmp_path, "Acme", ["scheduler"])
    with process("scheduler", "--config", node_file(tmp_path, "scheduler", JOB), "--events") as running:
        event(running, "listening")
        running.send_signal(signal.SIGTERM)
        assert event(running, "failed")["reason"] == "stopped by a signal"
        assert running.wait(20) == 143
