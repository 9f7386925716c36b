from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock

from hypha_contracts.reach import Reach
from hypha_messages.types import Resources, peer_id_from_ed25519
from hypha_worker.market.arbiter import Arbiter
from hypha_worker.market.capacity import Capacity, NodeKind
from hypha_worker.market.evaluator import Policy
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.starts import StartRecord
from hypha_worker.market.waiting import WaitingRequests
from hypha_worker.telemetry import Telemetry
from support.worker import AGGREGATE, ALICE, BOB, HALF, TINY, TRAIN, WHOLE, Market, request, settings_by

pytestmark = pytest.mark.anyio

WHOLE_WORKER = Policy(capacity=Capacity(WHOLE), minimum=TINY, executors=frozenset([TRAIN]), price=100, floor=80)
FLEXIBLE = replace(WHOLE_WORKER, offer="flexible")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Setting:
    """An arbiter in a market; expired leases are removed as the node does it."""

    def __init__(self, policy: Policy) -> None:
        self.market = Market()
        settings = settings_by(policy)
        self.ledger = Ledger(settings.rules, trio.current_time)
        self.starts = StartRecord()
        self.starts.on_proven(settings.proven_at)
        self.arbiter = Arbiter(
            self.market,
            self.ledger,
            settings,
            Telemetry(),
            starts=self.starts,
            waiting=WaitingRequests(1000, 0.2, 100),
            requests_per_s=1000,
            wall_clock=trio.current_time,
        )

    async def prune(self) -> None:
        while True:
            await trio.sleep(0.25)
            for lease in self.ledger.expire():
                self.arbiter.on_offer_lapsed(lease.scheduler)
                self.arbiter.on_capacity_freed()


@asynccontextmanager
async def arbiter(policy: Policy) -> AsyncIterator[Setting]:
    setting = Setting(policy)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setting.arbiter.run)
        nursery.start_soon(setting.prune)
        yield setting
        nursery.cancel_scope.cancel()


async def test_a_lone_request_is_answered_without_waiting_for_others() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        wanted = request()
        setting.market.advertise(ALICE, wanted)
        await trio.sleep(0.001)
        (offer,) = setting.market.offers[ALICE]
    assert setting.market.offered_at[wanted.id] == pytest.approx(trio.current_time(), abs=0.002)
    assert (offer.request_id, offer.resources, offer.price) == (wanted.id, WHOLE, 100)
    assert offer.timeout.timestamp == pytest.approx(setting.market.offered_at[wanted.id] + 0.5, abs=0.002)


async def test_requests_that_arrive_together_compete_and_the_best_wins() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        setting.market.advertise(ALICE, request(bid=90))
        setting.market.advertise(BOB, request(bid=95))
        await trio.sleep(0.1)
        assert not setting.market.offers[ALICE]
        assert len(setting.market.offers[BOB]) == 1


async def test_all_requests_that_fit_together_get_offers_at_once() -> None:
    async with arbiter(FLEXIBLE) as setting:
        setting.market.advertise(ALICE, request(HALF))
        await trio.sleep(0.01)
        setting.market.advertise(BOB, request(HALF))
        await trio.sleep(0.001)
        assert len(setting.market.offers[ALICE]) == len(setting.market.offers[BOB]) == 1


async def test_each_gpu_is_offered_once_however_little_of_it_is_asked_for() -> None:
    two_gpus = replace(FLEXIBLE, capacity=Capacity(Resources(cpu=8, memory=8, storage=8, gpu=160)), gpu_device=80)
    async with arbiter(two_gpus) as setting:
        setting.market.advertise(ALICE, *[request(Resources(cpu=1, gpu=10)) for _ in range(8)])
        await trio.sleep(0.4)
        assert [(offer.resources.cpu, offer.resources.gpu) for offer in setting.market.offers[ALICE]] == [(1, 80)] * 2


