"""Which worker predicts which slice of a dataset, without any I/O: each slice counts once."""

from collections import deque
from dataclasses import dataclass, field


@dataclass
class Assignments:
    """The slices of a dataset. Each is free, assigned to a worker, or done."""

    count: int
    _free: deque[int] = field(default_factory=deque)
    _holders: dict[int, str] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _given: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._free.extend(range(self.count))

    @property
    def free(self) -> int:
        """How many slices wait for a worker."""
        return len(self._free)

    @property
    def done(self) -> int:
        """How many slices are done."""
        return len(self._done)

    @property
    def finished(self) -> bool:
        """Whether every slice is done."""
        return self.done == self.count

    def is_done(self, index: int) -> bool:
        """Whether this slice is done."""
        return index in self._done

    def was_given(self, peer_id: str, index: int) -> bool:
        """Whether this slice was ever assigned to this worker."""
        return (peer_id, index) in self._given

    def next(self, peer_id: str) -> int | None:
        """Assign a free slice to a worker; None if none is free."""
        if not self._free:
            return None
        index = self._free.popleft()
        self._holders[index] = peer_id
        self._given.add((peer_id, index))
        return index

    def finish(self, index: int) -> bool:
        """Record the result of a slice, whoever made it; False if it is done already."""
        if index in self._done:
            return False
        self._done.add(index)
        if self._holders.pop(index, None) is None:  # a worker that was lost has delivered it after all
            self._free.remove(index)
        return True

    def release(self, peer_id: str) -> list[int]:
        """Free the slices that a worker has and did not finish; return them. They are assigned first."""
        lost = sorted(index for index, holder in self._holders.items() if holder == peer_id)
        for index in lost:
            del self._holders[index]
        self._free.extendleft(reversed(lost))
        return lost
