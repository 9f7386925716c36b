"""How the operator posts Events."""

from typing import Any

import pytest

from hypha_contracts.kinds import EVENT
from support.manual_clock import ManualClock
from support.operating import Operating, operating
from support.people import User
from support.resources import worker_manifest

pytestmark = pytest.mark.anyio


async def post(operator: Operating, worker: dict[str, Any]) -> list[str]:
    """Post an Event about a worker; return the methods of the calls."""
    before = len(operator.cluster.writes)
    await operator.cluster.event(worker, "Normal", "Starting", "The controller starts.")
    return [write.partition(" ")[0] for write in operator.cluster.writes[before:]]


async def test_the_first_event_costs_one_post_and_a_repetition_raises_its_count(served, namespace, user: User):
    worker, clock = user.apply(worker_manifest(namespace)), ManualClock()
    async with operating(served.kubeconfig, namespace, clock) as operator:
        assert await post(operator, worker) == ["POST"]
        assert await post(operator, worker) == []
        await clock.pass_(61)
        assert await post(operator, worker) == ["PATCH"]
        (event,) = await operator.cluster.find(EVENT, namespace)
        assert event["count"] == 2


async def test_an_event_that_an_earlier_process_posted_is_not_duplicated(served, namespace, user: User):
    worker = user.apply(worker_manifest(namespace))
    for expected in (["POST"], ["POST", "PATCH"]):
        async with operating(served.kubeconfig, namespace) as operator:
            assert await post(operator, worker) == expected
            assert len(await operator.cluster.find(EVENT, namespace)) == 1
