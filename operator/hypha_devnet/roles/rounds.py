"""The course of a DiLoCo job, without any I/O: which slice is next, when trainers send their updates, when it ends.

A round ends once all trainers together have run a number of samples. The scheduler plans how many more batches each
trainer runs from the time that its batches take, so that all trainers finish at about the same time.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto

LOOK_AHEAD_BATCHES = 3
"""The scheduler plans the end of a round once no trainer has more batches than this left."""


class State(Enum):
    """The state of a trainer in a round."""

    TRAINING = auto()
    SCHEDULED = auto()
    UPDATING = auto()
    DONE = auto()


@dataclass
class Trainer:
    """One trainer: its batch size, its speed, and once planned, how many batches it has left (`to_go`)."""

    batch_size: int
    state: State = State.TRAINING
    batches: int = 0
    to_go: int | None = None
    batch_time_s: float | None = None
    last_batch: float | None = None

    def finished_batch(self, now: float) -> None:
        """Count a batch; `now` is a monotonic time in seconds."""
        self.batches += 1
        if self.last_batch is not None:
            elapsed = now - self.last_batch
            self.batch_time_s = elapsed if self.batch_time_s is None else 0.7 * self.batch_time_s + 0.3 * elapsed
        self.last_batch = now


@dataclass
class Rounds:
    """The rounds of a job with these trainers, by peer id."""

    trainers: dict[str, Trainer]
    samples_per_round: int
    rounds: int
    round: int = 0
    samples: int = 0
    started_at: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the last round is over."""
        return self.round >= self.rounds

    @property
    def done(self) -> bool:
        """Whether every trainer has the result of the last round."""
        return self.finished and all(trainer.state is State.DONE for trainer in self.trainers.values())

    def batch_done(self, peer_id: str, batch_size: int, now: float) -> int | None:
        """Count a batch; return how many more this trainer runs before it sends its update, or None if unplanned.

        Each later batch returns the number again, because an answer is lost when the trainer's node dies.
        """
        trainer = self.trainers[peer_id]
        trainer.finished_batch(now)
        self.samples += batch_size
        if trainer.state is State.TRAINING and (plan := self._plan(now)) is not None:
            trainer.state, trainer.to_go = State.SCHEDULED, plan[peer_id]
        elif trainer.to_go:
            trainer.to_go -= 1
        return trainer.to_go

    def update_started(self, peer_id: str) -> None:
        """Record that a trainer sends its update."""
        trainer = self.trainers[peer_id]
        trainer.state, trainer.to_go = State.UPDATING, None

    def awaits_step(self, peer_id: str) -> bool:
        """Whether the parameter server has yet to report the step that uses this trainer's update."""
        trainer = self.trainers.get(peer_id)
        return trainer is not None and trainer.state is State.UPDATING

    def updated(self, now: float) -> bool:
        """Record the parameter server's step; False for a repeated report, or if no trainer has sent an update."""
        if self.finished or all(trainer.state is not State.UPDATING for trainer in self.trainers.values()):
            return False
        self.round += 1
        self.samples = 0
        self.started_at = now
        for trainer in self.trainers.values():
            if trainer.state is State.UPDATING:
                trainer.state = State.SCHEDULED  # the next round is not planned before it has received the update
        return True

    def update_received(self, peer_id: str) -> bool:
        """Record that a trainer has merged the update; return whether it is done."""
        trainer = self.trainers[peer_id]
        trainer.state = State.DONE if self.finished else State.TRAINING
        trainer.last_batch = None
        return self.finished

    def _plan(self, now: float) -> dict[str, int] | None:
        """Return how many batches each trainer has left in this round; None if any has too many to plan.

        A trainer that knows its number of batches keeps it, so the others run the batches that are missing.
        """
        promised = sum(trainer.batch_size * (trainer.to_go or 0) for trainer in self.trainers.values())
        left = self.samples_per_round - self.samples - promised
        plan = dict.fromkeys(self.trainers, 0)
        due = {
            peer_id: max(now, (trainer.last_batch or now) + trainer.batch_time_s)
            for peer_id, trainer in self.trainers.items()
            if trainer.state is State.TRAINING and trainer.batch_time_s is not None
        }
        while left > 0:
            if not due:
                return None
            next_peer = min(due, key=due.__getitem__)
            trainer = self.trainers[next_peer]
            plan[next_peer] += 1
            if plan[next_peer] > LOOK_AHEAD_BATCHES:
                return None
            left -= trainer.batch_size
            due[next_peer] += trainer.batch_time_s or 0.0
        return plan


@dataclass
class Slices:
    """The slices of a dataset, assigned one by one. After the last one, the next epoch begins."""

    count: int
    epoch: int = 0
    _free: deque[int] = field(default_factory=deque)
    _last: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._free.extend(range(self.count))

    def next(self, peer_id: str) -> int:
        """Assign a slice to a peer; return its index."""
        if not self._free:
            self.epoch += 1
            self._free.extend(range(self.count))
        index = self._free.popleft()
        self._last[peer_id] = index
        return index

    def give_back(self, peer_id: str) -> None:
        """Free the last slice of a lost peer."""
        index = self._last.pop(peer_id, None)
        if index is not None and index not in self._free:
            self._free.appendleft(index)
