import heapq
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hypha_devnet.roles.rounds import Rounds, Slices, State, Trainer


def play_round(rounds: Rounds, times: dict[str, float], start: float) -> tuple[float, dict[str, float]]:
    """Simulate trainers with these batch durations; return the time of the last update and of each trainer's."""
    due = [(start + seconds, name) for name, seconds in times.items()]
    heapq.heapify(due)
    left: dict[str, int] = {}
    updates: dict[str, float] = {}
    while due:
        now, name = heapq.heappop(due)
        planned = rounds.batch_done(name, rounds.trainers[name].batch_size, now)
        if planned is not None:
            assert planned == left.get(name, planned + 1) - 1
            left[name] = planned
        if left.get(name) == 0:
            rounds.update_started(name)
            updates[name] = now
        else:
            heapq.heappush(due, (now + times[name], name))
    return max(updates.values()), updates


TRAINERS = st.dictionaries(
    st.sampled_from("abcdef"), st.tuples(st.integers(1, 64), st.floats(0.01, 5.0)), min_size=1, max_size=6
)


@given(TRAINERS, st.integers(1, 2000), st.integers(1, 4))
@example({"a": (1, 2.5), "b": (1, 2.9547507643541344), "c": (16, 2.9547507643541344)}, 220, 1)
def test_every_round_ends_with_an_update_of_every_trainer_and_at_least_the_samples(
    trainers: dict[str, tuple[int, float]], samples: int, count: int
) -> None:
    rounds = Rounds({name: Trainer(size) for name, (size, _) in trainers.items()}, samples, count)
    now = 0.0
    while not rounds.done:
        now, _ = play_round(rounds, {name: seconds for name, (_, seconds) in trainers.items()}, now)
        assert rounds.samples >= samples
        assert rounds.updated(now)
        for name in trainers:
            assert rounds.update_received(name) == rounds.finished
    assert rounds.round == count


def test_trainers_of_different_speed_send_their_updates_at_about_the_same_time() -> None:
    rounds = Rounds({"slow": Trainer(10), "fast": Trainer(10)}, 2000, 1)
    last, updates = play_round(rounds, {"slow": 1.0, "fast": 0.1}, 0.0)
    assert last - min(updates.values()) <= 1.1
    assert rounds.trainers["fast"].batches > 5 * rounds.trainers["slow"].batches


def test_a_trainer_that_never_reports_does_not_block_the_others() -> None:
    rounds = Rounds({"honest": Trainer(10), "silent": Trainer(10)}, 100, 1)
    play_round(rounds, {"honest": 1.0}, 0.0)
    assert rounds.trainers["honest"].state is State.UPDATING


def test_a_trainer_that_missed_its_schedule_gets_it_again_with_its_next_batch() -> None:
    rounds = Rounds({"only": Trainer(10)}, 40, 1)
    answers = [rounds.batch_done("only", 10, now) for now in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)]
    assert answers == [None, 2, 1, 0, 0, 0]
    rounds.update_started("only")
    assert rounds.batch_done("only", 10, 6.0) is None


def test_a_late_trainer_sends_after_its_first_batch() -> None:
    rounds = Rounds({"early": Trainer(10), "late": Trainer(10)}, 30, 1)
    play_round(rounds, {"early": 0.1}, 0.0)
    assert rounds.batch_done("late", 10, 9.0) == 0


def test_a_step_reported_twice_counts_once() -> None:
    rounds = Rounds({"a": Trainer(10)}, 10, 3)
    play_round(rounds, {"a": 1.0}, 0.0)
    assert rounds.updated(2.0)
    assert not rounds.updated(2.1)
    assert rounds.round == 1


def test_a_step_before_any_update_does_not_count() -> None:
    assert not Rounds({"a": Trainer(10)}, 10, 3).updated(1.0)


def test_a_lost_trainer_does_not_block_the_end_of_the_job() -> None:
    rounds = Rounds({"a": Trainer(10), "lost": Trainer(10)}, 10, 1)
    play_round(rounds, {"a": 0.1, "lost": 0.1}, 0.0)
    rounds.updated(1.0)
    rounds.update_received("a")
    assert not rounds.done
    del rounds.trainers["lost"]
    assert rounds.done


@given(st.integers(1, 20), st.lists(st.sampled_from("abc"), min_size=1, max_size=100))
def test_every_slice_is_handed_out_once_per_epoch(count: int, requests: list[str]) -> None:
    slices = Slices(count)
    seen: dict[int, Counter[int]] = {}
    for peer in requests:
        index = slices.next(peer)
        seen.setdefault(slices.epoch, Counter())[index] += 1
    for epoch, indices in seen.items():
        assert max(indices.values()) == 1
        assert epoch == max(seen) or len(indices) == count


@pytest.mark.parametrize("count", [1, 3])
def test_the_slice_of_a_lost_peer_is_next(count: int) -> None:
    slices = Slices(count)
    index = slices.next("lost")
    slices.give_back("lost")
    slices.give_back("stranger")
    assert slices.next("other") == index
