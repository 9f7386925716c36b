from hypha_worker.market.waiting import Waiting, WaitingRequests
from support.worker import ALICE, BOB, request


def waiting(scheduler: str = ALICE, since: float = 0.0, **wanted: object) -> Waiting:
    return Waiting(scheduler, request(**wanted), since)


def test_a_request_that_is_repeated_waits_once() -> None:
    requests = WaitingRequests(100, 0.2, 100)
    first = waiting()
    assert requests.add(first)
    assert not requests.add(Waiting(ALICE, first.request, 1.0))
    assert len(requests) == 1


def test_the_same_request_id_of_another_scheduler_is_another_request() -> None:
    requests = WaitingRequests(100, 0.2, 100)
    first = waiting()
    assert requests.add(first)
    assert requests.add(Waiting(BOB, first.request, 0.0))


def test_competing_requests_are_due_when_the_window_of_the_first_is_over() -> None:
    requests = WaitingRequests(100, 0.2, 100)
    assert requests.due_in(5.0) == float("inf")
    requests.add(waiting(since=5.0))
    requests.add(waiting(since=5.1))
    assert abs(requests.due_in(5.15) - 0.05) < 1e-9
    assert requests.due_in(9.0) == 0


def test_a_full_window_is_due_at_once() -> None:
    requests = WaitingRequests(100, 0.2, 3)
    for _ in range(3):
        requests.add(waiting(since=1.0))
    assert requests.due_in(1.0) == 0


def test_a_request_that_was_passed_over_is_no_longer_fresh_but_waits() -> None:
    requests = WaitingRequests(100, 0.2, 100)
    requests.add(waiting())
    requests.pass_over()
    assert requests.fresh == ()
    assert len(requests.all) == 1


def test_a_scheduler_that_floods_gets_a_quarter_of_the_places() -> None:
    requests = WaitingRequests(100, 0.2, 100)
    assert sum(requests.add(waiting(ALICE)) for _ in range(1000)) == 25
    assert requests.add(waiting(BOB))


def test_at_the_limit_the_oldest_request_is_removed() -> None:
    requests = WaitingRequests(4, 0.2, 100)
    peers = [f"peer{number}" for number in range(5)]
    for peer in peers:
        assert requests.add(waiting(peer))
    assert [w.scheduler for w in requests.all] == peers[1:]


def test_expired_requests_are_removed() -> None:
    requests = WaitingRequests(100, 0.2, 100)
    requests.add(waiting(since=0.0, timeout=50))
    requests.add(waiting(since=0.0, timeout=1e6))
    requests.drop_expired(now=1.0, wall_clock=50.0)
    assert len(requests) == 1
    requests.drop_expired(now=10.5, wall_clock=60.0)
    assert len(requests) == 0
    assert requests.add(waiting())


def test_a_scheduler_that_lets_an_offer_lapse_stands_back_until_it_accepts_one_or_time_passes() -> None:
    requests = WaitingRequests(100, 0.2, 100)
    requests.record_lapsed(ALICE, 1.0)
    assert requests.stands_back(ALICE, 2.9)
    assert not requests.stands_back(ALICE, 3.0)
    assert not requests.stands_back(BOB, 1.0)
    requests.record_lapsed(ALICE, 5.0)
    requests.record_accepted(ALICE)
    assert not requests.stands_back(ALICE, 5.0)


def test_a_scheduler_that_lets_every_offer_lapse_stands_back_ever_longer_up_to_a_bound() -> None:
    requests = WaitingRequests(100, 0.2, 100)
    now, pauses = 0.0, []
    for _ in range(6):
        requests.record_lapsed(ALICE, now)
        pauses.append(next(s for s in range(1000) if not requests.stands_back(ALICE, now + s)))
        now += 1000
    assert pauses == [2, 8, 32, 128, 128, 128]


def test_the_lapses_of_a_bounded_number_of_schedulers_are_recorded() -> None:
    requests = WaitingRequests(100, 0.2, 100)
    for number in range(10_000):
        requests.record_lapsed(f"peer {number}", 0.0)
    assert len(requests._lapsed) <= 4096


def test_a_request_is_contained_while_it_waits_whether_it_is_fresh_or_not() -> None:
    requests, one = WaitingRequests(100, 0.2, 100), waiting()
    assert one.key not in requests
    requests.add(one)
    assert one.key in requests
    requests.pass_over()
    assert one.key in requests
    requests.remove(one)
    assert one.key not in requests
