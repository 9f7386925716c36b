"""`hypha-worker doctor` as people and programs use it, and its page of documentation."""

import json
import os
import pty
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio

from hypha_contracts.findings import Finding, Mark, Result, exit_code, failure, ok, skipped, to_text, warning
from hypha_worker.config_file import ConfigError
from hypha_worker.doctor import page, report
from hypha_worker.doctor.check import Check
from hypha_worker.doctor.checks import CHECKS
from hypha_worker.doctor.run import run
from hypha_worker.doctor.worker import Worker
from support.certs import Pki
from support.examined import write_config

ROOT = Path(__file__).parents[2]
SYMPTOMS = {
    "Worker not receiving task advertisements",
    "Offers rejected by scheduler",
    "Jobs failing to start",
    "Job bridge connection failures",
    "Resource fetch failures",
    '"Module not found" errors',
    "Training doesn't start",
    "uv command not found",
    "PyTorch device mismatch",
}
NOWHERE = Worker(Path("worker.toml"), ConfigError("no such file"), {})


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def doctor(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hypha_worker", "doctor", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_the_page_shows_every_check() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert page.with_table(text) == text, "run `make checks`"
    with pytest.raises(ValueError, match="has no table of checks"):
        page.with_table("# Troubleshooting\n")


def test_checks_have_ids_of_their_own_and_cover_every_symptom_of_the_guide() -> None:
    assert [name for name, count in Counter(check.id for check in CHECKS).items() if count > 1] == []
    assert {symptom for check in CHECKS for symptom in check.symptom.split("; ") if symptom} == SYMPTOMS


def test_a_sound_worker_without_a_gateway_fails_with_its_remedy_and_exit_code_1(directory: Path) -> None:
    result = doctor("--config", write_config(directory, Pki()))
    assert result.returncode == 1
    assert "Connection refused  [network.gateways]" in result.stdout
    assert "        -> Nothing listens there. Correct the port" in result.stdout
    assert f"of {len(CHECKS)} checks" in result.stdout.splitlines()[-1]
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_json_has_the_documented_fields(directory: Path) -> None:
    result = doctor("--json", "--config", directory / "missing.toml")
    assert result.returncode == 1
    shown = json.loads(result.stdout)
    assert shown.keys() == {"schema", "version", "config", "mark", "checks"}
    assert (shown["schema"], shown["mark"]) == (1, "failure")
    assert [check["id"] for check in shown["checks"]] == [check.id for check in CHECKS]
    for check in shown["checks"]:
        assert check.keys() == {"id", "category", "question", "mark", "findings"}
        assert all(finding.keys() == {"mark", "message", "remedy"} for finding in check["findings"])
    assert shown["checks"][0]["mark"] == "failure"
    assert "no such file" in shown["checks"][0]["findings"][0]["message"]


def test_a_wrong_command_line_exits_with_2() -> None:
    assert doctor("--jsn").returncode == 2


def test_marks_are_coloured_and_progress_is_shown_on_a_terminal_only(directory: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hypha_worker", "doctor", "--config", str(directory / "missing.toml")]
    subprocess.run(command, stdout=theirs, stderr=theirs, timeout=90, check=False)
    os.set_blocking(ours, False)
    shown = b""
    while len(chunk := _read(ours)):
        shown += chunk
    assert b"\x1b[31mfailure\x1b[0m" in shown
    assert f"0 of {len(CHECKS)} checks done; waiting for {CHECKS[0].id}".encode() in shown
    os.close(ours)
    os.close(theirs)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except BlockingIOError:
        return b""


def check(run_: object, check_id: str = "test", timeout_s: float = 60) -> Check:
    return Check(check_id, "Tests", "Is it?", run_, timeout_s=timeout_s)  # type: ignore[arg-type]


def run_checks(*checks: Check) -> list[Result]:
    return trio.run(run, NOWHERE, checks, lambda _: None)


def test_checks_run_at_the_same_time_and_keep_their_order() -> None:
    async def meet(_: Worker) -> Iterable[Finding]:
        nonlocal arrived
        arrived += 1
        while arrived < 2:
            await trio.lowlevel.checkpoint()
        return [ok("met")]

    arrived = 0
    assert [result.check.id for result in run_checks(check(meet, "a"), check(meet, "b"))] == ["a", "b"]


def test_a_check_that_hangs_or_has_a_fault_hides_no_other() -> None:
    async def hang(_: Worker) -> Iterable[Finding]:
        await trio.sleep_forever()
        raise AssertionError

    async def break_(_: Worker) -> Iterable[Finding]:
        await trio.lowlevel.checkpoint()
        raise ValueError("odd")

    async def need_the_configuration(worker: Worker) -> Iterable[Finding]:
        await trio.lowlevel.checkpoint()
        return [ok(str(worker.config))]

    hung, broken, needy = run_checks(check(hang, "a", 0.01), check(break_, "b"), check(need_the_configuration, "c"))
    assert hung.findings[0].message == "no result within 0.01 s"
    assert broken.findings[0].message == "this check failed: ValueError: odd"
    assert (needy.mark, needy.findings[0].message) == (Mark.SKIPPED, "the configuration cannot be used")


@pytest.mark.parametrize(
    ("findings", "mark", "code"),
    [
        ([ok("a"), skipped("b")], "ok", 0),
        ([ok("a"), warning("b", "Do.")], "warning", 0),
        ([warning("b", "Do."), failure("c", "Do.")], "failure", 1),
        ([], "skipped", 0),
    ],
)
def test_the_worst_finding_is_the_mark_of_a_check_and_a_failure_the_exit_code(
    findings: list[Finding], mark: str, code: int
) -> None:
    result = Result(CHECKS[0], findings)
    assert (result.mark, exit_code([result])) == (mark, code)


def test_text_of_others_is_escaped_in_the_report() -> None:
    result = Result(CHECKS[0], [failure("\x1b[2J\u202e", "http://user:pass@host/x?token=1")])
    text = "\n".join(to_text([result], colour=False)) + report.to_json([result], Path("w"), "1")
    assert "\x1b" not in text
    assert "pass" not in text
    assert "token=1" not in text


def test_the_start_logs_a_warning_once(directory: Path) -> None:
    config = write_config(directory, Pki(), work_dir=TOO_LONG)
    (directory / TOO_LONG).mkdir()
    (directory / TOO_LONG).chmod(0o770)
    assert start(directory, config).count("may be written by its group") == 1


def start(directory: Path, config: Path, prefix: str = "") -> str:
    """Start a node that must end by itself or within seconds; return its log."""
    command = f"{prefix} exec timeout 20 {sys.executable} -m hypha_worker run --config {config}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60).stderr


TOO_LONG = "d" * 60
"""With this work_dir the node ends once it has checked the host."""


@pytest.mark.parametrize(
    ("check_id", "changes", "prefix"),
    [
        ("machine.resources", {"resources": {"cpu": 4000}, "work_dir": TOO_LONG}, ""),
        ("machine.descriptors", {"work_dir": TOO_LONG}, "ulimit -n 1000;"),
        ("machine.file_size", {"work_dir": TOO_LONG}, "ulimit -f 10000;"),
        ("executors.programs", {"executor": {"cmd": "no-such-trainer"}}, ""),
        ("executors.placeholders", {"executor": {"args": ["{SOKET_PATH}"]}}, ""),
        ("executors.files", {"executor": {"args": ["--config_file", "/nowhere.yaml"]}}, ""),
        ("work_dir.access", {"work_dir": "/proc/self"}, ""),
        ("work_dir.path", {"work_dir": TOO_LONG}, ""),
    ],
)
def test_the_start_and_the_doctor_say_the_same(
    directory: Path, check_id: str, changes: dict[str, object], prefix: str
) -> None:
    config = write_config(directory, Pki(), **changes)  # type: ignore[arg-type]
    log = start(directory, config, prefix)
    command = f"{prefix} exec {sys.executable} -m hypha_worker doctor --json --config {config}"
    shown = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=90).stdout
    (examined,) = (check for check in json.loads(shown)["checks"] if check["id"] == check_id)
    (found,) = (finding for finding in examined["findings"] if finding["mark"] in ("warning", "failure"))
    assert f"{found['message']}. {found['remedy']}" in log.replace('\\"', '"')
    assert "Traceback" not in log
    assert next(check for check in CHECKS if check.id == check_id).at_start
