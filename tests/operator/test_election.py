"""Elections on a real API server, with a clock that the tests set forward."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config

from hypha_contracts.kinds import CONFIG_MAP, LEASE
from hypha_contracts.kubernetes_errors import ApiError, Unavailable
from hypha_contracts.operator_lease import LEASE_NAME
from hypha_operator.machinery.cluster import Cluster, open_client
from hypha_operator.machinery.election import (
    INTERVAL_S,
    LEADING_S,
    LEASE_S,
    UNINSTALLER,
    Election,
    lease_of,
    observed,
    write_lease,
)
from support.api_server import ApiServer
from support.manual_clock import ManualClock, settle

pytestmark = pytest.mark.anyio

RELEASE = "system/hypha"


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the API server runs in another process
            await asyncio.sleep(0.01)


class CallingClock(ManualClock):
    """A clock that waits for calls to the API server, which take no time on it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def pass_(self, seconds: float) -> None:
        await super().pass_(seconds)
        while self.calls:  # an answer may cause the next call
            await asyncio.sleep(0.005)
            if not self.calls:
                await settle()


class Flaky(Cluster):
    """A cluster that a test cuts off. While it is cut off, `hears` says whether requests arrive all the same."""

    cut = False
    hears = False

    async def _once(self, *arguments: Any) -> Any:
        self._clock.calls += 1  # type: ignore[attr-defined]
        try:
            if not self.cut:
                return await super()._once(*arguments)
            if self.hears:
                await super()._once(*arguments)
            raise Unavailable("", 0, "", "cut off")
        finally:
            self._clock.calls -= 1  # type: ignore[attr-defined]


class Replica:
    """One process of an operator. `led` records when it led."""

    def __init__(self, cluster: Flaky, clock: ManualClock, namespace: str, name: str, release: str = RELEASE) -> None:
        self.cluster, self.clock = cluster, clock
        self.election = Election(cluster, clock, (namespace, LEASE_NAME), release, name)  # type: ignore[arg-type]
        self.runs = 0
        self.working = False
        self.fails = asyncio.Event()
        self.task = asyncio.create_task(self.election.run(self._lead))

    async def _lead(self) -> None:
        self.runs += 1
        self.working = True
        try:
            await self.fails.wait()
            raise ValueError("a bug")
        finally:
            self.working = False

    async def pass_(self, seconds: float) -> None:
        """Let time pass in steps."""
        for _ in range(round(seconds / INTERVAL_S * 2)):
            await self.clock.pass_(INTERVAL_S / 2)


@asynccontextmanager
async def replicas(api: ApiServer, namespace: str) -> AsyncIterator[Callable[..., Replica]]:
    """Yield a function that starts a replica."""
    configuration = Configuration()
    await load_kube_config(config_file=str(api.kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
    clock, started = CallingClock(), []
    async with open_client(configuration, "test") as client:

        def start(name: str, release: str = RELEASE) -> Replica:
            cluster = Flaky(client, clock, lambda *_: None, attempts=1)  # type: ignore[arg-type]
            started.append(Replica(cluster, clock, namespace, name, release))
            return started[-1]

        try:
            yield start
        finally:
            for replica in started:
                replica.task.cancel()
            await asyncio.gather(*(replica.task for replica in started), return_exceptions=True)


async def holder(replica: Replica, namespace: str) -> str:
    lease = await replica.cluster.get(LEASE, namespace, LEASE_NAME)
    return str(((lease or {}).get("spec") or {}).get("holderIdentity", ""))


async def test_one_replica_leads_and_the_others_stand_by(api_server: ApiServer, namespace: str):
    async with replicas(api_server, namespace) as start:
        one = start("one")
        await eventually(lambda: one.working)
        other = start("other")
        await other.pass_(3 * LEASE_S)
        assert (one.working, other.working) == (True, False)
        assert one.election.state() == "leads"
        assert other.election.state() == "stands by; system/hypha/one leads"
        assert (one.election.problem(), other.election.problem()) == (None, None)


async def test_a_replica_that_dies_is_succeeded_once_its_lease_has_not_changed_for_13_seconds(
    api_server: ApiServer, namespace: str
):
    async with replicas(api_server, namespace) as start:
        one = start("one")
        await eventually(lambda: one.working)
        other = start("other")
        await other.pass_(INTERVAL_S * 2)
        one.cluster.cut = True  # as if it died: it cannot give the Lease back
        one.task.cancel()
        await other.pass_(LEASE_S - 2 * INTERVAL_S)
        assert not other.working
        await other.pass_(3 * INTERVAL_S)
        await eventually(lambda: other.working)


@pytest.mark.parametrize("hears", [False, True], ids=["nothing arrives", "requests arrive and answers do not"])
async def test_a_replica_that_is_cut_off_stops_before_another_one_leads(
    api_server: ApiServer, namespace: str, hears: bool
):
    async with replicas(api_server, namespace) as start:
        one = start("one")
        await eventually(lambda: one.working)
        other = start("other")
        await other.pass_(INTERVAL_S * 2)
        one.cluster.cut, one.cluster.hears = True, hears
        stopped_s = taken_s = 0.0
        for _ in range(60):
            await other.pass_(INTERVAL_S / 2)
            assert not (one.election.leads and other.election.leads)
            stopped_s = stopped_s or (other.clock.monotonic() if not one.working else 0.0)
            taken_s = taken_s or (other.clock.monotonic() if other.working else 0.0)
        assert taken_s - stopped_s >= LEASE_S - LEADING_S - INTERVAL_S
        one.cluster.cut = False
        await other.pass_(LEASE_S)
        assert (one.working, other.working) == (False, True)
        assert one.election.state() == "stands by; system/hypha/other leads"


async def test_a_replica_may_not_write_after_its_time_although_its_work_was_not_cancelled_yet(
    api_server: ApiServer, namespace: str
):
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "late", "namespace": namespace}}
    async with replicas(api_server, namespace) as start:
        one = start("one")
        await eventually(lambda: one.working)
        sent: list[str] = []
        cluster = Cluster(
            one.cluster._client,
            one.clock,  # type: ignore[arg-type]
            lambda *_: None,
            lambda method, _: sent.append(method),
            writes_until_s=one.election.leads_until_s,
        )
        await cluster.apply(config_map)
        one.cluster.cut = True
        await one.clock.pass_(LEADING_S)
        sent.clear()
        for write in (
            cluster.apply(config_map),
            cluster.create(config_map),
            cluster.delete(CONFIG_MAP, namespace, "late"),
        ):
            with pytest.raises(ApiError, match="another replica of the operator may lead"):
                await write
        assert sent == []
        assert await cluster.get(CONFIG_MAP, namespace, "late")


