"""The command line and the job specification as every executor reads them."""

import json
from pathlib import Path

import pytest

from hypha_executor.arguments import executor_parser, read_job
from hypha_executor.errors import JobError
from hypha_executor.job import parse_job

JOB = {"job_id": "7b0f7b3e-4d0a-4c6b-9e52-0d6b3f7d2a11", "executor": {"class": "train", "config": {"batch_size": 8}}}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SOCKET_PATH", "WORK_DIR", "JOB_FILE"):
        monkeypatch.delenv(variable, raising=False)


def test_options_say_where_bridge_work_directory_and_job_are(tmp_path: Path) -> None:
    options = executor_parser("x").parse_args(["--socket", "s", "--work-dir", str(tmp_path), "--job", "{}"])
    assert (options.socket, options.work_dir) == (Path("s").resolve(), tmp_path)
    assert read_job(options) == "{}"


def test_the_environment_stands_in_for_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job_file = tmp_path / "job.json"
    job_file.write_text("{}")
    monkeypatch.setenv("SOCKET_PATH", "/s")
    monkeypatch.setenv("WORK_DIR", "/w")
    monkeypatch.setenv("JOB_FILE", str(job_file))
    options = executor_parser("x").parse_args([])
    assert (options.socket, options.work_dir, read_job(options)) == (Path("/s"), Path("/w"), "{}")
    assert read_job(executor_parser("x").parse_args(["--job", "[]"])) == "[]"


def test_an_option_that_nothing_stands_in_for_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        executor_parser("x").parse_args(["--socket", "s", "--job", "{}"])
    assert "--work-dir" in capsys.readouterr().err


def test_a_job_file_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    options = executor_parser("x").parse_args(["--socket", "s", "--work-dir", "w", "--job-file", str(tmp_path / "no")])
    with pytest.raises(JobError, match="check --job-file"):
        read_job(options)


def test_a_job_of_the_right_class_is_parsed() -> None:
    spec = parse_job(json.dumps(JOB), "train")
    assert (spec.job_id, spec.config.number("batch_size", low=1)) == (JOB["job_id"], 8)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{job", "not JSON"),
        ("[]", "job must be an object"),
        ("{}", r"job\.executor is missing"),
        (json.dumps(JOB | {"job_id": "12"}), "job_id must be a UUID"),
        (json.dumps(JOB | {"job_id": None}), "job_id must be text"),
        (json.dumps(JOB | {"executor": {"class": "aggregate"}}), "'aggregate', this executor runs 'train' jobs"),
        (json.dumps(JOB | {"executor": {"class": "train", "config": []}}), r"job\.executor\.config must be an object"),
    ],
)
def test_an_unusable_job_is_refused_with_the_path_of_the_wrong_field(text: str, says: str) -> None:
    with pytest.raises(JobError, match=says):
        parse_job(text, "train")
