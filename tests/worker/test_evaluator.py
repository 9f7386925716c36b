import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_contracts.reach import DESCRIPTIONS, Reach
from hypha_messages.advertisement import RequestWorker
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Resources
from hypha_worker.market.capacity import Capacity, NodeKind
from hypha_worker.market.evaluator import Policy, Preferences
from support.worker import AGGREGATE, ALICE, BOB, HALF, TINY, TRAIN, WHOLE, request

POLICY = Policy(capacity=Capacity(WHOLE), minimum=TINY, executors=frozenset([TRAIN]), price=150, floor=80)


def terms(policy: Policy, wanted: RequestWorker) -> tuple[Resources, float]:
    """What the only option of an offer reserves, and its price."""
    (reserved,) = policy.options(wanted)
    return reserved, policy.asked_price(wanted)


@pytest.mark.parametrize(
    ("wanted", "reason", "words"),
    [
        (request(executors=(AGGREGATE,)), "ExecutorUnsupported", "aggregate/test is not supported"),
        (request(executors=(TRAIN, AGGREGATE)), "ExecutorUnsupported", "aggregate/test is not supported"),
        (request(executors=()), "NoExecutor", "names no executor"),
        (request(bid=79), "BidBelowFloor", "below the floor 80"),
        (request(Resources(cpu=4.1)), "MoreThanCapacity", "4.1 cores, of which this worker has 4"),
        (request(timeout=100), "RequestExpired", "expired"),
    ],
)
def test_a_request_that_never_gets_an_offer_is_refused_with_a_reason(
    wanted: RequestWorker, reason: str, words: str
) -> None:
    refusal = POLICY.refusal(wanted, now=100)
    assert refusal is not None
    assert refusal.reason == reason
    assert words in refusal.message


AGGREGATES = replace(POLICY, executors=frozenset([TRAIN, AGGREGATE]), aggregate_needs_reach=True)


@pytest.mark.parametrize("reach", [Reach.LIMITED_RELAY, Reach.NONE])
def test_a_worker_to_which_peers_cannot_send_bulk_data_refuses_to_aggregate_alone(reach: Reach) -> None:
    hidden = replace(AGGREGATES, reach=reach)
    for executors in ((AGGREGATE,), (TRAIN, AGGREGATE)):
        refusal = hidden.refusal(request(executors=executors), now=100)
        assert refusal is not None
        assert (refusal.reason, DESCRIPTIONS[reach] in refusal.message) == ("NoBulkData", True)
    assert hidden.refusal(request(), now=100) is None
    assert replace(hidden, aggregate_needs_reach=False).refusal(request(executors=(AGGREGATE,)), now=100) is None


@pytest.mark.parametrize("reach", [Reach.PUBLIC, Reach.PUNCHABLE, Reach.BULK_RELAY])
def test_a_worker_to_which_peers_can_send_bulk_data_may_aggregate(reach: Reach) -> None:
    wanted = request(executors=(AGGREGATE,))
    assert replace(AGGREGATES, reach=reach).refusal(wanted, now=100) is None
    assert not replace(AGGREGATES, reach=reach).postpones(wanted)


def test_requests_to_aggregate_wait_until_the_reach_is_known() -> None:
    assert AGGREGATES.reach is None
    assert AGGREGATES.postpones(request(executors=(AGGREGATE,)))
    assert not AGGREGATES.postpones(request())
    assert not replace(AGGREGATES, aggregate_needs_reach=False).postpones(request(executors=(AGGREGATE,)))
    too_low = AGGREGATES.refusal(request(bid=1, executors=(AGGREGATE,)), now=100)
    assert too_low is not None


def test_a_request_at_the_floor_for_the_complete_worker_may_get_an_offer() -> None:
    assert POLICY.refusal(request(WHOLE, bid=80), now=100) is None


def test_flexible_offers_the_requested_resources_at_the_bid() -> None:
    assert terms(replace(POLICY, offer="flexible"), request(HALF, bid=90)) == (HALF, 90)


TWO_GPUS = Capacity(Resources(cpu=4, memory=4, storage=4, gpu=160))
DEVICES = replace(POLICY, offer="flexible", capacity=TWO_GPUS, gpu_device=80)


@pytest.mark.parametrize(("asked", "offered"), [(0, 0), (10, 80), (80, 80), (80.1, 160), (160, 160)])
def test_offers_are_rounded_up_to_whole_gpus_that_leases_cannot_share(asked: float, offered: float) -> None:
    wanted = Resources(cpu=1, memory=1, storage=1, gpu=asked)
    assert terms(DEVICES, request(wanted)) == (wanted.model_copy(update={"gpu": offered}), 100)


