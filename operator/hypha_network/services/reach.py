"""Judges how peers reach this node, as far as the node can tell."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hypha_contracts.reach import DESCRIPTIONS, Reach
from hypha_network.changes import Changes

logger = logging.getLogger(__name__)

SETTLES_S: Final = 2.0
"""How long a worse reach must last before it counts, because a gateway may just be coming or going."""


def judge(*, public: bool, observed: bool, predictable: bool, reserved: bool, relays_bulk: bool) -> Reach | None:
    """Return how peers reach a node, or None as long as the node cannot know it.

    Args:
        public: peers can connect to an address at which the node listens, or which the operator named.
        observed: a gateway has told the node at which address it observes it.
        predictable: the node knows at which address its NAT lets peers in.
        reserved: a gateway holds a reservation of the node. Without one, nobody can ask it to punch a hole.
        relays_bulk: one of these gateways relays bulk data.
    """
    if public:
        return Reach.PUBLIC
    if not observed:
        return None
    if not reserved:
        return Reach.NONE
    if predictable:
        return Reach.PUNCHABLE
    return Reach.BULK_RELAY if relays_bulk else Reach.LIMITED_RELAY


def counts_at_once(found: Reach | None, before: Reach | None) -> bool:
    """Whether a reach counts without a delay: peers can send bulk data, in no worse way than before."""
    return found is not None and found.takes_bulk and (before is None or found.at_least(before))


class ReachWatch:
    """Follows the reach of a node.

    Args:
        changes: notified whenever the reach may have changed, and whenever `current` has.
        found: the reach as it looks at this moment.
        on_changed: called with each new value of `current`.
    """

    def __init__(
        self,
        changes: Changes,
        found: Callable[[], Reach | None],
        on_changed: Callable[[Reach | None], Awaitable[None]],
    ) -> None:
        self._changes = changes
        self._found = found
        self._on_changed = on_changed
        self.current: Reach | None = None
        """The reach, or None as long as the node cannot know it."""

    async def run(self) -> None:
        """Follow the reach and log it, without end."""
        while True:
            await self._changes.until(lambda: self._found() is not self.current)
            with trio.move_on_after(SETTLES_S):
                await self._changes.until(lambda: counts_at_once(self._found(), self.current))
            if (found := self._found()) is not self.current:
                self.current = found
                logger.info("peers reach this node: %s", DESCRIPTIONS[found] if found else "unknown, see the gateways")
                self._changes.notify()
                await self._on_changed(found)
