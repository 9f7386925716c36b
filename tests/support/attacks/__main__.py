"""The attackers' process: `python -m support.attacks TARGET.json`. SIGTERM ends it.

It prints one line when the attack begins, and one with what each attack has sent when it ends, both JSON.
"""

import json
import logging
import signal
import sys
import time
from collections import defaultdict
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path

import trio

from hypha_network.errors import HyphaNetworkError
from hypha_network.identity import Identity
from support.attacks.catalogue import BY_THEMSELVES, ON_A_CONNECTION, Role
from support.attacks.raw_peer import Tally, raw_peer
from support.attacks.target import Target

TURN_S = 5.0
"""After this time, an attacker makes its next attack."""
RETRY_S = 0.05
HEAD_START_S = 3.0
"""Strangers begin later, because a node without a limit for them accepts no attackers beside them."""

Tallies = dict[str, Tally]


async def attacker(number: int, role: Role, identity: Identity, target: Target, tallies: Tallies) -> None:
    """Make the attacks of a role in turn, until cancelled. Different attackers begin with different ones."""

    def chosen(attacks: list) -> cycle:  # type: ignore[type-arg]
        wanted = [attack for attack in attacks if f"{role}: {attack.__name__}" in target.attacks]
        return cycle(wanted[number % len(wanted) :] + wanted[: number % len(wanted)] if wanted else ())

    on_connection, by_itself = chosen(ON_A_CONNECTION.get(role, [])), chosen(BY_THEMSELVES.get(role, []))
    address = target.gateway if role is Role.BEHIND_GATEWAY else target.address
    for attack in by_itself:
        with trio.move_on_after(TURN_S):
            await attack(identity, target, tallies[f"{role}: {attack.__name__}"])
    attack = next(on_connection, None)
    while attack is not None:
        try:
            async with raw_peer(identity, address) as peer:
                while True:
                    peer.tally = tallies[f"{role}: {attack.__name__}"]
                    peer.tally.connections += 1
                    with trio.move_on_after(TURN_S):
                        await attack(peer, target)
                    attack = next(on_connection)
        except HyphaNetworkError:
            tallies[f"{role}: {attack.__name__}"].lost += 1
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
            for number, (role, identity) in enumerate(identities):
                if role is not Role.STRANGER:
                    nursery.start_soon(attacker, number, role, identity, target, tallies)
            if target.seeds:
                await trio.sleep(HEAD_START_S)
            for number, (role, identity) in enumerate(identities):
                if role is Role.STRANGER:
                    nursery.start_soon(attacker, number, role, identity, target, tallies)
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
