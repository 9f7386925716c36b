import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import fmean
from typing import Any

import pytest
import trio

from hypha_contracts.command_line import leaves
from hypha_devnet import client
from hypha_devnet.client import Offer
from hypha_devnet.config import DilocoJob
from hypha_devnet.roles.allocation import AllocationError, choose
from hypha_devnet.roles.scheduler import Scheduler
from hypha_devnet.roles.steps import JobFailedError
from hypha_messages.advertisement import TOPIC, decode
from hypha_messages.api import API, JobStatus, ReportJobStatus, RequestData, WorkerOffer
from hypha_messages.job import DataRecord
from hypha_messages.progress import PROGRESS, Progress, ReportProgress, Status
from hypha_messages.types import Resources, SystemTime
from hypha_network.network import Network
from support.certs import Pki
from support.networks import gateway, member, node
from support.recorded_events import Recorded
from support.volunteers import Rendezvous, Volunteer

pytestmark = pytest.mark.anyio
SLICES = 5


def job(**changes: Any) -> DilocoJob:
    resources = {
        "num_workers": 2,
        "worker": {"cpu": 1.0},
        "parameter_server": {"cpu": 1.0},
        "deadline_s": 10.0,
        **changes.pop("resources", {}),
    }
    return DilocoJob.model_validate(
        {
            "model": {"type": "image-classification", "repository": "a/b", "filenames": ["config.json"]},
            "dataset": {"dataset": "digits"},
            "rounds": {"update_rounds": 3, "avg_samples_between_updates": 40, "max_batch_size": 4},
            "inner_optimizer": {"learning-rate": 0.1},
            "outer_optimizer": {"learning-rate": 0.7, "momentum": 0.9},
            "resources": resources,
            **changes,
        }
    )


class Devnet:
    """A gateway, a scheduler's node that has also announced a dataset, and the volunteers that a test adds."""

    def __init__(self, pki: Pki, entrance: Network, network: Network, nursery: trio.Nursery) -> None:
        self.pki, self.entrance, self.network, self.nursery = pki, entrance, network, nursery
        self.meeting = Rendezvous()
        self.events = Recorded()

    async def volunteer(self, name: str, class_: str = "train", **habits: Any) -> Volunteer:
        ready: list[Volunteer] = []

        async def run(task_status: trio.TaskStatus[None]) -> None:
            async with member(self.pki, name, self.entrance) as network:
                ready.append(Volunteer(network, class_, self.meeting, **habits))
                await ready[0].run(task_status)

        await self.nursery.start(run)
        return ready[0]

    def new_scheduler(self, **changes: Any) -> Scheduler:
        return Scheduler(self.network, job(**changes), self.events)

    async def run(self, **changes: Any) -> None:
        with trio.fail_after(30):
            await self.new_scheduler(**changes).run()

    async def fails(self, **changes: Any) -> str:
        with pytest.raises(ExceptionGroup) as group:
            await self.run(**changes)
        [error] = leaves(group.value)
        assert isinstance(error, JobFailedError | AllocationError)
        return str(error)


@asynccontextmanager
async def devnet() -> AsyncIterator[Devnet]:
    pki = Pki()
    async with (
        gateway(pki) as entrance,
        member(pki, "scheduler", entrance) as network,
        trio.open_nursery() as nursery,
    ):
        entrance.subscribe(TOPIC, decode, 1)
        await network.put_record("digits", DataRecord(num_slices=SLICES).model_dump_json().encode())
        yield Devnet(pki, entrance, network, nursery)
        nursery.cancel_scope.cancel()


async def test_a_job_runs_to_its_end() -> None:
    async with devnet() as net:
        trainers = [await net.volunteer("a"), await net.volunteer("b")]
        server = await net.volunteer("server", "aggregate")
        await net.run()
        assert [entry["round"] for entry in net.events.of("round")] == [1, 2, 3]
        losses: dict[str, float] = {}
        for entry in net.events.all:
            if entry["event"] == "metrics":
                losses[entry["peer"]] = entry["metrics"]["loss"]
            elif entry["event"] == "round":
                assert entry["loss"] == (round(fmean(losses.values()), 4) if losses else None)
        assert net.events.all[-1]["event"] == "finished"
        assert sum(len(trainer.batches) for trainer in trainers) * 4 >= 3 * 40
        assert {entry["peer"] for entry in net.events.of("metrics")} == {t.network.peer_id for t in trainers}
        assert {entry["status"] for entry in net.events.of("job_status")} == {"Finished"}
        assert len(net.events.of("job_status")) == 3
        assert server.answers == ["Ok", "Ok", "Done"]


