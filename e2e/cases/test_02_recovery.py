"""Controllers and operators that disappear while the network trains a model."""

import random
import time

import pytest

from e2e import installation
from e2e.devnet import Devnet, Training
from e2e.kube import Kube, eventually
from e2e.settings import load
from e2e.workers import Worker

_ROUNDS = 6
_WANTED_ACCURACY = 0.9
_JOB_S = 300


def uids(kube: Kube, farm: list[Worker], tasks: list[str], kind: str) -> dict[str, str]:
    """Return the objects of these tasks, by name."""
    names = {f"hypha-{task}" for task in tasks}
    items = (item["metadata"] for item in kube.items(kind, farm[0].namespace))
    return {
        item["name"]: item["uid"]
        for item in items
        if item["name"] in names or item["labels"].get("hypha.space/job") in names
    }


def wait_for_a_random_moment(training: Training, chance: random.Random) -> None:
    if after := chance.randrange(_ROUNDS - 1):
        training.until_round(after)
    time.sleep(chance.uniform(0, 8 if not after else 2))


@pytest.mark.parametrize("attempt", range(1, load().repeats + 1))
def test_a_controller_deleted_while_training_loses_no_lease_and_the_training_succeeds(
    kube: Kube, devnet: Devnet, farm: list[Worker], attempt: int
) -> None:
    chance = random.Random(attempt)
    training = devnet.train(_ROUNDS)
    tasks = training.tasks()
    before = {kind: uids(kube, farm, tasks, kind) for kind in ("hyphajobs", "jobs")}
    assert len(before["hyphajobs"]) == len(tasks)
    wait_for_a_random_moment(training, chance)
    victim = chance.choice(farm)
    pod = victim.controller()
    assert pod is not None
    kube.delete("pods", victim.namespace, pod["metadata"]["name"], chance.choice([0, None]))
    accuracy = training.accuracy(_JOB_S)
    assert accuracy > _WANTED_ACCURACY
    assert uids(kube, farm, tasks, "hyphajobs") == before["hyphajobs"]
    jobs = uids(kube, farm, tasks, "jobs")
    assert len(jobs) == len(tasks)
    assert before["jobs"].items() <= jobs.items()
    assert len(uids(kube, farm, tasks, "pods")) == len(tasks)
    for worker in farm:
        worker.ready()
        worker.free()


def test_an_operator_killed_while_training_orphans_and_duplicates_no_object(
    kube: Kube, devnet: Devnet, farm: list[Worker]
) -> None:
    training = devnet.train(_ROUNDS)
    tasks: list[str] = []
    for _ in range(3):
        installation.kill_operator(kube)
        tasks = training.tasks()
        time.sleep(3)
    accuracy = training.accuracy(_JOB_S)
    assert accuracy > _WANTED_ACCURACY
    eventually("the operator is ready", lambda: installation.operator_ready(kube), 120)
    for kind in ("hyphajobs", "jobs", "pods"):
        assert len(uids(kube, farm, tasks, kind)) == len(tasks), kind

    def phases() -> list[str]:
        jobs = (kube.get("hyphajobs", farm[0].namespace, f"hypha-{task}") or {} for task in tasks)
        return [job["status"]["phase"] for job in jobs]

    eventually("all jobs have succeeded", lambda: phases() == ["Succeeded"] * len(tasks), 60)
    for worker in farm:
        worker.free()
