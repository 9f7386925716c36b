"""From `helm install` to a trained model."""

from e2e import installation
from e2e.devnet import Devnet
from e2e.kube import Kube, condition
from e2e.settings import Settings
from e2e.workers import Worker
from hypha_devnet.demo.models import DIGITS

_JOB_S = 600


def test_the_release_passes_its_own_test(kube: Kube, operator: None, settings: Settings) -> None:
    installation.check_release(kube, settings)


def test_the_digits_are_trained_by_pods_to_the_accuracy_of_the_demo(
    kube: Kube, devnet: Devnet, farm: list[Worker]
) -> None:
    training = devnet.train(DIGITS.rounds)
    tasks = training.tasks()
    accuracy = training.accuracy(_JOB_S)
    assert DIGITS.score.verdict(accuracy, alone=accuracy, baseline=0).good
    for task in tasks:
        job = kube.get("hyphajobs", farm[0].namespace, f"hypha-{task}")
        assert job is not None
        assert job["status"]["phase"] == "Succeeded", job["status"]
    for worker in farm:
        worker.free()


def test_kubectl_get_shows_the_state_of_workers_and_jobs(kube: Kube, farm: list[Worker]) -> None:
    namespace = ("--namespace", farm[0].namespace)
    workers = kube.kubectl("get", "hyphaworkers", *namespace)
    jobs = kube.kubectl("get", "hyphajobs", *namespace)
    for column in ("READY", "PEER", "GATEWAYS", "LEASES", "JOBS", "AGE"):
        assert column in workers
    for column in ("WORKER", "EXECUTOR", "PHASE", "ROUND", "LOSS", "SAMPLES/S", "ROUNDS/H", "AGE"):
        assert column in jobs
    for worker in farm:
        assert worker.peer_id in workers
        assert condition(worker.get(), "Connected")["status"] == "True"
