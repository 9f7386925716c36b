"""The processes of one trainer: which one uses the bridge, which rows each trains, and how they share decisions.

Decisions are broadcast over a gloo group on the CPU, so that they never wait for the accelerators. Paths of data are
broadcast over a second group, because another thread sends them.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import torch.distributed as dist

from hypha_executor.errors import ExecutorError, JobError

T = TypeVar("T")

STORE_VARIABLE: Final = "HYPHA_TRAINER_STORE"
"""The variable with the path of the file through which the processes find each other."""

_TIMEOUT = timedelta(days=30)  # the others wait for the main process, which has timeouts of its own


def join() -> None:
    """Connect this process with the trainer's others, if there are any, through a file and the loopback interface.

    Raises:
        JobError: another launcher started this process, so that its sockets would be open to the network.
    """
    if "LOCAL_RANK" not in os.environ:
        return
    path = os.environ.get(STORE_VARIABLE)
    if path is None:
        raise JobError(
            "this launcher opens the trainer's sockets to the network; "
            "use `python -m hypha_trainer.launch` in place of `accelerate launch`"
        )
    os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(init_method=f"file://{path}", rank=rank, world_size=size)


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
            cause = box[0].error
            kind = type(cause) if isinstance(cause, ExecutorError) else ExecutorError  # it decides the exit code
            raise cause if self.main else kind(f"the main process stopped: {cause}")
        return box[0]  # type: ignore[no-any-return]


class _Raised:
    def __init__(self, error: Exception):
        self.error = error
