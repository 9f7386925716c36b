"""The processes of one trainer: which one uses the bridge, which rows each trains, and how they share decisions.

Decisions are broadcast over a gloo group on the CPU, so that they never wait for the accelerators. Paths of data are
broadcast over a second group, because another thread sends them.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from hypha_executor.errors import ExecutorError

T = TypeVar("T")

_TIMEOUT = timedelta(days=30)  # the others wait for the main process, which has timeouts of its own


class Processes:
    """This process among those of the trainer. A single process needs no groups, and its calls cost nothing.

    Args:
        rank: The number of this process; 0 is the main one.
        size: The number of processes.
        data_rank: The number of this process's share of each batch. Processes that share one model have the same.
        data_ranks: The number of shares of a batch.
    """

    def __init__(self, rank: int = 0, size: int = 1, data_rank: int = 0, data_ranks: int = 1):
        self.main = rank == 0
        self.data_rank = data_rank
        self.data_ranks = data_ranks
        self.alone = size == 1
        self._decisions: Any = None if self.alone else dist.new_group(backend="gloo", timeout=_TIMEOUT)
        self._data: Any = None if self.alone else dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def rows(self, samples: int) -> tuple[int, int]:
        """Return the half-open range of this process's rows in a batch. Shares differ by at most one row."""
        return samples * self.data_rank // self.data_ranks, samples * (self.data_rank + 1) // self.data_ranks

    def decide(self, decision: Callable[[], T]) -> T:
        """Return the main process's decision in every process. An exception in it ends every process."""
        return self._share(decision, self._decisions)

    def share_data(self, take: Callable[[], Path]) -> Path:
        """Act as `decide`, but for the thread that reads the data."""
        return self._share(take, self._data)

    def all_have_data(self) -> None:
        """Wait until every process's data thread has called this."""
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
