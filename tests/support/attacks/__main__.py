"""The attackers' process: `python -m support.attacks TARGET.json`. SIGTERM ends it.

It prints one line when the attack begins, and one with what each attack has sent when it ends, both JSON.
"""

import json
import logging
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import trio

from hypha_network.errors import HyphaNetworkError
from hypha_network.identity import Identity
from support.attacks.catalogue import BY_THEMSELVES, ON_A_CONNECTION, Role
from support.attacks.raw_peer import Tally, raw_peer
from support.attacks.target import Target

TURN_S = 5.0
"""After this time, an attacker makes its next attack on a connection."""
RETRY_S = 0.05
HEAD_START_S = 3.0
"""Strangers begin later, because a node without a limit for them accepts no attackers beside them."""

Tallies = dict[str, Tally]
Attack = TypeVar("Attack", bound=Callable[..., object])


def wanted(attacks: Sequence[Attack], number: int, role: Role, target: Target) -> list[Attack]:
    """Return the attacks that the target names, with another one first for each attacker."""
    found = [attack for attack in attacks if named(role, attack) in target.attacks]
    first = number % len(found) if found else 0
    return found[first:] + found[:first]


def named(role: Role, attack: Callable[..., object]) -> str:
    return f"{role}: {attack.__name__}"


async def attack_by_itself(number: int, role: Role, identity: Identity, target: Target, tallies: Tallies) -> None:
    """Make one attack, until cancelled."""
    for attack in wanted(BY_THEMSELVES.get(role, []), number, role, target)[:1]:
        tally = tallies[named(role, attack)]
        while True:
            try:
                await attack(identity, target, tally)
            except* HyphaNetworkError:
                tally.lost += 1
            await trio.sleep(RETRY_S)


async def attack_on_connections(number: int, role: Role, identity: Identity, target: Target, tallies: Tallies) -> None:
    """Make the attacks in turn, until cancelled, on one connection until the victim closes it."""
    address = target.gateway if role is Role.BEHIND_GATEWAY else target.address
    turns = cycle(wanted(ON_A_CONNECTION.get(role, []), number, role, target))
    attack = next(turns, None)
    while attack is not None:
        try:
            async with raw_peer(identity, address) as peer:
                while True:
                    peer.tally = tallies[named(role, attack)]
                    peer.tally.connections += 1
                    with trio.move_on_after(TURN_S):
                        await attack(peer, target)
                    attack = next(turns)
        except HyphaNetworkError:
            tallies[named(role, attack)].lost += 1
        await trio.sleep(RETRY_S)


async def attack_all(target: Target) -> Tallies:
    """Let every attacker attack until SIGTERM."""
    tallies: Tallies = defaultdict(Tally)
    identities = [
        (Role(credentials.role), Identity.from_pem(*(text.encode() for text in credentials.pem)))
        for credentials in target.attackers
    ]
    target = replace(target, seeds={i.peer_id: i.seed for role, i in identities if role is not Role.STRANGER})
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        print(json.dumps({"attackers": len(identities)}), flush=True)
        async with trio.open_nursery() as nursery:
            for late in (False, True):
                for number, (role, identity) in enumerate(identities):
                    if (role is Role.STRANGER) is late:
                        nursery.start_soon(attack_on_connections, number, role, identity, target, tallies)
                        nursery.start_soon(attack_by_itself, number, role, identity, target, tallies)
                if target.seeds and not late:
                    await trio.sleep(HEAD_START_S)
            await anext(signals)
            nursery.cancel_scope.cancel()
    return tallies


def main() -> None:
    """Attack as the file says, and print the figures."""
    logging.disable(logging.CRITICAL)
    target = Target.read(Path(sys.argv[1]))
    started, cpu_s = time.monotonic(), time.process_time()
    tallies = trio.run(attack_all, target)
    figures = {
        "seconds": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu_s,
        "attacks": {name: asdict(tally) for name, tally in sorted(tallies.items())},
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
