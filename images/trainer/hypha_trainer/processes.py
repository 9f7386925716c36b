"""The processes of one trainer: who talks to the bridge, who has which rows, and how they agree.

Decisions travel over a gloo group of their own on the CPU, so that the accelerators are never waited for, and paths of
data over another, because they travel in another thread.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from hypha_executor.errors import ExecutorError

T = TypeVar("T")

_PATIENCE = timedelta(days=30)  # others wait for the main process, which has deadlines of its own


class Processes:
    """This process among those of the trainer. One process alone needs no groups and every call is free.

    Args:
        rank: This process's number; 0 is the main one.
        size: How many processes there are.
        data_rank: Which share of each batch is this process's; the same for processes that hold one model together.
        data_ranks: Into how many shares a batch is cut.
    """

    def __init__(self, rank: int = 0, size: int = 1, data_rank: int = 0, data_ranks: int = 1):
        self.main = rank == 0
        self.data_rank = data_rank
        self.data_ranks = data_ranks
        self.alone = size == 1
        self._decisions: Any = None if self.alone else dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._data: Any = None if self.alone else dist.new_group(backend="gloo", timeout=_PATIENCE)

    def rows(self, samples: int) -> tuple[int, int]:
        """The half-open range of a batch's rows that is this process's; shares differ by one at most."""
        return samples * self.data_rank // self.data_ranks, samples * (self.data_rank + 1) // self.data_ranks

    def decide(self, decision: Callable[[], T]) -> T:
        """What the main process decides, in all of them; what it raises ends all of them."""
        return self._share(decision, self._decisions)

    def share_data(self, take: Callable[[], Path]) -> Path:
        """As `decide`, for the thread that reads the data."""
        return self._share(take, self._data)

    def all_have_data(self) -> None:
        """Returns once every process's data thread has come here."""
        if not self.alone:
            dist.barrier(self._data)

    def _share(self, make: Callable[[], T], group: Any) -> T:
        if self.alone:
            return make()
        box: list[Any] = [None]
        if self.main:
            try:
                box = [make()]
            except Exception as error:  # raised in every process
                box = [_Raised(error)]
        dist.broadcast_object_list(box, src=0, group=group)
        if isinstance(box[0], _Raised):
            raise box[0].error if self.main else ExecutorError(f"the main process stopped: {box[0].error}")
        return box[0]  # type: ignore[no-any-return]


class _Raised:
    def __init__(self, error: Exception):
        self.error = error
