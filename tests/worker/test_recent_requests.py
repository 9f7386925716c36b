from itertools import count

import pytest

from hypha_contracts.reasons import WorkerReason
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import peer_id_from_ed25519
from hypha_worker.market.evaluator import Refusal
from hypha_worker.market.recent_requests import MAX_REASON_CHARS, MAX_REQUESTS, RecentRequests
from support.worker import ALICE, BOB, HALF, TRAIN, WHOLE, ledger_of, request

LOW = Refusal(WorkerReason.BID_BELOW_FLOOR, "the bid 1 is below the floor 80")


@pytest.fixture
def recent() -> RecentRequests:
    return RecentRequests()


def peer(number: int) -> str:
    return peer_id_from_ed25519(number.to_bytes(32, "big"))


def test_refusals_of_one_scheduler_for_one_reason_count_as_one(recent: RecentRequests) -> None:
    for now in (1.0, 2.0, 3.0):
        recent.on_refused(ALICE, request(bid=now), LOW, now)
    recent.on_refused(BOB, request(), LOW, 4.0)
    bob, alice = recent.newest_first
    assert (bob.scheduler, bob.count) == (BOB, 1)
    assert (alice.count, alice.at, alice.bid, alice.reason) == (3, 3.0, 3.0, LOW.message)


def test_requests_that_may_get_an_offer_are_shown_one_by_one_with_their_offer(recent: RecentRequests) -> None:
    ledger, wanted = ledger_of(WHOLE, lambda: 0.0), request()
    recent.on_waiting(ALICE, wanted, 1.0)
    recent.on_waiting(ALICE, request(), 2.0)
    lease = ledger.offer(ALICE, wanted.id, [TRAIN], HALF, price=120)
    assert lease is not None
    recent.on_offered(lease)
    assert [(one.answer, one.price, one.lease_id) for one in recent.newest_first] == [
        ("waiting", 0.0, None),
        ("offered", 120, lease.id),
    ]


def test_a_request_that_waited_until_it_was_refused_is_shown_once(recent: RecentRequests) -> None:
    wanted = request()
    recent.on_waiting(ALICE, wanted, 1.0)
    recent.on_refused(ALICE, wanted, LOW, 2.0)
    assert [one.answer for one in recent.newest_first] == ["refused"]


def test_a_scheduler_that_keeps_asking_in_vain_hides_no_other(recent: RecentRequests) -> None:
    recent.on_refused(BOB, request(), LOW, 0.0)
    for now in range(10_000):
        recent.on_refused(ALICE, request(), LOW, now)
        recent.on_silence(ALICE, request(), "the worker is suspended", now)
    assert [(one.scheduler, one.answer) for one in recent.newest_first] == [
        (ALICE, "none"),
        (ALICE, "refused"),
        (BOB, "refused"),
    ]


def test_of_many_schedulers_the_latest_are_kept(recent: RecentRequests) -> None:
    for number in range(3 * MAX_REQUESTS):
        recent.on_refused(peer(number), request(), LOW, number)
    assert [one.at for one in recent.newest_first] == list(range(3 * MAX_REQUESTS - 1, 2 * MAX_REQUESTS - 1, -1))


def test_requests_that_nobody_verified_take_one_place_for_each_reason(recent: RecentRequests) -> None:
    recent.on_refused(BOB, request(), LOW, 0.0)
    for number in range(3 * MAX_REQUESTS):
        recent.on_excluded(Refusal(WorkerReason.SCHEDULER_BLOCKED, f"scheduler {peer(number)} is blocked"), number)
    excluded, bob = recent.newest_first
    assert (excluded.scheduler, excluded.count) == ("", 3 * MAX_REQUESTS)
    assert bob.scheduler == BOB


def test_long_texts_of_peers_are_cut_before_they_are_kept(recent: RecentRequests) -> None:
    names = count()
    executors = tuple(ExecutorDescriptor(class_="train", name=f"{next(names)}{'x' * 60_000}") for _ in range(64))
    recent.on_refused(ALICE, request(executors=executors), LOW._replace(message="y" * 60_000), 0.0)
    (kept,) = recent.newest_first
    assert len(kept.reason) == MAX_REASON_CHARS
    assert sum(map(len, kept.executors)) < 200
