"""What the queue drives: one reconciler for each of the two resources."""

from typing import Protocol

from hypha_operator.machinery.kinds import Key


class Reconciler(Protocol):
    """Brings what a key's object owns in line with what it asks for.

    It is made of the store, the cluster, the clock and the settings. It may be called at any time and any number of
    times, never twice at once for one key, and may be cancelled or die at any await: the next call goes on from what
    it then finds. What it raises is logged, and the key tried again later.
    """

    async def reconcile(self, key: Key) -> float | None:
        """Do what is to be done now; return seconds until the next look, if none of its objects changes before."""
        ...