async def test_a_replica_that_stops_hands_over_at_once(api_server: ApiServer, namespace: str):
    async with replicas(api_server, namespace) as start:
        one = start("one")
        await eventually(lambda: one.working)
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)
        assert await holder(one, namespace) == ""
        other = start("other")
        await eventually(lambda: other.working)
        assert one.clock.monotonic() == 0


async def test_a_container_that_starts_again_in_its_pod_leads_at_once(api_server: ApiServer, namespace: str):
    async with replicas(api_server, namespace) as start:
        one = start("one")
        await eventually(lambda: one.working)
        one.cluster.cut = True
        one.task.cancel()
        again = start("one")
        await eventually(lambda: again.working)
        assert again.clock.monotonic() == 0


async def test_a_lease_that_is_labelled_or_deleted_by_hand_changes_no_leader(api_server: ApiServer, namespace: str):
    async with replicas(api_server, namespace) as start:
        one = start("one")
        await eventually(lambda: one.working)
        api_server.kubectl("label", "lease", LEASE_NAME, f"-n{namespace}", "a=b")
        await one.pass_(LEASE_S)
        api_server.kubectl("delete", "lease", LEASE_NAME, f"-n{namespace}")
        await one.pass_(LEASE_S)
        assert (one.working, one.runs) == (True, 1)
        assert await holder(one, namespace) == f"{RELEASE}/one"


async def test_work_that_fails_ends_the_election_with_its_error(api_server: ApiServer, namespace: str):
    async with replicas(api_server, namespace) as start:
        one = start("one")
        await eventually(lambda: one.working)
        one.fails.set()
        with pytest.raises(ValueError, match="a bug"):
            await one.task


async def test_a_second_release_says_which_one_serves_the_namespace_and_takes_over_once_it_is_gone(
    api_server: ApiServer, namespace: str
):
    async with replicas(api_server, namespace) as start:
        first = start("one")
        await eventually(lambda: first.working)
        second = start("one", release="other/second")
        await eventually(second.election.problem)
        assert second.election.problem() == (
            f"release {RELEASE} serves namespace {namespace}. Uninstall one of the two releases. If {RELEASE} is gone "
            f"already, wait, or run: kubectl delete lease hypha-operator -n {namespace}"
        )
        first.task.cancel()
        await asyncio.gather(first.task, return_exceptions=True)
        await second.pass_(INTERVAL_S * 2)
        await eventually(lambda: second.working)
        assert second.election.problem() is None


async def test_the_replicas_of_a_release_that_is_uninstalled_do_not_lead_again(api_server: ApiServer, namespace: str):
    async with replicas(api_server, namespace) as start:
        one = start("one")
        await eventually(lambda: one.working)
        other = start("other")
        place = (namespace, LEASE_NAME)
        seen = observed(await one.cluster.get(LEASE, *place), None, 0)
        await write_lease(one.cluster, lease_of(place, seen, f"{RELEASE}/{UNINSTALLER}", 60, one.clock.now()))
        await one.pass_(2 * INTERVAL_S)
        assert not one.working
        await one.cluster.delete(LEASE, *place)
        await one.pass_(90)
        assert [one.working, other.working] == [False, False]
        assert await one.cluster.get(LEASE, *place) is None
        await one.pass_(60)  # the release is still there after all
        await eventually(lambda: one.working or other.working)


async def test_without_the_right_to_the_lease_the_replica_says_so(api_server: ApiServer, namespace: str):
    configuration = Configuration()
    kubeconfig = api_server.service_account_kubeconfig(namespace, "nobody")
    await load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
    async with open_client(configuration, "test") as client:
        clock = CallingClock()
        replica = Replica(Flaky(client, clock, lambda *_: None, attempts=1), clock, namespace, "one")  # type: ignore[arg-type]
        await eventually(replica.election.problem)
        replica.task.cancel()
        await asyncio.gather(replica.task, return_exceptions=True)
    assert "cannot get resource" in str(replica.election.problem())
