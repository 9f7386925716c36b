"""Who loses a place at the limit, and how often a party may do what costs the node something."""

from contextlib import ExitStack

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from hypha_network.fairness import FairPlaces, FairRate


def losses(limit: int, parties: list[tuple[str, ...]]) -> list[list[int]]:
    """Take a place for each party in turn. Return the places that were lost after each step."""

    async def hold_all() -> list[list[int]]:
        places, steps = FairPlaces(limit), []
        with ExitStack() as stack:
            scopes: list[trio.CancelScope] = []
            for party in parties:
                scopes.append(stack.enter_context(places.hold(*party)))
                steps.append([number for number, scope in enumerate(scopes) if scope.cancel_called])
        return steps

    return trio.run(hold_all)


def test_the_party_with_the_most_places_loses_its_oldest_one() -> None:
    parties = [(name,) for name in ("honest", "hostile", "hostile", "hostile", "another", "hostile")]
    assert losses(4, parties)[3:] == [[], [1], [1, 2]]


def test_within_the_heaviest_group_its_heaviest_member_loses() -> None:
    parties = [("a", "x"), ("b", "y"), ("b", "z"), ("b", "z"), ("a", "x"), ("c", "x")]
    assert losses(5, parties)[4:] == [[], [2]]


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=60))
def test_a_party_within_its_equal_share_never_loses_a_place(parties: list[str]) -> None:
    limit, lost_before = 12, set[int]()
    for step, lost in enumerate(map(set, losses(limit, [(party,) for party in parties]))):
        held = [party for number, party in enumerate(parties[: step + 1]) if number not in lost_before]
        for number in lost - lost_before:
            assert held.count(parties[number]) > limit / 4
        assert step + 1 - len(lost) == min(step + 1, limit)
        lost_before = lost


async def hold(places: FairPlaces, party: str, lost: list[str]) -> None:
    with places.hold(party):
        await trio.sleep_forever()
    lost.append(party)


@pytest.mark.anyio
async def test_a_party_at_its_limit_loses_its_oldest_place() -> None:
    places, lost = FairPlaces(limit=100, limit_per_party=3), []
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(hold, places, "greedy", lost)
            await wait_all_tasks_blocked()
        assert (lost, places.held_by("greedy")) == (["greedy"] * 2, 3)
        nursery.cancel_scope.cancel()
    assert places.held_by("greedy") == 0


@pytest.mark.anyio
async def test_whoever_goes_on_without_a_place_is_never_cancelled() -> None:
    places = FairPlaces(limit=1)
    with places.hold("party") as place:
        places.free(place)
        with places.hold("party"), places.hold("party"):
            pass
        places.make_room()
        await trio.lowlevel.checkpoint()
        assert not place.cancel_called


def test_a_rate_allows_a_burst_and_then_so_many_a_second() -> None:
    rate = FairRate(per_s=2, burst=50)
    assert sum(rate.take("party", 0.0) for _ in range(100)) == 50
    assert sum(rate.take("party", second / 10) for second in range(1, 101)) == 20
    assert rate.take("another", 10.0)


def test_a_token_that_is_given_back_does_not_count() -> None:
    rate = FairRate(per_s=1, burst=1)
    for _ in range(100):
        assert rate.take("party", 0.0)
        rate.give_back("party", 0.0)


def test_those_who_wait_for_a_token_queue_up() -> None:
    rate = FairRate(per_s=10, burst=1)
    assert [round(rate.take_later("party", 0.0), 3) for _ in range(4)] == [0.0, 0.1, 0.2, 0.3]


def test_a_hundred_flooding_parties_share_the_total_rate_with_an_honest_one() -> None:
    rate = FairRate(1000, 1000, total_per_s=1000)
    taken, honest = 0, 0
    for tick in range(2000):
        now = tick / 100
        taken += sum(rate.take(number, now) for number in range(100) for _ in range(3))
        if tick % 100 == 0:
            honest += rate.take("honest", now)
    assert honest == 20
    assert taken < 1000 * 20 + 100 * 100


def test_a_limited_number_of_parties_is_remembered_for_a_limited_time() -> None:
    rate = FairRate(per_s=1, burst=1)
    for number in range(10_000):
        rate.take(number, 0.0)
    assert len(rate._buckets) == 4096
    rate.take("later", 60.0)
    assert len(rate._buckets) == 1