async def test_requests_that_compete_with_an_outstanding_offer_are_collected_for_a_window() -> None:
    async with arbiter(FLEXIBLE) as setting:
        setting.market.advertise(ALICE, request(HALF))
        await trio.sleep(0.01)
        late = request(HALF, bid=200)
        setting.market.advertise(ALICE, request(HALF, bid=100), request(HALF, bid=110))
        await trio.sleep(0.1)
        setting.market.advertise(BOB, late)
        await trio.sleep(0.05)
        assert not setting.market.offers[BOB]
        await trio.sleep(0.1)
        assert [offer.request_id for offer in setting.market.offers[BOB]] == [late.id]
        assert len(setting.market.offers[ALICE]) == 1


async def test_a_request_that_did_not_fit_gets_an_offer_when_another_lapses() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        setting.market.advertise(ALICE, request())
        await trio.sleep(0.01)
        setting.market.advertise(BOB, request())
        await trio.sleep(0.4)
        assert not setting.market.offers[BOB]
        await trio.sleep(0.4)
        assert len(setting.market.offers[BOB]) == 1


async def test_an_undeliverable_offer_frees_its_resources_at_once() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        setting.market.unreachable.add(ALICE)
        setting.market.advertise(ALICE, request(bid=200))
        setting.market.advertise(BOB, request(bid=100))
        await trio.sleep(0.01)
        assert len(setting.market.offers[BOB]) == 1
        assert [lease.scheduler for lease in setting.ledger.leases] == [BOB]


async def test_a_request_that_is_published_again_is_answered_once() -> None:
    async with arbiter(FLEXIBLE) as setting:
        wanted = request(Resources(cpu=0.1))
        for _ in range(3):
            setting.market.advertise(ALICE, wanted)
            await trio.sleep(0.05)
        assert len(setting.market.offers[ALICE]) == 1


async def test_after_its_offer_lapsed_a_request_may_be_published_again() -> None:
    async with arbiter(FLEXIBLE) as setting:
        wanted = request()
        setting.market.advertise(ALICE, wanted)
        await trio.sleep(1)
        setting.market.advertise(ALICE, wanted)
        await trio.sleep(0.01)
        assert len(setting.market.offers[ALICE]) == 2


async def test_a_scheduler_that_floods_and_accepts_nothing_does_not_starve_another() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        setting.market.advertise(ALICE, *[request(bid=1000) for _ in range(500)])
        await trio.sleep(0.01)
        assert len(setting.market.offers[ALICE]) == 1
        setting.market.advertise(BOB, request(bid=100))
        await trio.sleep(0.8)
        assert len(setting.market.offers[BOB]) == 1


async def test_a_scheduler_that_answers_slowly_gets_its_offers_a_few_at_a_time() -> None:
    async with arbiter(FLEXIBLE) as setting:
        setting.market.delay_s = 0.1
        setting.market.advertise(ALICE, *[request(Resources(cpu=0.001)) for _ in range(100)])
        await trio.sleep(0.05)
        assert len(setting.ledger.leases) == 32
        await trio.sleep(1)
        assert len(setting.market.offers[ALICE]) == 100


async def test_schedulers_that_accept_nothing_cannot_take_turns_to_starve_another() -> None:
    crowd = [peer_id_from_ed25519(number.to_bytes(32)) for number in range(20)]
    async with arbiter(WHOLE_WORKER) as setting:
        for _ in range(120):
            for scheduler in crowd:
                setting.market.advertise(scheduler, request(bid=1e308))
            setting.market.advertise(BOB, request(bid=100))
            await trio.sleep(0.5)
            if setting.market.offers[BOB]:
                break
        assert setting.market.offers[BOB]
        assert trio.current_time() < 60