async def test_each_worker_gets_its_part_of_the_job() -> None:
    async with devnet() as net:
        trainers = [await net.volunteer("a"), await net.volunteer("b")]
        server = await net.volunteer("server", "aggregate")
        await net.run()
        ids = {trainer.network.peer_id for trainer in trainers}
        [aggregate] = server.specs
        assert set(aggregate.executor.config.updates.peers) == set(aggregate.executor.config.results.peers) == ids
        for trainer in trainers:
            [spec] = trainer.specs
            assert spec.job_id == aggregate.job_id
            assert spec.executor.config.updates.peers == [server.network.peer_id]
            assert spec.executor.config.data.peer == net.network.peer_id
            assert spec.executor.config.batch_size == 4


async def test_every_slice_is_assigned_before_any_is_assigned_again() -> None:
    async with devnet() as net:
        trainers = [await net.volunteer("a"), await net.volunteer("b")]
        await net.volunteer("server", "aggregate")
        await net.run()
        counts = Counter(index for trainer in trainers for index in trainer.slices)
        assert set(counts) == set(range(SLICES))
        assert max(counts.values()) - min(counts.values()) <= 1


async def test_the_cheapest_workers_are_hired() -> None:
    async with devnet() as net:
        dear = await net.volunteer("dear", price=90.0)
        cheap = [await net.volunteer("a", price=20.0), await net.volunteer("b", price=10.0)]
        await net.volunteer("server", "aggregate")
        await net.run()
        assert all(trainer.specs for trainer in cheap)
        assert not dear.specs
        assert len(net.events.of("offer")) >= 4


async def test_a_worker_that_joins_late_is_found() -> None:
    async with devnet() as net:
        await net.volunteer("a")
        await net.volunteer("server", "aggregate")

        async def come_late() -> None:
            await net.events.happened["lease"].wait()
            await net.volunteer("b")

        net.nursery.start_soon(come_late)
        await net.run()
        assert net.events.all[-1]["event"] == "finished"


async def test_too_few_workers_fail_the_job_with_their_number() -> None:
    async with devnet() as net:
        await net.volunteer("a")
        await net.volunteer("too dear", price=101.0)
        reason = await net.fails(resources={"deadline_s": 1.0})
        assert reason == "found 1 of 2 for trainer within 1 s"


async def test_a_dataset_that_no_node_announces_is_named() -> None:
    async with devnet() as net:
        reason = await net.fails(dataset={"dataset": "letters"}, resources={"deadline_s": 1.0})
        assert "'letters'" in reason


async def test_a_failed_trainer_fails_the_job() -> None:
    async with devnet() as net:
        bad = await net.volunteer("bad", fail_after_batches=3)
        await net.volunteer("good")
        await net.volunteer("server", "aggregate")
        reason = await net.fails()
        assert reason.startswith(f"lost the trainer {bad.network.peer_id}: its job failed")


async def test_a_job_that_needs_fewer_trainers_continues_without_a_failed_one() -> None:
    async with devnet() as net:
        await net.volunteer("bad", fail_after_batches=3)
        await net.volunteer("good")
        await net.volunteer("server", "aggregate")
        await net.run(resources={"min_workers": 1})
        assert len(net.events.of("worker_lost")) == 1
        assert net.events.all[-1]["event"] == "finished"


async def test_a_worker_that_is_unreachable_for_part_of_its_lease_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RENEWAL_RETRY_S", 0.1)
    async with devnet() as net:
        away = await net.volunteer("away", lease_s=1.2, refuse_renewals=range(2, 5), batch_time_s=0.1)
        await net.volunteer("there", batch_time_s=0.1)
        await net.volunteer("server", "aggregate")
        await net.run()
        assert away.renewals > 5
        assert not net.events.of("worker_lost")


async def test_a_job_without_progress_fails_after_the_stall_time() -> None:
    async with devnet() as net:
        await net.volunteer("a", batch_time_s=1000)
        await net.volunteer("b", batch_time_s=1000)
        await net.volunteer("server", "aggregate")
        assert await net.fails(resources={"stall_s": 0.5}) == "no worker has reported any progress for 0.5 s"


async def test_a_network_without_its_gateway_is_an_error() -> None:
    pki = Pki()
    async with node(pki, "scheduler", gateways=("/ip4/127.0.0.1/tcp/1",)) as network:
        with pytest.raises(ExceptionGroup) as group:
            await Scheduler(network, job(resources={"deadline_s": 0.5}), Recorded()).run()
        assert "no gateway was reached" in str(leaves(group.value)[0])


async def test_a_worker_that_is_unreachable_at_dispatch_gets_its_job_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "DISPATCH_RETRY_S", 0.1)
    async with devnet() as net:
        away = await net.volunteer("away", ignore_dispatches=2)
        await net.volunteer("there")
        await net.volunteer("server", "aggregate")
        await net.run()
        assert len(away.specs) == 1


