"""Every command of the project looks and answers alike."""

import os
import pty
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

COMMANDS = {
    "hypha-worker": ["-m", "hypha_worker"],
    "hypha-operator": ["-m", "hypha_operator.cli"],
    "hypha-devnet": ["-m", "hypha_devnet"],
    "kubectl hypha": ["-m", "hypha_kubectl"],
    "hypha-bridge": ["-m", "hypha_bridge"],
    "python -m hypha_parameter_server": ["-m", "hypha_parameter_server"],
    "python -m hypha_trainer": ["-m", "hypha_trainer"],
}
EACH = pytest.mark.parametrize("command", COMMANDS)
EXECUTOR = ("--socket", "s", "--work-dir", ".", "--job-file", "missing.file")


def answer(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, *COMMANDS[command], *arguments]
    return subprocess.run(
        program, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


@EACH
def test_help_names_the_command_its_purpose_and_its_options(command: str) -> None:
    for option in ("--help", "-h"):
        result = answer(command, option)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.lstrip().startswith(f"Usage: {command} [")
        assert "\nOptions:\n" in result.stdout
        assert "-V, --version" in result.stdout
        assert "Show this message and exit." in result.stdout
        assert "\x1b" not in result.stdout


@EACH
def test_version_is_that_of_the_distribution(command: str) -> None:
    for option in ("--version", "-V"):
        result = answer(command, option)
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{command} {version('hypha-worker')}\n", "")


def is_one_error_line(text: str) -> bool:
    return text.startswith("error: ") and text.endswith("\n") and text.count("\n") == 1 and "\x1b" not in text


@EACH
def test_an_unknown_option_is_one_line_and_exits_with_2(command: str) -> None:
    arguments = EXECUTOR if command.startswith("python") else ()
    result = answer(command, *arguments, "--frobnicate")
    assert (result.returncode, result.stdout) == (2, "")
    assert is_one_error_line(result.stderr), result.stderr
    assert "--frobnicate" in result.stderr
    assert f"Try `{command} --help`." in result.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("hypha-worker", ("run", "--config", "missing.file"), 2),
        ("hypha-worker", ("--config", "missing.file"), 2),
        ("hypha-operator", ("run", "--all-namespaces"), 1),
        ("hypha-devnet", ("gateway", "--config", "missing.file"), 2),
        ("hypha-devnet", ("hub", "--root", "missing.file"), 2),
        ("kubectl hypha", ("status",), 2),
        ("hypha-bridge", ("--config", "missing.file"), 2),
        ("python -m hypha_parameter_server", EXECUTOR, 2),
        ("python -m hypha_trainer", EXECUTOR, 2),
    ],
)
def test_a_missing_file_is_one_line_that_names_it(command: str, arguments: tuple[str, ...], code: int) -> None:
    images = {f"HYPHA_{name}_IMAGE": "x:1" for name in ("WORKER", "BRIDGE", "TRAINER", "PARAMETER_SERVER")}
    result = answer(command, *arguments, KUBECONFIG="missing.file", **images)
    assert (result.returncode, result.stdout) == (code, "")
    assert is_one_error_line(result.stderr), result.stderr
    assert "missing.file" in result.stderr


@EACH
def test_the_word_error_is_red_on_a_terminal(command: str) -> None:
    ours, theirs = pty.openpty()
    program = [sys.executable, *COMMANDS[command], "--frobnicate"]
    subprocess.run(program, stderr=theirs, timeout=60, check=False)
    assert os.read(ours, 1000).startswith(b"\x1b[31merror:\x1b[0m ")
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("command", ["hypha-worker", "hypha-operator", "hypha-devnet", "kubectl hypha"])
def test_a_command_without_a_subcommand_prints_its_help_and_exits_with_2(command: str) -> None:
    result = answer(command)
    assert result.returncode == 2
    assert result.stdout.startswith(f"Usage: {command} ")


@pytest.mark.parametrize(
    ("command", "typed", "completed"),
    [("hypha-worker", "pro", "probe"), ("hypha-operator", "r", "run"), ("hypha-devnet", "gat", "gateway")],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands(command: str, typed: str, completed: str, shell: str) -> None:
    variable = f"_{command.upper().replace('-', '_')}_COMPLETE"
    line = f"{command} {typed}"
    words = {
        "COMP_WORDS": line,
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    result = answer(command, **{variable: f"complete_{shell}"}, **words)
    assert completed in result.stdout
    assert variable in answer(command, **{variable: f"source_{shell}"}).stdout


@pytest.mark.parametrize("platform", ["darwin", "win32"])
@pytest.mark.parametrize("module", ["hypha_worker.cli", "hypha_operator.cli", "hypha_devnet.cli"])
def test_another_system_is_refused_in_one_line(module: str, platform: str) -> None:
    program = f"import sys; from {module} import main; sys.platform = {platform!r}; main()"
    result = subprocess.run([sys.executable, "-c", program, "run"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert is_one_error_line(result.stderr), result.stderr
    assert f"runs on Linux only, not on {platform}" in result.stderr


def test_the_worker_refuses_another_system_without_importing_what_that_system_lacks(tmp_path: Path) -> None:
    (tmp_path / "resource.py").write_text("raise ImportError('no resource limits on this system')")
    program = "import sys; from hypha_worker.cli import main; sys.platform = 'win32'; main()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert "runs on Linux only" in result.stderr


def test_the_help_and_the_completion_of_the_worker_load_nothing_of_the_node() -> None:
    program = "import sys, hypha_worker.cli; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert not {"trio", "pydantic", "cryptography", "opentelemetry", "httpx", "rich"} & set(loaded)
