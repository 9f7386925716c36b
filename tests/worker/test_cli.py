import os
import pty
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hypha_worker.errors import NodeError
from hypha_worker.state_dir import prepare_state_dir
from support.certs import Pki


def worker(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hypha_worker", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def one_line(error: str) -> str:
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A worker's directory as its owner has it: certificates, and a configuration from `init`."""
    directory = tmp_path_factory.mktemp("worker")
    Pki().files("worker", directory)
    assert worker("init", cwd=directory).returncode == 0
    return directory


def test_the_version_is_that_of_the_distribution() -> None:
    assert worker("--version").stdout == f"hypha-worker {version('hypha-worker')}\n"


@pytest.mark.parametrize("command", [[], ["run"], ["init"], ["probe"], ["identity"], ["status"], ["jobs"], ["logs"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    result = worker(*command, "--help")
    assert result.returncode == 0
    assert "--config" in result.stdout


def test_a_call_without_arguments_exits_with_2() -> None:
    assert worker().returncode == 2


def test_an_unknown_option_exits_with_2_and_no_traceback() -> None:
    result = worker("run", "--configg", "x")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_init_overwrites_a_file_only_with_force(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("mine")
    result = worker("init", "--config", file)
    assert (result.returncode, file.read_text()) == (2, "mine")
    assert "--force" in one_line(result.stderr)
    assert worker("init", "--config", file, "--force", "--name", "gpu-1").returncode == 0
    assert 'cert_pem = "gpu-1-cert.pem"' in file.read_text()


def test_identity_prints_the_peer_id_and_how_long_the_certificate_is_valid(directory: Path) -> None:
    result = worker("identity", cwd=directory)
    assert result.returncode == 0, result.stderr
    assert "12D3KooW" in result.stdout
    assert "valid until" in result.stdout
    assert "days" in result.stdout


@pytest.mark.parametrize(
    "command", [["run"], ["--config", "worker.toml"], ["identity"], ["probe", "/ip4/127.0.0.1/tcp/1"]]
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "worker.toml").write_text("gateways = []")
    result = worker(*command, cwd=tmp_path)
    assert result.returncode == 2
    assert "worker.toml:1: gateways: unknown key. Did you mean gateway_addresses?" in one_line(result.stderr)


def test_a_missing_certificate_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    assert worker("init", cwd=tmp_path).returncode == 0
    result = worker("identity", cwd=tmp_path)
    assert result.returncode == 1
    assert "worker-cert.pem: No such file" in one_line(result.stderr)


def test_an_unusable_work_dir_is_one_line_and_exit_code_1(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = worker("run", "--work-dir", tmp_path / "file" / "work", "--log-level", "error", cwd=directory)
    assert result.returncode == 1
    assert "Choose a directory" in one_line(result.stderr)


def test_no_garbage_collection_of_a_running_node_looks_at_its_modules(directory: Path) -> None:
    program = "import gc, trio; trio.run = lambda *_: print(gc.get_freeze_count())"
    program += "; from hypha_worker.cli import main; main()"
    command = [sys.executable, "-c", program, "run"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60, check=True)
    assert int(result.stdout) > 10_000


def test_a_probe_without_an_answer_fails_with_a_reason(directory: Path) -> None:
    result = worker("probe", "/ip4/127.0.0.1/tcp/1", cwd=directory)
    assert result.returncode == 1
    assert "/ip4/127.0.0.1/tcp/1" in one_line(result.stderr)


def test_errors_are_coloured_only_on_a_terminal(directory: Path) -> None:
    assert "\x1b" not in worker("probe", "/ip4/127.0.0.1/tcp/1", cwd=directory).stderr
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hypha_worker", "identity", "--config", "missing.toml"]
    subprocess.run(command, cwd=directory, stderr=theirs, timeout=60, check=False)
    assert b"\x1b[31merror" in os.read(ours, 1000)
    os.close(ours)
    os.close(theirs)


def test_a_private_work_dir_is_the_state_dir(tmp_path: Path) -> None:
    assert prepare_state_dir(tmp_path / "a/b", "12D3KooWabcdefgh") == tmp_path / "a/b"
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700


def test_a_world_writable_work_dir_gets_a_private_state_dir(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    private = prepare_state_dir(tmp_path, "12D3KooWabcdefgh")
    assert private == tmp_path / "hypha-worker-abcdefgh"
    assert private.stat().st_mode & 0o777 == 0o700
    assert tmp_path.stat().st_mode & 0o777 == 0o777
    assert prepare_state_dir(tmp_path, "12D3KooWabcdefgh") == private


def test_a_state_dir_of_another_user_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "hypha-worker-abcdefgh").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NodeError, match="not a private directory"):
        prepare_state_dir(tmp_path, "12D3KooWabcdefgh")
    (tmp_path / "hypha-worker-12345678").mkdir(mode=0o755)
    with pytest.raises(NodeError, match="not a private directory"):
        prepare_state_dir(tmp_path, "12D3KooW12345678")


def test_text_of_others_in_an_error_is_escaped() -> None:
    result = worker("identity", "--config", "\x1b[2J\u202e.toml")
    assert r"\x1b[2J\u202e.toml" in one_line(result.stderr)
    assert result.stderr.strip().isprintable()


@pytest.mark.parametrize("work_dir", ["/proc/self", "/proc/hypha"])
def test_a_work_dir_that_nobody_can_write_to_is_one_line_with_a_remedy(directory: Path, work_dir: str) -> None:
    result = worker("run", "--work-dir", work_dir, "--log-level", "error", cwd=directory)
    assert result.returncode == 1
    assert f"work_dir {work_dir}: " in one_line(result.stderr)
    assert "Choose a directory that user" in result.stderr


def run_with(directory: Path, tmp_path: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a node whose configuration differs from the template's."""
    text = (directory / "worker.toml").read_text()
    for before, after in changes.items():
        text = text.replace(before, after)
    config = directory / f"{tmp_path.name}.toml"
    config.write_text(text)
    too_long = tmp_path / ("d" * 60)  # so that the node ends once it has checked the host
    return worker("run", "--config", config, "--work-dir", too_long, cwd=directory)


def test_a_missing_program_and_a_misspelt_placeholder_keep_the_node_from_starting(
    directory: Path, tmp_path: Path
) -> None:
    missing = {f'cmd = "{sys.executable}"': 'cmd = "no-such-trainer"'}
    result = run_with(directory, tmp_path, SOCKET_PATH="SOKET_PATH", **missing)
    assert result.returncode == 1
    assert "train/diloco-transformer: no-such-trainer is not in PATH" in result.stderr.splitlines()[-1]
    assert "{SOKET_PATH} is not a placeholder. Write {SOCKET_PATH} in its args." in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_resources_larger_than_the_machine_are_a_warning_at_the_start(directory: Path, tmp_path: Path) -> None:
    changes = {"cpu = 4": "cpu = 4000", "gpu = 0": "gpu = 1000000"}
    result = run_with(directory, tmp_path, **changes)
    warnings = [line for line in result.stderr.splitlines() if "level=warning" in line]
    assert any("[resources] cpu: the worker offers 4000 cores, and this machine has" in line for line in warnings)
    assert any("[resources] gpu: the worker offers 1e+06 GB of GPU memory" in line for line in warnings)
    assert "longer than" in result.stderr
