"""Every attack at once: a hundred attackers on one core, a node and an honest scheduler on another.

ATTACK_S=600 attacks for ten minutes and prints the figures. With ATTACK_PROFILE=1, it also prints where the node's CPU
time went. With HYPHA_BIN=DIR, the gateway is the reference's, from that directory.
"""

import os
import signal
from math import inf

import pytest

from support.attacks.catalogue import ATTACKS, Role
from support.honest import Honest
from support.siege import Siege, siege
from support.siege_report import Bounds

SECONDS = float(os.environ.get("ATTACK_S", "20"))
BY_HAND = "ATTACK_S" in os.environ
PROFILE = "ATTACK_PROFILE" in os.environ
COUNTS = {Role.PEER: 51, Role.NAMED: 4, Role.BEHIND_GATEWAY: 12, Role.SCHEDULER: 3, Role.STRANGER: 30}
"""A scheduler may have half of the leases, so two that keep theirs would leave none."""
WARM_UP_S = 5.0
JOIN_EVERY_S = 20.0 if SECONDS > 60 else 5.0
ROUNDS = 120 if SECONDS > 60 else 10
PROMISED = Bounds(answer_p99_s=0.1, first_offer_s=5.0, job_ratio=1.5, late_growth_mib=16, log_bytes=1_000_000)
SHORT = Bounds(answer_p99_s=inf, first_offer_s=inf, job_ratio=inf, late_growth_mib=64, log_bytes=300_000)
"""A short run judges no times, because it shares its two cores with whatever else this machine does."""
BOUNDS = PROMISED if BY_HAND else SHORT

pytestmark = [pytest.mark.alone, pytest.mark.anyio, pytest.mark.timeout(SECONDS + 300)]


async def test_a_hundred_attackers_harm_neither_a_job_nor_an_honest_scheduler_nor_the_node(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with siege(COUNTS, profile=PROFILE) as scene:
        honest = Honest(scene)
        await honest.measure_undisturbed(ROUNDS)
        report = await honest.endure(ATTACKS, BOUNDS, ROUNDS, SECONDS, warm_up_s=WARM_UP_S, join_every_s=JOIN_EVERY_S)
        log, hostile = scene.node.log, scene.hostile[Role.PEER]
        profile = await profile_of(scene) if PROFILE else ""
    text = f"{report.as_json()}\n\n{report.as_text()}\n{profile}"
    if BY_HAND:
        with capsys.disabled():
            print(f"\n{text}")
    assert report.broken_bounds() == [], text
    for complaint in ("malformed /hypha-api", "malformed gossip", "violates the muxer"):
        assert any(peer_id in line for line in log.splitlines() if complaint in line for peer_id in hostile)


async def profile_of(scene: Siege) -> str:
    """End the node, and return where its CPU time went."""
    scene.node.signal(signal.SIGTERM)
    await scene.node.ended()
    return (scene.directory / "profile.txt").read_text()
