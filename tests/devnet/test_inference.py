"""The scheduler of inference, with simulated workers on a real network."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from hypha_contracts.command_line import leaves
from hypha_devnet import client
from hypha_devnet.config import InferenceJob
from hypha_devnet.roles.allocation import AllocationError
from hypha_devnet.roles.inference import InferenceScheduler
from hypha_devnet.roles.steps import JobFailedError
from hypha_executor.safetensors import read_header
from hypha_messages.advertisement import DECODERS
from hypha_messages.job import DataRecord
from hypha_network.network import Network
from support.certs import Pki
from support.networks import gateway, member
from support.volunteers import Volunteer

from .test_scheduler import Devnet

pytestmark = pytest.mark.anyio
SLICES = 7


def job(directory: Path | None, **changes: Any) -> InferenceJob:
    resources = {"num_workers": 2, "worker": {"cpu": 1.0}, "deadline_s": 5.0, **changes.pop("resources", {})}
    results = {"directory": str(directory)} if directory else {}
    return InferenceJob.model_validate(
        {
            "type": "inference",
            "model": {"type": "image-classification", "repository": "a/b", "filenames": ["config.json"]},
            "dataset": {"dataset": "digits"},
            "batch_size": 4,
            "results": results,
            "resources": resources,
            **changes,
        }
    )


class InferenceNet(Devnet):
    """A devnet with a scheduler of inference."""

    def __init__(self, pki: Pki, entrance: Network, network: Network, nursery: trio.Nursery, directory: Path) -> None:
        super().__init__(pki, entrance, network, nursery)
        self.directory = directory

    async def worker(self, name: str, **habits: Any) -> Volunteer:
        return await self.volunteer(name, "inference", **habits)

    async def run(self, **changes: Any) -> None:
        with trio.fail_after(30):
            await InferenceScheduler(self.network, job(self.directory, **changes), self.events).run()

    async def fails(self, **changes: Any) -> str:
        with pytest.raises((ExceptionGroup, JobFailedError)) as caught:
            await self.run(**changes)
        [error] = leaves(caught.value) if isinstance(caught.value, ExceptionGroup) else [caught.value]
        assert isinstance(error, JobFailedError | AllocationError)
        return str(error)

    @property
    def results(self) -> dict[int, str]:
        """The samples of each slice that has a result."""
        files = sorted(self.directory.iterdir())
        headers = {file: read_header(file) for file in files}
        return {int(file.stem): header.metadata["slice_index"] for file, header in headers.items()}


@asynccontextmanager
async def devnet(directory: Path) -> AsyncIterator[InferenceNet]:
    pki = Pki()
    async with (
        gateway(pki) as entrance,
        member(pki, "scheduler", entrance) as network,
        trio.open_nursery() as nursery,
    ):
        for topic, decode in DECODERS.items():
            entrance.subscribe(topic, decode, 1)
        await network.put_record("digits", DataRecord(num_slices=SLICES).model_dump_json().encode())
        yield InferenceNet(pki, entrance, network, nursery, directory)
        nursery.cancel_scope.cancel()


COMPLETE = {index: str(index) for index in range(SLICES)}


async def test_workers_share_a_dataset_and_each_slice_has_one_result(tmp_path: Path) -> None:
    async with devnet(tmp_path / "results") as net:
        workers = [await net.worker("a"), await net.worker("b")]
        await net.run()
        assert sorted(workers[0].slices + workers[1].slices) == list(range(SLICES))
        assert net.results == COMPLETE
        assert net.events.all[-1]["event"] == "finished"
        assert all(spec.executor.config.results.peers == [net.network.peer_id] for spec in workers[0].specs)


async def test_the_slices_of_a_worker_that_vanishes_are_predicted_by_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RENEWAL_RETRY_S", 0.1)
    async with devnet(tmp_path / "results") as net:
        gone = await net.worker("gone", lease_s=0.8, vanish_after_slices=1)
        there = await net.worker("there", batch_time_s=0.5)
        await net.run()
        assert net.results == COMPLETE
        assert gone.late_slice in there.slices
        [lost] = net.events.of("worker_lost")
        assert (lost["peer"], lost["slices"]) == (gone.network.peer_id, [gone.late_slice])


async def test_a_lone_worker_that_vanishes_is_replaced_by_one_that_joins_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RENEWAL_RETRY_S", 0.1)
    async with devnet(tmp_path / "results") as net:
        await net.worker("gone", lease_s=0.8, vanish_after_slices=2)

        async def come_later() -> None:
            await net.events.happened["predicted"].wait()
            await net.worker("later")

        net.nursery.start_soon(come_later)
        await net.run(resources={"num_workers": 1, "deadline_s": 20.0})
        assert net.results == COMPLETE


async def test_a_result_that_arrives_twice_counts_once(tmp_path: Path) -> None:
    async with devnet(tmp_path / "results") as net:
        worker = await net.worker("a")
        deliver, taken = worker.deliver, list[bool]()

        async def twice(*arguments: Any) -> bool:
            taken.append(await deliver(*arguments))
            before = (net.directory / f"{arguments[-1]}.safetensors").stat().st_mtime_ns
            taken.append(await deliver(*arguments))
            assert (net.directory / f"{arguments[-1]}.safetensors").stat().st_mtime_ns == before
            return all(taken)

        worker.deliver = twice  # type: ignore[method-assign]
        await net.run(resources={"num_workers": 1})
        assert taken == [True] * 2 * SLICES
        assert len(net.events.of("predicted")) == SLICES


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"job_id": "7b0f7b3e-4d0a-4c6b-9e52-0d6b3f7d2a11"}, "name no slice of this job"),
        ({"slice_index": "6"}, "slice 6 was never assigned to it"),
        ({"slice_index": "-1"}, "which is not a count"),
    ],
)
async def test_a_result_that_is_none_of_the_workers_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object], says: str
) -> None:
    async with devnet(tmp_path / "results") as net:
        await net.worker("liar", label_changes=changes)
        reason = await net.fails(resources={"deadline_s": 1.0, "num_workers": 1})
        assert says in caplog.text
        assert not net.results
        assert "the jobs of 1 others failed" in reason


async def test_a_result_beyond_the_limit_is_refused_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with devnet(tmp_path / "results") as net:
        await net.worker("large")
        results = {"directory": str(net.directory), "max_gb": 1e-7}
        await net.fails(resources={"deadline_s": 1.0, "num_workers": 1}, results=results)
        assert "it has more than 100 bytes" in caplog.text
        assert not list(net.directory.iterdir())


async def test_a_worker_whose_job_fails_is_not_hired_again(tmp_path: Path) -> None:
    async with devnet(tmp_path / "results") as net:
        bad = await net.worker("bad", fail_after_batches=1)
        await net.worker("good", batch_time_s=0.05)
        await net.run()
        assert len(bad.specs) == 1
        assert net.results == COMPLETE


async def test_a_worker_that_reports_nothing_is_lost_after_the_stall_time(tmp_path: Path) -> None:
    async with devnet(tmp_path / "results") as net:
        await net.worker("stuck", batch_time_s=1000)
        await net.worker("good", batch_time_s=0.05)
        await net.run(resources={"stall_s": 1.0})
        assert net.results == COMPLETE
        assert "no progress for 1 s" in net.events.of("worker_lost")[0]["reason"]


async def test_predictions_that_workers_keep_count_by_their_report(tmp_path: Path) -> None:
    async with devnet(tmp_path / "unused") as net:
        worker = await net.worker("a")
        await net.run(results={}, resources={"num_workers": 1})
        assert sorted(worker.slices) == list(range(SLICES))
        assert worker.specs[0].executor.config.results is None
        assert worker.answers[-1] == "Done"
        assert not net.directory.exists()


async def test_a_directory_with_the_results_of_another_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "0.safetensors").touch()
    async with devnet(tmp_path / "results") as net:
        assert "is not empty" in await net.fails()


async def test_a_network_without_workers_for_inference_fails_the_job(tmp_path: Path) -> None:
    async with devnet(tmp_path / "results") as net:
        await net.volunteer("trainer")
        reason = await net.fails(resources={"deadline_s": 1.0})
        assert reason == "found 0 of 2 for inference within 1 s"
