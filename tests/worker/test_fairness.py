"""Who loses a place at the limit, and how often a party may do what costs the node something."""

from hypothesis import given
from hypothesis import strategies as st

from hypha_worker.connector.fairness import FairPlaces, FairRate


def test_the_party_with_the_most_places_loses_its_oldest_one() -> None:
    places: FairPlaces[int] = FairPlaces(4)
    for place, party in enumerate(["honest", "hostile", "hostile", "hostile"]):
        assert places.add(place, (party,)) is None
    assert places.add(4, ("another",)) == 1
    assert places.add(5, ("hostile",)) == 2


def test_within_the_heaviest_group_its_heaviest_member_loses() -> None:
    places: FairPlaces[int] = FairPlaces(5)
    for place, party in enumerate([("a", "x"), ("b", "y"), ("b", "z"), ("b", "z"), ("a", "x")]):
        assert places.add(place, party) is None
    assert places.add(5, ("c", "x")) == 2


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=60))
def test_a_party_within_its_equal_share_never_loses_a_place(parties: list[str]) -> None:
    limit = 12
    places: FairPlaces[int] = FairPlaces(limit)
    held: dict[int, str] = {}
    for place, party in enumerate(parties):
        held[place] = party
        if (lost := places.add(place, (party,))) is not None:
            assert list(held.values()).count(held[lost]) > limit / 4
            del held[lost]
        assert len(places) == len(held) <= limit


def test_a_rate_allows_a_burst_and_then_so_many_a_second() -> None:
    rate = FairRate(per_s=2, burst=5)
    assert sum(rate.take("party", 0.0) for _ in range(100)) == 5
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


def test_a_limited_number_of_parties_is_remembered() -> None:
    rate = FairRate(per_s=1, burst=1)
    for number in range(10_000):
        rate.take(number, 0.0)
    assert len(rate._buckets) == 4096
