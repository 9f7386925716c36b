"""Which worker predicts which slice: each slice counts once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hypha_devnet.roles.assignments import Assignments


def test_slices_are_assigned_in_their_order_and_a_finished_one_never_again() -> None:
    slices = Assignments(3)
    assert [slices.next("a"), slices.next("b"), slices.next("a"), slices.next("b")] == [0, 1, 2, None]
    assert slices.finish(0)
    assert not slices.finish(0)
    assert slices.release("a") == [2]
    assert slices.next("b") == 2
    assert not slices.finished


def test_a_lost_worker_may_deliver_a_slice_before_it_is_assigned_again() -> None:
    slices = Assignments(2)
    slices.next("lost")
    slices.release("lost")
    assert slices.was_given("lost", 0)
    assert slices.finish(0)
    assert slices.next("other") == 1
    assert slices.next("other") is None


@settings(deadline=None)
@given(st.data())
def test_whatever_happens_every_slice_is_done_once_all_workers_finish_what_they_get(data: st.DataObject) -> None:
    slices = Assignments(data.draw(st.integers(0, 6)))
    counted = 0
    for _ in range(data.draw(st.integers(0, 30))):
        peer = data.draw(st.sampled_from("abc"))
        match data.draw(st.sampled_from(("next", "finish", "release"))):
            case "next":
                slices.next(peer)
            case "release":
                slices.release(peer)
            case "finish":
                given_ = [index for index in range(slices.count) if slices.was_given(peer, index)]
                if given_:
                    counted += slices.finish(data.draw(st.sampled_from(given_)))
        assert slices.done == counted
    for peer in "abc":
        slices.release(peer)
    while (index := slices.next("last")) is not None:
        counted += slices.finish(index)
    assert slices.finished
    assert counted == slices.count