async def test_a_full_worker_rates_none_of_the_waiting_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    rated = 0

    def score(*_: object) -> tuple[float, float]:
        nonlocal rated
        rated += 1
        return 0.0, 0.0

    monkeypatch.setattr(Policy, "score", score)
    async with arbiter(replace(FLEXIBLE, minimum=HALF)) as setting:
        for scheduler in (ALICE, BOB):
            lease = setting.ledger.offer(scheduler, uuid4(), [TRAIN], HALF)
            assert lease is not None
            setting.ledger.renew(lease.id, scheduler)
        setting.market.advertise(ALICE, *[request(Resources()) for _ in range(200)])
        for _ in range(20):
            setting.arbiter.on_capacity_freed()
            await trio.sleep(0.1)
        assert rated == 0
        assert not setting.market.offers


async def test_unwanted_requests_leave_the_arbiter_working() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        setting.market.advertise(ALICE, request(bid=1), request(Resources(gpu=1e300)), request(timeout=0))
        wanted = request()
        setting.market.advertise(BOB, wanted)
        await trio.sleep(0.3)
        assert [offer.request_id for offer in setting.market.offers[BOB]] == [wanted.id]
        assert not setting.market.offers[ALICE]
        assert (setting.arbiter.requests.considered, setting.arbiter.requests.refused) == (1, 3)


async def test_a_stopping_node_makes_no_offers() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        setting.arbiter.stop()
        setting.market.advertise(ALICE, request())
        await trio.sleep(1)
        assert not setting.market.offers
        assert not setting.ledger.leases


async def test_five_hundred_requests_a_second_that_fit_all_get_offers() -> None:
    async with arbiter(FLEXIBLE) as setting:
        for number in range(1000):
            setting.market.advertise([ALICE, BOB][number % 2], request(Resources(cpu=0.001), request_id=uuid4()))
            await trio.sleep(0.002)
        await trio.sleep(0.3)
        assert sum(map(len, setting.market.offers.values())) == 1000


async def test_a_blocked_scheduler_gets_no_offers_and_the_owner_learns_why() -> None:
    async with arbiter(replace(WHOLE_WORKER, blocked=frozenset([ALICE]))) as setting:
        setting.market.advertise(ALICE, request(bid=900))
        setting.market.advertise(BOB, request())
        await trio.sleep(0.3)
        assert set(setting.market.offers) == {BOB}
        assert not setting.arbiter._serves(ALICE)
        assert setting.arbiter._serves(BOB)
        refusal = setting.arbiter.requests.last_refusal
        assert refusal is not None
        assert refusal.reason == "SchedulerBlocked"


async def test_messages_that_claim_to_come_from_an_excluded_scheduler_hide_no_answered_requests() -> None:
    async with arbiter(replace(FLEXIBLE, allowed=frozenset([BOB]))) as setting:
        setting.market.advertise(BOB, request(Resources(cpu=0.1)))
        await trio.sleep(0.1)
        for _ in range(200):
            assert not setting.arbiter._serves(ALICE)
        assert (setting.arbiter.requests.considered, setting.arbiter.requests.refused) == (1, 0)


async def test_a_scheduler_at_its_share_waits_and_others_go_first() -> None:
    async with arbiter(replace(FLEXIBLE, max_share=0.5)) as setting:
        setting.market.advertise(ALICE, request(HALF, bid=500), request(HALF, bid=400))
        setting.market.advertise(BOB, request(HALF, bid=90))
        await trio.sleep(0.1)
        assert [offer.price for offer in setting.market.offers[ALICE]] == [500]
        assert [offer.price for offer in setting.market.offers[BOB]] == [90]
        await trio.sleep(1)
        assert [offer.price for offer in setting.market.offers[ALICE]] == [500, 400]


async def test_an_offer_takes_another_node_if_the_cheapest_kind_is_taken() -> None:
    small, large = Resources(cpu=2, memory=8, storage=50), Resources(cpu=4, memory=4, storage=100, gpu=1)
    total = Resources(cpu=6, memory=12, storage=150, gpu=1)
    nodes = replace(WHOLE_WORKER, capacity=Capacity(total, kinds=(NodeKind(1, large), NodeKind(1, small))))
    async with arbiter(nodes) as setting:
        setting.market.advertise(ALICE, *[request(Resources(cpu=1)) for _ in range(3)])
        await trio.sleep(0.2)
        offered = sorted((offer.resources for offer in setting.market.offers[ALICE]), key=lambda part: part.gpu)
        assert offered == [small, large]


