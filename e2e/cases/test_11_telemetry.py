"""What an OpenTelemetry collector outside the cluster learns of a training in pods."""

from collections.abc import Iterator

import pytest

from e2e import installation
from e2e.cluster.tools import ToolError, tool
from e2e.devnet import Devnet
from e2e.kube import eventually
from e2e.monitoring import Collector, running_collector
from e2e.settings import OUTPUT, Settings
from e2e.traces import IN_A_POD, OF_A_PARAMETER_SERVER, OF_A_TRAINER, trees_at
from e2e.workers import Worker

_JOB_S = 300
_EXPORT_S = 60
_METRICS_S = 120
"""Metrics are exported once a minute."""


@pytest.fixture
def collector(settings: Settings) -> Iterator[Collector]:
    try:
        tool("collector")
    except ToolError as error:
        pytest.skip(str(error))
    with running_collector(OUTPUT / "collector", installation.host(settings)) as running:
        yield running


@pytest.fixture
def observed_farm(farm: list[Worker], collector: Collector) -> Iterator[list[Worker]]:
    """The farm, while it exports to the collector."""
    for worker in farm:
        worker.change(telemetry={"endpoint": collector.http})
    yield [worker.ready() for worker in farm]
    for worker in farm:
        worker.change(telemetry=None)
    for worker in farm:
        worker.ready()


def test_a_collector_receives_one_complete_trace_for_each_job_of_a_training(
    devnet: Devnet, observed_farm: list[Worker], collector: Collector
) -> None:
    training = devnet.train(2)
    tasks = training.tasks()
    training.accuracy(_JOB_S)
    jobs = len(tasks)
    eventually(
        "the collector has the end of each job",
        lambda: sum("job" in job.spans for job in trees_at(collector)) == jobs,
        _EXPORT_S,
    )
    paths = [job.paths for job in trees_at(collector) if "job" in job.spans]
    lacking = [
        sorted((expected | IN_A_POD) - job) for job in paths for expected in (OF_A_TRAINER, OF_A_PARAMETER_SERVER)
    ]
    assert lacking.count([]) == jobs, lacking
    eventually(
        "the collector has the metrics",
        lambda: (
            {"hypha.worker.jobs.ended", "hypha.network.gateways", "hypha.job.transfer"}
            <= {metric["name"] for metric in collector.metrics()}
        ),
        _METRICS_S,
    )
    nodes = {item["resource"]["service.instance.id"] for item in (*collector.spans(), *collector.logs())}
    assert nodes == {f"{worker.namespace}/{worker.name}" for worker in observed_farm}
