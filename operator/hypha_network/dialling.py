"""Dials the addresses of a peer as they become known."""

import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from hypha_network.changes import Changes
from hypha_network.errors import NetworkError
from hypha_network.wire.addresses import Address
from hypha_network.wire.race import HEAD_START_S

MAX_ADDRESSES: Final = 64
"""Maximum number of addresses to dial for one connection. Peers may name many that are false."""

Found = Callable[[Iterable[Address]], None]
"""Takes addresses as they become known."""
Find = Callable[[Found], Awaitable[None]]
"""Passes the addresses of a peer on, and returns when there are no more."""


async def dial_until(
    connected: Callable[[], bool], changes: Changes, find: Find, dial: Callable[[Address], Awaitable[object]]
) -> list[str]:
    """Dial as `dial_found` does until there is a connection, which the peer may have made itself."""
    reasons: list[str] = []
    async with trio.open_nursery() as nursery:

        async def end_once_connected() -> None:
            await changes.until(connected)
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_once_connected)
        reasons = await dial_found(find, dial)
        nursery.cancel_scope.cancel()
    return reasons


async def dial_found(find: Find, dial: Callable[[Address], Awaitable[object]]) -> list[str]:
    """Dial every address that `find` passes on, while it goes on; return why they failed.

    Direct addresses come before relayed ones, and each gets a head start. The caller cancels this once it has a
    connection.
    """
    known: set[Address] = set()
    waiting: list[Address] = []
    reasons: list[str] = []
    changes, finding = Changes(), True

    def found(addresses: Iterable[Address]) -> None:
        for address in addresses:
            if address not in known and len(known) < MAX_ADDRESSES:
                known.add(address)
                waiting.append(address)
        changes.notify()

    async def find_all() -> None:
        nonlocal finding
        await find(found)
        finding = False
        changes.notify()

    async def try_dial(address: Address, failed: trio.Event) -> None:
        try:
            await dial(address)
        except NetworkError as error:
            reasons.append(str(error))
            failed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(find_all)
        while True:
            await changes.until(lambda: bool(waiting) or not finding)
            if not waiting:
                break
            waiting.sort(key=lambda address: address.relay is not None)
            failed = trio.Event()
            nursery.start_soon(try_dial, waiting.pop(0), failed)
            with trio.move_on_after(HEAD_START_S * (1 + random.random() / 4)):  # noqa: S311
                await failed.wait()
    return reasons
