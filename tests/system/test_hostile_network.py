"""Every attack by itself, beside a job that must end on time and schedulers that must get their answers."""

import os
from collections.abc import AsyncIterator

import pytest

from support.attacks.catalogue import ATTACKS, Role
from support.honest import Honest
from support.siege import siege
from support.siege_report import Bounds

by_hand = pytest.mark.skipif(
    "ATTACK_S" not in os.environ, reason="set ATTACK_S=1 to try each attack alone, for ten minutes"
)
pytestmark = [by_hand, pytest.mark.alone, pytest.mark.anyio, pytest.mark.timeout(180)]

ATTACKERS = dict.fromkeys(Role, 8) | {Role.SCHEDULER: 1}
"""A scheduler may have half of the leases, so two that keep theirs would leave none."""
ROUNDS = 3
WARM_UP_S = 0.5
BOUNDS = Bounds(answer_p99_s=3.0, first_offer_s=15.0, job_ratio=6.0, late_growth_mib=64, log_bytes=60_000)
FEW_FILES = 256


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "trio"


@pytest.fixture(scope="module")
async def honest(request: pytest.FixtureRequest) -> AsyncIterator[Honest]:
    """Honest peers of a node whose attackers have one role, which a test passes."""
    async with siege({request.param: ATTACKERS[request.param]}) as scene:
        peers = Honest(scene)
        await peers.measure_undisturbed(ROUNDS)
        yield peers


@pytest.mark.parametrize(("honest", "attack"), ATTACKS, indirect=["honest"], scope="module")
async def test_an_attack_harms_neither_a_job_nor_an_honest_scheduler_nor_the_node(honest: Honest, attack: str) -> None:
    role = Role(honest.scene.attackers[0].role)
    report = await honest.endure([(role, attack)], BOUNDS, ROUNDS, 0, warm_up_s=WARM_UP_S, join_every_s=10)
    assert report.broken_bounds() == [], report.as_text()


async def test_a_node_with_few_descriptors_serves_an_honest_scheduler_while_connections_exhaust_them() -> None:
    async with siege({Role.STRANGER: 8, Role.SCHEDULER: 8}, max_files=FEW_FILES) as scene:
        peers = Honest(scene)
        await peers.measure_undisturbed(ROUNDS)
        attacks = [
            (Role.STRANGER, "silent_connections"),
            (Role.STRANGER, "complete_handshakes"),
            (Role.SCHEDULER, "complete_handshakes"),
        ]
        report = await peers.endure(attacks, BOUNDS, ROUNDS, 5, warm_up_s=WARM_UP_S, join_every_s=10)
    assert report.broken_bounds() == [], report.as_text()