async def test_at_most_two_jobs_are_under_way_until_one_has_started() -> None:
    async with arbiter(FLEXIBLE) as setting:
        setting.starts.on_proven(None)
        setting.market.advertise(ALICE, *[request(Resources(cpu=0.1), timeout=1e9) for _ in range(5)])
        await trio.sleep(0.3)
        assert len(setting.market.offers[ALICE]) == 2
        for lease in setting.ledger.leases:
            setting.ledger.renew(lease.id, ALICE)
        setting.ledger.assign(ALICE, TRAIN, task_id := uuid4())
        await trio.sleep(0.5)
        assert len(setting.market.offers[ALICE]) == 2
        setting.ledger.record_started(task_id)
        setting.starts.on_started(trio.current_time())
        setting.arbiter.on_capacity_freed()
        await trio.sleep(0.3)
        assert len(setting.market.offers[ALICE]) == 5


async def test_two_failed_starts_stop_the_offers_until_a_proof() -> None:
    async with arbiter(FLEXIBLE) as setting:
        for failed in (1.0, 2.0):
            setting.starts.on_failed(failed)
        setting.market.advertise(ALICE, request(HALF))
        await trio.sleep(0.3)
        assert not setting.market.offers
        setting.starts.on_proven(3.0)
        setting.market.advertise(ALICE, request(HALF))
        await trio.sleep(0.3)
        assert len(setting.market.offers[ALICE]) == 1


AGGREGATES = replace(FLEXIBLE, executors=frozenset([TRAIN, AGGREGATE]), aggregate_needs_reach=True)


async def test_a_request_to_aggregate_is_answered_once_the_reach_is_known() -> None:
    async with arbiter(AGGREGATES) as setting:
        setting.market.advertise(ALICE, request(TINY, executors=(AGGREGATE,)))
        setting.market.advertise(BOB, request(TINY))
        await trio.sleep(1)
        assert (len(setting.market.offers[ALICE]), len(setting.market.offers[BOB])) == (0, 1)
        assert setting.arbiter.requests.considered == 1
        setting.arbiter.apply(settings_by(replace(AGGREGATES, reach=Reach.PUBLIC)))
        await trio.sleep(0.1)
        assert len(setting.market.offers[ALICE]) == 1
        assert setting.arbiter.requests.considered == 2


async def test_a_request_to_aggregate_is_refused_with_the_reason_once_the_reach_does_not_suffice() -> None:
    async with arbiter(AGGREGATES) as setting:
        setting.market.advertise(ALICE, request(TINY, executors=(AGGREGATE,)))
        await trio.sleep(1)
        requests = setting.arbiter.requests
        assert (requests.considered, requests.refused) == (0, 0)
        setting.arbiter.apply(settings_by(replace(AGGREGATES, reach=Reach.NONE)))
        assert (requests.considered, requests.refused) == (0, 1)
        setting.market.advertise(ALICE, request(TINY, executors=(AGGREGATE,)))
        await trio.sleep(1)
        assert (requests.considered, requests.refused) == (0, 2)
        assert requests.last_refusal is not None
        assert requests.last_refusal.reason == "NoBulkData"
        assert not setting.market.offers[ALICE]


async def test_a_request_to_aggregate_does_not_wait_longer_than_its_scheduler() -> None:
    async with arbiter(AGGREGATES) as setting:
        setting.market.advertise(ALICE, request(TINY, executors=(AGGREGATE,), timeout=trio.current_time() + 5))
        await trio.sleep(6)
        setting.arbiter.apply(settings_by(replace(AGGREGATES, reach=Reach.PUBLIC)))
        await trio.sleep(1)
        assert not setting.market.offers[ALICE]