def test_a_request_for_more_gpus_than_the_worker_has_is_refused() -> None:
    assert DEVICES.refusal(request(Resources(gpu=160)), now=100) is None
    odd = replace(DEVICES, capacity=Capacity(Resources(cpu=1, memory=1, storage=1, gpu=100)))
    for policy, asked in ((DEVICES, 161), (odd, 90), (replace(DEVICES, gpu_device=0.1), 1e308)):
        refusal = policy.refusal(request(Resources(gpu=asked)), now=100)
        assert refusal is not None
        assert refusal.reason == "MoreThanCapacity"


def test_a_refusal_for_lack_of_capacity_names_every_resource_and_both_amounts() -> None:
    refusal = POLICY.refusal(request(Resources(cpu=1, memory=40, storage=200)), now=100)
    assert refusal is not None
    memory, storage = "40 GB of memory, of which this worker has 16", "200 GB of storage, of which this worker has 100"
    assert refusal.message == f"it asks for {memory}, and for {storage}"
    odd_capacity = Capacity(Resources(cpu=1, memory=1, storage=1, gpu=100))
    odd = replace(DEVICES, capacity=odd_capacity).refusal(request(Resources(gpu=90)), now=100)
    assert odd is not None
    assert odd.message == "it asks for 160 GB of GPU memory, of which this worker has 100"


def test_the_score_counts_whole_gpus() -> None:
    little, much = request(Resources(gpu=10), bid=100), request(Resources(gpu=80), bid=101)
    for selection in ("profit", "utilization"):
        policy = replace(DEVICES, selection=selection)
        assert policy.score(ALICE, much, policy.capacity.total) > policy.score(ALICE, little, policy.capacity.total)


@pytest.mark.parametrize(("bid", "price"), [(90, 150), (200, 200)])
def test_whole_offers_the_worker_at_the_better_of_price_and_bid(bid: float, price: float) -> None:
    assert terms(POLICY, request(HALF, bid=bid)) == (WHOLE, price)


def test_profit_weighs_the_bid_by_the_resources_as_the_network_does() -> None:
    policy = replace(POLICY, offer="flexible")
    score = policy.score(ALICE, request(Resources(gpu=2, cpu=10, memory=100, storage=1000), bid=160), WHOLE)
    assert score[0] == pytest.approx(160 / (2 * 25 + 10 * 1 + 100 * 0.1 + 1000 * 0.01))


def test_utilization_prefers_the_request_that_uses_more_free_capacity() -> None:
    policy = replace(POLICY, offer="flexible", selection="utilization")
    filling, small, large = request(HALF), request(Resources(cpu=1), bid=900), request(WHOLE, bid=900)
    ranked = sorted([small, large, filling], key=lambda r: policy.score(ALICE, r, HALF), reverse=True)
    assert ranked == [filling, small, large]


def test_affinity_prefers_schedulers_and_executors_and_then_profit() -> None:
    preferences = Preferences(schedulers={ALICE: 2, BOB: -1}, executors={"train": 1, "aggregate/test": 5})
    policy = replace(POLICY, selection="affinity", preferences=preferences)

    def score(scheduler: str, **wanted: object) -> tuple[float, float]:
        return policy.score(scheduler, request(**wanted), WHOLE)

    assert score(ALICE) > score(BOB, bid=1000)
    assert score(BOB, executors=(AGGREGATE,)) > score(ALICE)
    assert score(ALICE, bid=200) > score(ALICE, bid=100)


MINIMUM = replace(POLICY, offer="flexible", minimum=Resources(gpu=1, cpu=1, memory=4, storage=20))


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        (Resources(), Resources(cpu=1, memory=4, storage=20)),
        (Resources(cpu=1, memory=1), Resources(cpu=1, memory=4, storage=20)),
        (Resources(gpu=5e-324, cpu=5e-324), Resources(gpu=1, cpu=1, memory=4, storage=20)),
        (Resources(cpu=2, memory=8, storage=30), Resources(cpu=2, memory=8, storage=30)),
    ],
)
def test_amounts_that_a_request_leaves_open_are_raised_to_the_minimum(asked: Resources, offered: Resources) -> None:
    assert MINIMUM.refusal(request(asked), now=100) is None
    assert terms(MINIMUM, request(asked))[0] == offered


@pytest.mark.parametrize("selection", ["profit", "utilization", "affinity"])
@pytest.mark.parametrize("offer", ["whole", "flexible"])
def test_a_request_for_nothing_at_a_low_bid_never_outranks_a_large_one_that_pays(offer: str, selection: str) -> None:
    policy = replace(MINIMUM, offer=offer, selection=selection)
    nothing, large = request(Resources(), bid=1), request(Resources(cpu=4, memory=16, storage=100), bid=1000)
    assert policy.score(ALICE, large, WHOLE) > policy.score(BOB, nothing, WHOLE)


