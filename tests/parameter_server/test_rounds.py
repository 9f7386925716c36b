"""Which pseudo-gradients make up a round."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_parameter_server.arithmetic import PerKind
from hypha_parameter_server.errors import Refused, Untimely
from hypha_parameter_server.rounds import Attendance, Contribution, Policy, check_round, select, weights

POLICY = Policy(deadline_s=600, quorum=0.5)


def contribution(peer, round=None, samples=None, layout=b"layout", norm=1.0, integers=0.0):  # noqa: A002
    return Contribution(peer, Path(peer), layout, PerKind(norm, 0, integers), round, samples)


def chosen(pending, *, refused="", members="abcd", awaited=None, expected=None, waited_s=0.0, policy=POLICY):
    awaited = members if awaited is None else awaited
    selection = select(
        pending, set(refused), set(members), set(awaited), expected=expected, waited_s=waited_s, policy=policy
    )
    return selection and (selection.round, [item.peer for item in selection.chosen])


def shares(pending, policy=POLICY):
    return [weight.weights for weight in weights(pending, policy)]


def test_before_the_deadline_a_round_waits_for_every_member():
    pending = [contribution(peer, 1) for peer in "abc"]
    assert chosen(pending, waited_s=599) is None
    assert chosen([*pending, contribution("d", 1)]) == (1, ["a", "b", "c", "d"])


def test_after_the_deadline_a_quorum_is_enough():
    assert chosen([contribution("a", 1)], waited_s=600) is None
    assert chosen([contribution("a", 1), contribution("b", 1)], waited_s=600) == (1, ["a", "b"])


def test_once_every_member_has_sent_something_a_quorum_is_enough():
    pending = [contribution(peer, 1) for peer in "ab"]
    assert chosen(pending, refused="c") is None
    assert chosen(pending, refused="cd") == (1, ["a", "b"])
    assert chosen(pending[:1], refused="bcd") is None


def test_before_the_first_step_the_majority_decides_the_round():
    pending = [contribution("a", 9), contribution("b", 5), contribution("c", 5), contribution("d")]
    assert chosen(pending) == (5, ["b", "c", "d"])


@pytest.mark.parametrize("label", [2, 5, 10**6])
def test_one_labelled_member_does_not_decide_the_round_for_nine_unlabelled_ones(label):
    others = [contribution(peer) for peer in "bcdefghij"]
    for pending in ([contribution("a", label), *others], [*others, contribution("a", label)]):
        assert chosen(pending, members="abcdefghij") == (1, list("bcdefghij"))


def test_one_labelled_member_among_unlabelled_ones_takes_part_in_the_first_round():
    pending = [contribution("a", 1), *(contribution(peer) for peer in "bcd")]
    assert chosen(pending) == (1, list("abcd"))


def test_before_the_first_step_the_majority_decides_the_layout():
    pending = [contribution("a", 1, layout=b"another"), *(contribution(peer, 1) for peer in "bcd")]
    members = set("abcd")
    selection = select(pending, set(), members, members, expected=None, waited_s=0, policy=POLICY)
    assert [item.peer for item in selection.chosen] == ["b", "c", "d"]
    assert [item.peer for item in selection.misfits] == ["a"]


def test_unlabelled_pseudo_gradients_count_for_the_round_being_collected():
    pending = [contribution(peer) for peer in "abcd"]
    assert chosen(pending) == (1, list("abcd"))
    assert chosen(pending, expected=7) == (7, list("abcd"))


def test_nothing_is_selected_from_nothing():
    assert chosen([], refused="abcd", waited_s=10**6) is None


def test_a_label_other_than_the_expected_round_is_untimely():
    check_round(3, 3, owed=True)
    check_round(None, 3, owed=False)
    check_round(8, None, owed=False)
    with pytest.raises(Untimely, match="late"):
        check_round(2, 3, owed=False)
    with pytest.raises(Untimely, match="early"):
        check_round(4, 3, owed=False)


def test_without_a_label_the_first_pseudo_gradient_after_a_missed_round_is_for_that_one() -> None:
    with pytest.raises(Untimely, match="its sender missed the last one"):
        check_round(None, 3, owed=True)
    attendance = Attendance(frozenset("abc"))
    attendance.close_round(set("a"), set())
    assert attendance.owing == set("bc")
    attendance.close_round(set("a"), set("b"))
    assert attendance.owing == set("c")


@pytest.mark.parametrize("label", [0, 10**6 + 1, 2**53])
def test_no_job_begins_with_an_implausible_round(label):
    with pytest.raises(Refused, match="from 1 to 1000000"):
        check_round(label, None, owed=False)


def test_a_round_does_not_wait_for_a_member_that_is_excused():
    pending = [contribution(peer, 1) for peer in "abc"]
    assert chosen(pending, awaited="abc") == (1, ["a", "b", "c"])
    assert chosen(pending[:1], awaited="a") is None


def test_a_member_that_is_always_late_delays_fewer_and_fewer_rounds():
    attendance = Attendance(set("abc"))
    delayed = []
    for number in range(1, 1001):
        if "c" in attendance.awaited:
            delayed.append(number)
        assert {"a", "b"} <= attendance.awaited
        attendance.close_round(set("ab"), set())
    assert delayed == [1, 3, 7, 15, 31, 63, 127, 255, 511]


def test_a_member_that_misses_every_other_round_delays_fewer_and_fewer_rounds_too():
    attendance = Attendance(set("abc"))
    delays = 0
    for _ in range(1000):
        awaited = "c" in attendance.awaited
        delays += awaited
        attendance.close_round(set("ab") if awaited else set("abc"), set())
    assert delays <= 10


def test_a_member_that_missed_one_round_is_awaited_again_after_the_next():
    attendance = Attendance(set("ab"))
    attendance.close_round(set("a"), set())
    assert attendance.awaited == {"a"}
    for _ in range(3):
        attendance.close_round(set("ab"), set())
        assert attendance.awaited == {"a", "b"}


def test_weights_are_shares_of_the_samples_if_all_label_them():
    assert shares([contribution("a", samples=1), contribution("b", samples=3)]) == pytest.approx([1 / 3, 2 / 3])
    assert shares([contribution(str(count), samples=count) for count in (4, 5, 6, 9)]) == pytest.approx(
        [4 / 24, 5 / 24, 6 / 24, 9 / 24]
    )
    assert shares([contribution("a", samples=0), contribution("b", samples=3)]) == [0, 1]


def test_weights_are_equal_if_one_does_not_label_its_samples():
    assert shares([contribution("a", samples=1), contribution("b")]) == [0.5, 0.5]
    assert shares([contribution("a", samples=0), contribution("b", samples=0)]) == [0.5, 0.5]


@pytest.mark.parametrize("claimed", [200, 10**9, 2**53])
@pytest.mark.parametrize("honest", [1, 2, 9])
def test_a_member_that_claims_many_samples_gets_at_most_twice_the_median_share(claimed, honest):
    pending = [contribution(str(index), samples=100) for index in range(honest)]
    found = shares([*pending, contribution("liar", samples=claimed)])
    assert found[-1] == pytest.approx(2 / (honest + 2))
    assert found[:-1] == pytest.approx([1 / (honest + 2)] * honest)


@pytest.mark.parametrize("honest", [1, 2, 9])
def test_members_that_claim_no_samples_gain_nothing(honest):
    pending = [contribution(str(index), samples=100) for index in range(honest)]
    assert shares([*pending, contribution("liar", samples=0)]) == pytest.approx([1 / honest] * honest + [0])


def test_an_outlier_is_scaled_to_a_multiple_of_the_median_length():
    pending = [contribution("a", norm=1), contribution("b", norm=2), contribution("c", norm=1000)]
    assert shares(pending, Policy(clip_factor=3)) == pytest.approx([1 / 3, 1 / 3, 1 / 3 * 6 / 1000])
    assert shares(pending) == pytest.approx([1 / 3, 1 / 3, 1 / 3 * 4 / 1000])


@pytest.mark.parametrize("length", [3.4e38, 1e300])
@pytest.mark.parametrize("honest", [1, 2, 3, 9])
def test_by_default_no_gradient_adds_more_than_twice_the_median_length(length, honest):
    pending = [*(contribution(str(index)) for index in range(honest)), contribution("liar", norm=length)]
    assert shares(pending)[-1] * length == pytest.approx(2 / (honest + 1))
    assert shares(pending)[:-1] == [1 / (honest + 1)] * honest


def test_gradients_of_similar_lengths_are_not_clipped():
    pending = [contribution(str(index), norm=norm) for index, norm in enumerate((0.5, 0.8, 1, 1.5, 1.9))]
    assert shares(pending) == [0.2] * 5


@pytest.mark.parametrize("lengths", [(0,), (3,), (0, 3), (0, 0, 3), (0, 0)])
def test_gradients_of_length_zero_clip_nothing(lengths):
    pending = [contribution(str(index), norm=norm) for index, norm in enumerate(lengths)]
    assert shares(pending) == [1 / len(lengths)] * len(lengths)


def test_a_large_counter_does_not_hide_a_large_gradient():
    pending = [contribution(peer, norm=1, integers=1e6) for peer in "abc"]
    liar = contribution("liar", norm=1e6, integers=1e6)
    assert weights([*pending, liar], POLICY)[-1] == PerKind(0.25 * 2 / 1e6, 0.25, 0.25)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**53), st.floats(0, 1e300)),
        min_size=1,
        max_size=50,
    ),
    st.floats(0.1, 100),
)
def test_weights_never_sum_to_more_than_one(numbers, clip_factor):
    pending = [contribution(str(index), samples=samples, norm=norm) for index, (samples, norm) in enumerate(numbers)]
    found = shares(pending, Policy(clip_factor=clip_factor))
    assert all(0 <= weight <= 1 for weight in found)
    assert sum(found) <= 1 + 1e-9


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(1, 3)), unique_by=lambda item: item[0]),
    st.sets(st.sampled_from("abcdef")),
    st.floats(0, 2000),
)
def test_a_selection_has_a_quorum_of_one_round_and_covers_all_pending(numbers, refused, waited_s):
    pending = [contribution(peer, label) for peer, label in numbers]
    members = set("abcdef")
    selection = select(pending, refused, members, members, expected=None, waited_s=waited_s, policy=POLICY)
    if selection is None:
        return
    assert {item.round for item in selection.chosen} <= {None, selection.round}
    assert len(selection.chosen) >= 3
    assert sorted([*selection.chosen, *selection.misfits], key=lambda item: item.peer) == sorted(
        pending, key=lambda item: item.peer
    )
