"""Inference by pods: each slice of the digits is predicted once."""

from e2e import workers
from e2e.devnet import Devnet
from e2e.kube import Kube
from e2e.workers import Namespaces, Worker

_JOB_S = 300


def test_pods_predict_every_slice_of_the_digits_once(kube: Kube, devnet: Devnet, namespaces: Namespaces) -> None:
    namespace = namespaces("hypha-e2e-inference")
    worker = Worker(kube, devnet, namespace, "inference", workers.inference_spec(devnet, "inference")).apply().ready()
    job = devnet.infer()
    assert not job.process.ended(_JOB_S), job.process.last_lines()
    slices = sorted(event["index"] for event in job.of("predicted"))
    assert slices == list(range(len(list(devnet.files.held_out.iterdir()))))
    assert sorted(int(path.stem) for path in job.predictions.iterdir()) == slices
    for event in job.of("dispatched"):
        hypha_job = kube.get("hyphajobs", namespace, f"hypha-{event['task']}")
        assert hypha_job is not None
        assert hypha_job["status"]["phase"] == "Succeeded", hypha_job["status"]
    worker.free()
    worker.delete()
