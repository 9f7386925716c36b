"""The first and last steps of every scheduler."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import trio
from pydantic import ValidationError

from hypha_devnet.events import Events
from hypha_messages.job import DataRecord, PeersReference, SelectionStrategy
from hypha_messages.validation import describe
from hypha_network.errors import NetworkError
from hypha_network.network import Network

logger = logging.getLogger(__name__)

_FINISH_GRACE_S: Final = 15.0
"""Grace period in which workers may end their jobs and report it."""
_LAST_ANSWER_S: Final = 0.5
"""How long a scheduler stays for the answer to the last report. Without it, the worker would report again and again."""
_RECORD_RETRY_S: Final = 0.5


class JobFailedError(Exception):
    """The job failed; the text says why."""


@dataclass(frozen=True)
class Dataset:
    """A dataset's name, the number of its slices, and the data node that has them."""

    name: str
    provider: str
    slices: int


async def join_network(network: Network, deadline_s: float) -> None:
    """Wait until a gateway is reached; JobFailedError after `deadline_s`."""
    with trio.move_on_after(deadline_s) as scope:
        await network.wait_ready()
    if scope.cancelled_caught:
        raise JobFailedError(f"no gateway was reached within {deadline_s:g} s; check gateway_addresses")


async def find_dataset(network: Network, name: str, events: Events, deadline_s: float) -> Dataset:
    """Look up who has a dataset; JobFailedError if nobody announces it within `deadline_s`."""
    with trio.move_on_after(deadline_s):
        while True:
            try:
                record = await network.get_record(name)
                if record is not None and record.publisher is not None:
                    count = DataRecord.model_validate_json(record.value).num_slices
                    events.emit("dataset", dataset=name, provider=record.publisher, slices=count)
                    return Dataset(name, record.publisher, count)
            except NetworkError as error:
                logger.warning("no record of dataset %s yet: %s", name, error)
            except ValidationError as error:
                logger.warning("the record of dataset %s is unusable: %s", name, describe(error, "record"))
            await trio.sleep(_RECORD_RETRY_S)
    raise JobFailedError(f"no data node announced the dataset {name!r} within {deadline_s:g} s")


def all_of(peers: list[str]) -> PeersReference:
    """Return the reference to all of these peers."""
    return PeersReference(peers=peers, strategy=SelectionStrategy(type="All"))


async def await_reports(reported: Callable[[], Awaitable[object]]) -> None:
    """Wait until the workers have reported the end of their jobs, at most for the grace period. Answer the last report.

    Args:
        reported: returns once all workers have reported.
    """
    with trio.move_on_after(_FINISH_GRACE_S):
        await reported()
    await trio.sleep(_LAST_ANSWER_S)
