"""Which pseudo-gradients make up a round."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_executor.safetensors import Header, Tensor
from hypha_parameter_server.errors import Untimely
from hypha_parameter_server.rounds import Contribution, Policy, check_round, select, weights

POLICY = Policy(deadline_s=600, quorum=0.5)


def contribution(peer, round=None, samples=None, shape=(2,), norm=1.0):  # noqa: A002
    return Contribution(peer, Path(peer), Header({"w": Tensor("F32", shape, 64, 96)}, {}), norm, round, samples)


def chosen(pending, *, refused=(), members=4, expected=None, waited_s=0.0, policy=POLICY):
    selection = select(pending, refused, members, expected=expected, waited_s=waited_s, policy=policy)
    return selection and (selection.round, [item.peer for item in selection.chosen])


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
    pending = [contribution("a", 10**9), contribution("b", 5), contribution("c", 5), contribution("d")]
    assert chosen(pending) == (5, ["b", "c", "d"])


def test_before_the_first_step_the_majority_decides_the_layout():
    pending = [contribution("a", 1, shape=(9,)), *(contribution(peer, 1) for peer in "bcd")]
    selection = select(pending, (), 4, expected=None, waited_s=0, policy=POLICY)
    assert [item.peer for item in selection.chosen] == ["b", "c", "d"]
    assert [item.peer for item in selection.misfits] == ["a"]


def test_unlabelled_pseudo_gradients_count_for_the_round_being_collected():
    pending = [contribution(peer) for peer in "abcd"]
    assert chosen(pending) == (1, list("abcd"))
    assert chosen(pending, expected=7) == (7, list("abcd"))


def test_nothing_is_selected_from_nothing():
    assert chosen([], refused="abcd", waited_s=10**6) is None


def test_a_label_other_than_the_expected_round_is_untimely():
    check_round(3, 3)
    check_round(None, 3)
    check_round(8, None)
    with pytest.raises(Untimely, match="late"):
        check_round(2, 3)
    with pytest.raises(Untimely, match="early"):
        check_round(4, 3)


def test_weights_are_shares_of_the_samples_if_all_label_them():
    assert weights([contribution("a", samples=1), contribution("b", samples=3)], POLICY) == [0.25, 0.75]
    assert weights([contribution("a", samples=0), contribution("b", samples=3)], POLICY) == [0, 1]


def test_weights_are_equal_if_one_does_not_label_its_samples():
    assert weights([contribution("a", samples=1), contribution("b")], POLICY) == [0.5, 0.5]
    assert weights([contribution("a", samples=0), contribution("b", samples=0)], POLICY) == [0.5, 0.5]


def test_an_outlier_is_scaled_to_a_multiple_of_the_median_length():
    pending = [contribution("a", norm=1), contribution("b", norm=2), contribution("c", norm=1000)]
    assert weights(pending, Policy(clip_factor=3)) == pytest.approx([1 / 3, 1 / 3, 1 / 3 * 6 / 1000])
    assert weights(pending, POLICY) == [1 / 3] * 3


@given(
    st.lists(
        st.tuples(st.integers(0, 2**53), st.floats(0, 1e300)),
        min_size=1,
        max_size=50,
    ),
    st.none() | st.floats(0.1, 100),
)
def test_weights_never_sum_to_more_than_one(numbers, clip_factor):
    pending = [contribution(str(index), samples=samples, norm=norm) for index, (samples, norm) in enumerate(numbers)]
    found = weights(pending, Policy(clip_factor=clip_factor))
    assert all(0 <= weight <= 1 for weight in found)
    assert sum(found) <= 1 + 1e-9


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.integers(0, 3)), unique_by=lambda item: item[0]),
    st.sets(st.sampled_from("abcdef")),
    st.floats(0, 2000),
)
def test_a_selection_has_a_quorum_of_one_round_and_covers_all_pending(numbers, refused, waited_s):
    pending = [contribution(peer, label) for peer, label in numbers]
    selection = select(pending, refused, 6, expected=None, waited_s=waited_s, policy=POLICY)
    if selection is None:
        assert len(pending) < 6
        return
    assert {item.round for item in selection.chosen} <= {None, selection.round}
    assert len(selection.chosen) >= 3
    assert sorted([*selection.chosen, *selection.misfits], key=lambda item: item.peer) == sorted(
        pending, key=lambda item: item.peer
    )
