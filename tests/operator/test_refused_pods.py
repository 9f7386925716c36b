"""Jobs without pods share one list of their namespace's Events."""

import asyncio
from typing import Any

import pytest

from hypha_contracts.kinds import Kind, Manifest
from hypha_operator.jobs.refused_pods import READ_S, RefusedPods
from support.manual_clock import ManualClock

pytestmark = pytest.mark.anyio


class Events:
    """The Events of all namespaces.

    Attributes:
        lists: the namespace of each list so far.
    """

    def __init__(self) -> None:
        self.lists: list[str] = []
        self.messages: dict[str, list[str]] = {}

    async def find(self, _kind: Kind, namespace: str, **_selectors: str) -> list[Manifest]:
        self.lists.append(namespace)
        await asyncio.sleep(0)
        return [
            {"involvedObject": {"uid": uid}, "message": message, "lastTimestamp": f"2026-01-01T00:00:0{number}Z"}
            for uid, messages in self.messages.items()
            for number, message in enumerate(messages)
        ]


def job(uid: str, namespace: str = "ns") -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "uid": uid}}


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def refused_pods(events: Events, clock: ManualClock) -> RefusedPods:
    return RefusedPods(events, clock)  # type: ignore[arg-type]


async def test_many_jobs_of_a_namespace_that_ask_at_once_cause_one_list(refused_pods: RefusedPods, events: Events):
    events.messages = {"one": ["exceeded quota: small"]}
    found = await asyncio.gather(*(refused_pods.of(job(uid)) for uid in ("one", "two", "three")))
    assert [finding and finding.reason for finding in found] == ["QuotaExceeded", None, None]
    assert events.lists == ["ns"]
    await refused_pods.of(job("one", "other"))
    assert events.lists == ["ns", "other"]


async def test_the_newest_event_of_each_job_says_why_it_has_no_pod(refused_pods: RefusedPods, events: Events):
    events.messages = {"one": ["exceeded quota: small", "denied by a policy"], "two": ["exceeded quota: large"]}
    one, two = await refused_pods.of(job("one")), await refused_pods.of(job("two"))
    assert one
    assert two
    assert (one.reason, "denied by a policy" in one.message) == ("AdmissionRefused", True)
    assert (two.reason, "large" in two.message) == ("QuotaExceeded", True)


async def test_an_event_that_is_posted_later_is_found_by_the_next_list(
    refused_pods: RefusedPods, events: Events, clock: ManualClock
):
    assert await refused_pods.of(job("one")) is None
    events.messages = {"one": ["exceeded quota: small"]}
    await clock.pass_(READ_S - 1)
    assert await refused_pods.of(job("one")) is None
    await clock.pass_(1)
    assert await refused_pods.of(job("one"))
    assert events.lists == ["ns", "ns"]


async def test_a_namespace_about_which_nobody_asks_is_forgotten(refused_pods: RefusedPods, clock: ManualClock) -> None:
    await refused_pods.of(job("one", "left"))
    await clock.pass_(READ_S)
    await refused_pods.of(job("one", "used"))
    assert refused_pods._readings.keys() == {"used"}