async def test_a_worker_that_never_accepts_its_job_fails_the_job_when_its_lease_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "RENEWAL_RETRY_S", 0.1)
    async with devnet() as net:
        gone = await net.volunteer("gone", ignore_dispatches=1000, lease_s=0.5, refuse_renewals=range(2, 1000))
        await net.volunteer("there")
        await net.volunteer("server", "aggregate")
        assert gone.network.peer_id in await net.fails()


async def test_a_worker_that_stays_unreachable_is_lost_when_its_lease_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RENEWAL_RETRY_S", 0.1)
    async with devnet() as net:
        await net.volunteer("gone", lease_s=0.6, refuse_renewals=range(2, 1000), batch_time_s=0.1)
        await net.volunteer("there", batch_time_s=0.1)
        await net.volunteer("server", "aggregate")
        reason = await net.fails(rounds={"update_rounds": 50, "avg_samples_between_updates": 100, "max_batch_size": 1})
        assert reason.endswith("its lease ended; 2 are needed")


async def test_a_parameter_server_that_reports_after_its_trainers_still_ends_the_job() -> None:
    async with devnet() as net:
        trainers = [await net.volunteer("a"), await net.volunteer("b")]
        await net.volunteer("server", "aggregate", says_so_late_s=0.2)
        await net.run()
        assert all(trainer.answers[-1] == "Done" for trainer in trainers)
        assert [entry["round"] for entry in net.events.of("round")] == [1, 2, 3]


async def test_a_scheduler_leaves_only_after_the_last_report_was_answered() -> None:
    async with devnet() as net:
        volunteers = [await net.volunteer("a"), await net.volunteer("b"), await net.volunteer("server", "aggregate")]
        with trio.fail_after(30):
            async with member(net.pki, "another", net.entrance) as network:
                await Scheduler(network, job(), net.events).run()
            for volunteer in volunteers:
                await volunteer.reported.wait()


async def test_peers_outside_the_job_get_no_slices_and_change_nothing() -> None:
    async with devnet() as net, member(net.pki, "stranger", net.entrance) as stranger:
        net.new_scheduler()
        peer = net.network.peer_id
        progress = ReportProgress(job_id=uuid.uuid4(), progress=Progress(status=Status(batch_size=1)))
        status = ReportJobStatus(task_id=uuid.uuid4(), status=JobStatus(type="Failed"))
        offer = WorkerOffer(
            id=uuid.uuid4(),
            request_id=uuid.uuid4(),
            price=1.0,
            resources=Resources(),
            timeout=SystemTime.from_timestamp(time.time()),
        )
        assert (await stranger.request(peer, PROGRESS, progress)).type == "Error"
        assert (await stranger.request(peer, API, RequestData(dataset="digits"))).index is None
        await stranger.request(peer, API, status)
        await stranger.request(peer, API, offer)
        assert not net.events.all


def offer_of(peer_id: str, price: float, *, cpu: float = 1.0, lasts_s: float = 1.0) -> Offer:
    message = WorkerOffer(
        id=uuid.uuid4(),
        request_id=uuid.uuid4(),
        price=price,
        resources=Resources(cpu=cpu),
        timeout=SystemTime.from_timestamp(1000.0 + lasts_s),
    )
    return Offer(peer_id, message)


def chosen(*offers: Offer, count: int = 9, max_price: float = 100.0, excluded: tuple[str, ...] = ()) -> list[str]:
    return [offer.peer_id for offer in choose(offers, count, max_price, excluded, 1000.0)]


class TestChoosing:
    def test_the_lowest_price_per_offered_unit_is_chosen_first(self) -> None:
        assert chosen(offer_of("a", 10), offer_of("b", 30, cpu=4), offer_of("c", 5)) == ["c", "b", "a"]

    def test_at_most_the_wanted_number_and_one_offer_of_each_peer_are_chosen(self) -> None:
        assert chosen(offer_of("a", 10), offer_of("a", 5), offer_of("b", 20), offer_of("c", 30), count=2) == ["a", "b"]

    def test_expensive_expired_and_excluded_offers_are_not_chosen(self) -> None:
        offers = offer_of("dear", 101), offer_of("late", 1, lasts_s=-0.1), offer_of("used", 1), offer_of("good", 100)
        assert chosen(*offers, excluded=("used",)) == ["good"]

    def test_an_offer_without_resources_is_chosen_last(self) -> None:
        assert chosen(offer_of("nothing", 0, cpu=0), offer_of("dear", 99)) == ["dear", "nothing"]
