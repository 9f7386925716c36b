"""The interface of a reconciler. There is one for each of the two resources."""

from typing import Protocol

from hypha_operator.machinery.kinds import Key


class Reconciler(Protocol):
    """Brings the children of a key's object in line with the object's specification.

    The queue may call it at any time and any number of times, but never twice at once for one key. It may be cancelled
    or die at any await, because the next call starts from the state that it then finds. If it raises, the queue logs
    the error and tries the key again later.
    """

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile once; return seconds until the next time, unless one of the objects changes before. None: never."""
        ...