def test_a_request_that_names_more_executors_is_not_preferred() -> None:
    preferences = Preferences(executors={"train": 1, "aggregate": 5})
    policy = replace(POLICY, selection="affinity", preferences=preferences)
    both, one = request(executors=(TRAIN, AGGREGATE)), request()
    assert policy.score(ALICE, both, WHOLE) == policy.score(ALICE, one, WHOLE)


amounts = st.floats(min_value=0, max_value=1e308)


@given(
    st.builds(Resources, gpu=amounts, cpu=amounts, memory=amounts, storage=amounts),
    st.sampled_from(["whole", "flexible"]),
    st.sampled_from([0.0, 4.0]),
)
def test_every_offer_limits_every_resource_and_fits_into_the_worker(
    asked: Resources, offer: str, gpu_device: float
) -> None:
    policy = replace(MINIMUM, offer=offer, gpu_device=gpu_device)
    wanted = request(asked)
    if policy.refusal(wanted, now=100) is None:
        reserved, _ = terms(policy, wanted)
        assert reserved.fits_into(WHOLE)
        assert reserved.cpu >= 1
        assert reserved.memory >= 4
        assert reserved.storage >= 20
        assert offer == "whole" or bool(reserved.gpu) == bool(asked.gpu)


@given(
    st.sampled_from(["profit", "utilization", "affinity"]),
    st.lists(st.tuples(*[st.floats(min_value=0, max_value=1e308)] * 5), min_size=2, max_size=5),
    st.tuples(*[st.floats(min_value=0, max_value=1e308)] * 4),
)
def test_every_request_has_a_comparable_score(
    selection: str, wanted: list[tuple[float, ...]], free: tuple[float, ...]
) -> None:
    policy = replace(POLICY, selection=selection)
    room = Resources(gpu=free[0], cpu=free[1], memory=free[2], storage=free[3])
    for gpu, cpu, memory, storage, bid in wanted:
        resources = Resources(gpu=gpu, cpu=cpu, memory=memory, storage=storage)
        assert not any(math.isnan(part) for part in policy.score(ALICE, request(resources, bid), room))


def test_a_worker_listens_on_the_topic_of_all_workers_and_on_those_of_its_executors() -> None:
    inference = ExecutorDescriptor(class_="inference", name="test")
    assert replace(POLICY, executors=frozenset([inference])).topics == ["hypha/worker", "hypha/worker/inference"]
    assert replace(POLICY, executors=frozenset([TRAIN, AGGREGATE])).topics == ["hypha/worker"]


LARGE, SMALL = Resources(cpu=64, memory=64, storage=64), Resources(cpu=4, memory=64, storage=64, gpu=80)
KINDS = (NodeKind(2, LARGE), NodeKind(1, SMALL))
MIXED = replace(POLICY, capacity=Capacity(Resources(cpu=200, memory=640, storage=640, gpu=80), kinds=KINDS))


def test_whole_offers_the_cheapest_kind_of_node_on_which_a_request_fits_and_then_the_others() -> None:
    assert MIXED.options(request(Resources(cpu=2))) == (LARGE, SMALL)
    assert MIXED.options(request(Resources(cpu=5))) == (LARGE,)
    assert MIXED.options(request(Resources(gpu=1))) == (SMALL,)


def test_flexible_offers_the_request_if_it_fits_on_one_node() -> None:
    wanted = Resources(cpu=5, memory=1, storage=1)
    assert terms(replace(MIXED, offer="flexible"), request(wanted, bid=90)) == (wanted, 90)


def test_a_request_that_only_two_nodes_together_could_serve_is_refused() -> None:
    refusal = MIXED.refusal(request(Resources(cpu=5, gpu=1)), now=100)
    assert refusal is not None
    assert refusal == ("MoreThanPerJob", "no single node of this worker has all that it asks for")


def test_a_request_beyond_the_share_of_its_scheduler_is_refused_with_both_amounts() -> None:
    policy = replace(POLICY, offer="flexible", max_share=0.5)
    assert policy.refusal(request(HALF), now=100) is None
    refusal = policy.refusal(request(Resources(cpu=3)), now=100)
    assert refusal is not None
    assert refusal == ("MoreThanShare", "its lease would reserve 3 cores, of which one scheduler may have 2")


def test_blocked_schedulers_and_those_that_are_not_allowed_get_no_offers() -> None:
    assert POLICY.exclusion(ALICE) is None
    blocking = replace(POLICY, blocked=frozenset([ALICE])).exclusion(ALICE)
    assert blocking is not None
    assert blocking.reason == "SchedulerBlocked"
    allowing = replace(POLICY, allowed=frozenset([BOB]))
    assert allowing.exclusion(BOB) is None
    missing = allowing.exclusion(ALICE)
    assert missing is not None
    assert missing.reason == "SchedulerNotAllowed"
    assert replace(POLICY, allowed=frozenset([BOB]), blocked=frozenset([BOB])).exclusion(BOB)
