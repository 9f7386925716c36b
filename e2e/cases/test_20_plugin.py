"""`kubectl hypha` beside a job that trains. Pictures of what it prints are in e2e-output/pictures."""

import json
import tarfile
from pathlib import Path

import pytest
from rich.text import Text

from e2e import terminal
from e2e.devnet import Devnet, Training
from e2e.kube import Kube, eventually
from e2e.workers import Worker
from hypha_contracts.findings import Mark
from hypha_devnet.demo.models import DIGITS


@pytest.fixture(scope="module")
def training(devnet: Devnet, farm: list[Worker]) -> Training:
    """A job in its third round."""
    training = devnet.train(DIGITS.rounds)
    training.until_round(2)
    return training


class Plugin:
    """Runs the plugin as a user does, through kubectl."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube, self._namespace = kube, namespace

    def __call__(self, command: str, *arguments: str, picture: str = "") -> str:
        """Return the text that it prints, and draw it if `picture` names a picture."""
        flags = ("--namespace", self._namespace, *self._kube.flags)
        printed = terminal.run(self._kube.program, "hypha", command, *arguments, *flags)
        if picture:
            path = Path(terminal.PICTURES, f"{picture}.svg")
            terminal.draw(path, f"kubectl hypha {' '.join((command, *arguments))}", printed)
        return Text.from_ansi(printed).plain


@pytest.fixture(scope="module")
def hypha(kube: Kube, farm: list[Worker]) -> Plugin:
    return Plugin(kube, farm[0].namespace)


def test_status_shows_the_workers_and_their_jobs_as_a_tree(
    hypha: Plugin, training: Training, farm: list[Worker]
) -> None:
    shown = hypha("status", picture="kubectl-status")
    assert all(worker.name in shown for worker in farm)
    for task in training.tasks():
        assert task[:8] in shown
    workers = json.loads(hypha("status", "-o", "json"))["workers"]
    assert {worker["name"] for worker in workers} == {worker.name for worker in farm}


def test_jobs_shows_the_progress_of_each_trainer(hypha: Plugin, training: Training) -> None:
    shown = hypha("jobs", picture="kubectl-jobs")
    for column in ("ROUND", "LOSS", "SAMPLES/S"):
        assert column in shown
    jobs = json.loads(hypha("jobs", "-o", "json"))["jobs"]
    trained = [job for job in jobs if job["name"].removeprefix("hypha-") in training.tasks() and job["round"]]
    assert max(job["round"] for job in trained) >= 2, jobs


def test_logs_shows_bridge_and_executor_in_one(hypha: Plugin, training: Training) -> None:
    task = training.tasks()[0]
    shown = eventually("both containers have logged", lambda: _of_both(hypha("logs", f"hypha-{task}")))
    assert "round" in shown


def _of_both(logs: str) -> str:
    return logs if "bridge" in logs and "executor" in logs else ""


def test_check_finds_nothing_wrong_with_the_installation(hypha: Plugin, training: Training) -> None:
    checks = json.loads(hypha("check", "-o", "json"))["checks"]
    assert checks
    assert [check for check in checks if check["mark"] == Mark.FAILURE] == []
    hypha("check", picture="kubectl-check")


def test_report_holds_the_workers_and_none_of_their_keys(
    hypha: Plugin, training: Training, devnet: Devnet, farm: list[Worker], tmp_path: Path
) -> None:
    bundle = tmp_path / "report.tar.gz"
    hypha("report", "--output", str(bundle))
    with tarfile.open(bundle) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers() if member.isfile()}
        texts = {name: file.read().decode(errors="replace") for name, file in files.items() if file}
    assert any(farm[0].name in name for name in texts)
    keys = [devnet.files.certificates / f"{worker.node}-key.pem" for worker in farm]
    secrets = [line for key in keys for line in key.read_text().splitlines() if not line.startswith("-")]
    assert not [name for name, text in texts.items() if any(secret in text for secret in secrets)]


def test_drain_waits_for_the_jobs_and_resume_lets_the_worker_offer_again(
    hypha: Plugin, training: Training, devnet: Devnet, farm: list[Worker]
) -> None:
    training.accuracy(600)
    another = devnet.train(2)
    another.tasks()
    (worker, *_) = eventually("a worker has a job", lambda: [worker for worker in farm if open_jobs(worker)])
    assert worker.name in hypha("drain", worker.name)
    assert worker.get()["spec"]["suspend"] is True
    assert open_jobs(worker) == []
    another.accuracy(60)
    hypha("resume", worker.name)
    worker.ready()
    assert not worker.get()["spec"].get("suspend")


def open_jobs(worker: Worker) -> list[str]:
    """Return the names of a worker's jobs that have not ended."""
    jobs = [(job["metadata"]["name"], job.get("status", {}).get("phase")) for job in worker.jobs()]
    return [name for name, phase in jobs if phase not in ("Succeeded", "Failed")]