async def test_other_settings_apply_to_requests_that_wait_and_to_later_ones() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        setting.market.advertise(BOB, request(bid=95))
        await trio.sleep(0.01)
        (lease,) = setting.ledger.leases
        setting.ledger.renew(lease.id, BOB)
        setting.market.advertise(ALICE, request(bid=95))
        await trio.sleep(0.3)
        setting.arbiter.apply(settings_by(replace(WHOLE_WORKER, price=200, floor=150)))
        setting.ledger.assign(BOB, TRAIN, task_id := uuid4())
        setting.ledger.end(task_id, "Finished")
        setting.arbiter.on_capacity_freed()
        await trio.sleep(0.3)
        assert not setting.market.offers[ALICE]
        setting.market.advertise(ALICE, request(bid=160))
        await trio.sleep(0.3)
        assert [offer.price for offer in setting.market.offers[ALICE]] == [200]


async def test_a_suspended_worker_makes_no_offers_until_it_is_resumed() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        setting.arbiter.apply(replace(settings_by(WHOLE_WORKER), offers=False))
        setting.market.advertise(ALICE, request())
        await trio.sleep(0.3)
        assert not setting.market.offers
        setting.arbiter.apply(settings_by(WHOLE_WORKER))
        setting.market.advertise(ALICE, request())
        await trio.sleep(0.3)
        assert len(setting.market.offers[ALICE]) == 1


async def test_the_answer_to_each_request_is_remembered() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        setting.market.advertise(ALICE, request(bid=1), request(bid=2))
        setting.market.advertise(BOB, request())
        await trio.sleep(0.01)
        setting.market.advertise(ALICE, request(bid=90))
        await trio.sleep(0.3)
        (lease,) = setting.ledger.leases
        assert [(one.scheduler, one.answer, one.count) for one in setting.arbiter.recent.newest_first] == [
            (ALICE, "waiting", 1),
            (BOB, "offered", 1),
            (ALICE, "refused", 2),
        ]
        assert setting.arbiter.recent.newest_first[1].lease_id == lease.id
        setting.arbiter.apply(settings_by(replace(WHOLE_WORKER, floor=150)))
        latest = setting.arbiter.recent.newest_first[0]
        assert (latest.scheduler, latest.answer, latest.reason) == (
            ALICE,
            "refused",
            "the bid 90 is below the floor 150",
        )


async def test_requests_are_remembered_with_the_reason_why_the_worker_makes_no_offers() -> None:
    async with arbiter(WHOLE_WORKER) as setting:
        made = settings_by(WHOLE_WORKER)
        for settings, reason in (
            (replace(made, offers=False, suspended=True), "the worker is suspended"),
            (replace(made, offers=False), "jobs could not run; see the conditions of the HyphaWorker"),
        ):
            setting.arbiter.apply(settings)
            setting.market.advertise(ALICE, request())
            await trio.sleep(0.01)
            (one,) = setting.arbiter.recent.newest_first
            assert (one.answer, one.reason, setting.arbiter.silence) == ("none", reason, reason)
        setting.arbiter.apply(made)
        assert setting.arbiter.silence is None
        for failed in (1.0, 2.0):
            setting.starts.on_failed(failed)
        assert setting.arbiter.silence == "the last jobs did not start"
        setting.arbiter.stop()
        assert setting.arbiter.silence == "the node is stopping"


async def test_a_request_that_nobody_verified_is_remembered_without_a_scheduler() -> None:
    async with arbiter(replace(WHOLE_WORKER, blocked=frozenset([ALICE]))) as setting:
        assert not setting.arbiter._serves(ALICE)
        (one,) = setting.arbiter.recent.newest_first
        assert (one.scheduler, one.answer) == ("", "refused")
        assert "is blocked" in one.reason
