"""Each fault of the network is caused for real, and its check finds it and names the remedy."""

import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hypha_contracts.reach import Reach
from hypha_messages.advertisement import TOPIC, decode, encode
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Resources
from hypha_network.network import Network
from hypha_worker.config_file import load
from hypha_worker.doctor.market import judge_reach
from support.certs import Pki, identity_of
from support.examined import CLOSED, examine, http_server, problem, write_config
from support.networks import DEADLINE_S, LOOPBACK, direct_address, gateway, member, run_node, until
from support.node_process import NodeProcess, stage
from support.worker import request

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def forwarding_gateway(pki: Pki) -> AsyncIterator[Network]:
    """A gateway that forwards requests, as those of the network do."""
    async with gateway(pki) as entry:
        with entry.subscribe(TOPIC, decode):
            yield entry


async def test_a_gateway_that_accepts_the_node_is_named_with_its_peer_id(directory: Path, pki: Pki) -> None:
    async with gateway(pki) as entry:
        path = write_config(directory, pki, gateway_addresses=[direct_address(entry)])
        [found] = await examine(path, "network.gateways")
    assert found.mark == "ok"
    assert f"accepts this node: {entry.peer_id}, round trip" in found.message


async def test_a_port_at_which_nothing_listens_is_a_failure(directory: Path, pki: Pki) -> None:
    found = await problem(write_config(directory, pki), "network.gateways")
    assert found.message.startswith(f"gateway {CLOSED}: ")
    assert found.message.endswith("Connection refused")
    assert found.remedy == "Nothing listens there. Correct the port, start the gateway, or open its firewall."


async def test_a_name_that_does_not_exist_is_a_failure(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki, gateway_addresses=["/dns4/gateway.invalid/tcp/4001"])
    found = await problem(path, "network.gateways")
    assert found.remedy == "Correct the host name, or check this machine's name servers."


async def test_a_gateway_with_another_peer_id_is_a_failure(directory: Path, pki: Pki) -> None:
    other = pki.identity("other").peer_id
    async with gateway(pki) as entry:
        address = direct_address(entry).replace(entry.peer_id, other)
        found = await problem(write_config(directory, pki, gateway_addresses=[address]), "network.gateways")
    assert f"dialled {other}, but {entry.peer_id} answered" in found.message
    assert found.remedy.startswith("Correct the peer id after /p2p/")


async def test_a_gateway_of_another_network_is_a_failure(directory: Path, pki: Pki) -> None:
    async with gateway(Pki()) as entry:
        path = write_config(directory, pki, gateway_addresses=[direct_address(entry)])
        found = await problem(path, "network.gateways")
    assert "TLS handshake" in found.message
    assert found.remedy.startswith("Check trust_pem and the clock")


async def test_a_gateway_that_refuses_the_certificate_is_a_failure(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    text = path.read_text()
    async with trio.open_nursery() as nursery:
        entry = identity_of(pki.node("gateway"), trust=Pki().root.trust_pem)  # it trusts others only
        network, stop = await nursery.start(run_node, entry, LOOPBACK)
        path.write_text(text.replace(CLOSED, direct_address(network)))
        found = await problem(path, "network.gateways")
        stop.set()
    assert found.message.endswith("its trust bundle does not lead to our certificate")
    assert found.remedy.startswith("Ask the gateway's operator whether it trusts the authority")


async def test_another_service_at_the_gateways_address_is_a_failure(directory: Path, pki: Pki) -> None:
    with http_server() as url:
        address = f"/ip4/127.0.0.1/tcp/{url.rpartition(':')[2]}"
        found = await problem(write_config(directory, pki, gateway_addresses=[address]), "network.gateways")
    assert found.remedy == "Something other than a gateway answers there. Correct the address and its port."


async def test_a_silent_service_at_the_gateways_address_is_a_failure(
    directory: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypha_worker.doctor.gateways.CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"
        found = await problem(write_config(directory, pki, gateway_addresses=[address]), "network.gateways")
    assert found.message == f"gateway {address}: no answer within 0.5 s"
    assert found.remedy == "Check the route and firewalls between this machine and the gateway."


async def test_a_gateway_that_is_silent_over_quic_is_a_failure_whose_remedy_names_udp(
    directory: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypha_worker.doctor.gateways.CONNECT_S", 0.5)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/udp/{silent.getsockname()[1]}/quic-v1"
        found = await problem(write_config(directory, pki, gateway_addresses=[address]), "network.gateways")
    assert found.message == f"gateway {address}: no answer within 0.5 s"
    assert "listens there over QUIC" in found.remedy
    assert "pass UDP" in found.remedy


async def test_each_gateway_is_asked_and_an_unsupported_transport_is_skipped(directory: Path, pki: Pki) -> None:
    async with gateway(pki) as entry:
        webrtc = "/ip4/127.0.0.1/udp/4001/webrtc-direct"
        path = write_config(directory, pki, gateway_addresses=[direct_address(entry), CLOSED, webrtc])
        assert [found.mark for found in await examine(path, "network.gateways")] == ["ok", "failure", "skipped"]


async def test_a_gateway_in_an_excluded_network_is_a_warning(directory: Path, pki: Pki) -> None:
    async with gateway(pki) as entry:
        path = write_config(directory, pki, gateway_addresses=[direct_address(entry)], exclude_cidr=["127.0.0.0/8"])
        found = await problem(path, "network.gateways")
    assert (found.mark, "Remove that network from exclude_cidr" in found.remedy) == ("warning", True)


@pytest.mark.parametrize(("external", "mark"), [([], "failure"), (["/dns4/a.example.org/tcp/1"], "warning")])
async def test_a_gateway_that_does_not_relay_is_a_failure_to_join_without_external_addresses(
    external: list[str], mark: str, directory: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("JOIN_S", 2.0), ("SUBSCRIBE_S", 0.1), ("LISTEN_S", 0.1)):
        monkeypatch.setattr(f"hypha_worker.doctor.market.{name}", seconds)
    async with trio.open_nursery() as nursery:
        roles = LOOPBACK.__class__(listen_addresses=LOOPBACK.listen_addresses, exclude_cidr=(), kademlia_server=True)
        network, stop = await nursery.start(run_node, pki.identity("gateway"), roles)
        path = write_config(
            directory,
            pki,
            gateway_addresses=[direct_address(network)],
            relay_circuit=True,
            external_addresses=external,
        )
        found = next(found for found in await examine(path, "network.join") if found.mark != "ok")
        stop.set()
    assert found.mark == mark
    assert "no gateway reserved a relay slot" in found.message
    assert found.remedy.startswith("Use a gateway that relays")


async def test_the_rest_is_skipped_if_no_gateway_can_be_reached(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki)
    for check in ("network.join", "market.topic", "market.requests"):
        [found] = await examine(path, check)
        assert (found.mark, found.message) == ("skipped", "no gateway can be reached")


async def test_a_gateway_without_the_topic_is_a_failure(
    directory: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypha_worker.doctor.market.SUBSCRIBE_S", 0.5)
    monkeypatch.setattr("hypha_worker.doctor.market.LISTEN_S", 0.1)
    async with gateway(pki) as entry:
        found = await problem(write_config(directory, pki, gateway_addresses=[direct_address(entry)]), "market.topic")
    assert found.message == "no connected peer subscribes to hypha/worker, so no request can arrive"
    assert "belong to the network of the schedulers" in found.remedy


async def test_a_gateway_with_the_topic_has_the_node_in_its_mesh(directory: Path, pki: Pki) -> None:
    async with forwarding_gateway(pki) as entry:
        path = write_config(directory, pki, gateway_addresses=[direct_address(entry)])
        [joined] = await examine(path, "network.join")
        assert (joined.mark, "the node can join: 1 gateway," in joined.message) == ("ok", True)
        [reached] = await examine(path, "network.reach")
        assert (reached.mark, reached.message) == (
            "ok",
            "peers reach the node directly, unless a firewall keeps them out",
        )
        [found] = await examine(path, "market.topic")
    assert (found.mark, found.message) == (
        "ok",
        "subscribers of hypha/worker: 1; those with this node in their mesh: 1",
    )


async def test_requests_that_the_node_would_refuse_are_shown_with_the_reason(directory: Path, pki: Pki) -> None:
    async with forwarding_gateway(pki) as entry, member(pki, "scheduler", entry) as scheduler:
        path = write_config(directory, pki, gateway_addresses=[direct_address(entry)])

        async def advertise() -> None:
            test = (ExecutorDescriptor(class_="train", name="test"),)
            while True:
                for wanted, bid in ((Resources(cpu=0.1), 1), (Resources(memory=99), 500), (Resources(cpu=0.1), 500)):
                    message = request(wanted, bid, timeout=4e9, executors=test)
                    await scheduler.publish(TOPIC, encode(message))
                await trio.sleep(0.3)

        async with trio.open_nursery() as nursery:
            await until(scheduler, lambda: bool(scheduler.subscribers(TOPIC)))
            nursery.start_soon(advertise)
            found = await examine(path, "market.requests")
            nursery.cancel_scope.cancel()
    text = {finding.message.partition(": ")[2]: finding.remedy for finding in found if finding.mark == "warning"}
    assert text.pop("the bid 1 is below the floor 100").startswith("Lower offer.floor")
    [(capacity, remedy)] = text.items()
    assert capacity == "it asks for 99 GB of memory, of which this worker has 0.1"
    assert remedy.startswith("Raise [resources]")
    assert found[-1].mark == "ok"


@pytest.mark.parametrize(
    ("reach", "mark"),
    [
        (Reach.PUBLIC, "ok"),
        (Reach.PUNCHABLE, "ok"),
        (Reach.BULK_RELAY, "ok"),
        (Reach.LIMITED_RELAY, "warning"),
        (Reach.NONE, "warning"),
    ],
)
def test_a_node_that_some_peers_cannot_send_models_is_warned(
    reach: Reach, mark: str, directory: Path, pki: Pki
) -> None:
    for class_, needs_reach in (("train", True), ("aggregate", True), ("aggregate", False)):
        offer = {"aggregate_needs_reach": needs_reach}
        path = write_config(directory, pki, executor={"class": class_}, offer=offer)
        found = judge_reach(reach, load(path, {}).config)
        assert found.mark == mark
        assert mark == "ok" or found.remedy.startswith("Forward a port")
        makes_no_offers = mark == "warning" and class_ == "aggregate" and needs_reach
        assert ("makes no offers for jobs of class aggregate" in found.message) is makes_no_offers


async def test_requests_to_aggregate_are_refused_where_peers_could_not_send_their_updates(
    directory: Path, pki: Pki
) -> None:
    async with forwarding_gateway(pki) as entry, member(pki, "scheduler", entry) as scheduler:
        path = write_config(
            directory,
            pki,
            executor={"class": "aggregate"},
            gateway_addresses=[direct_address(entry)],
            listen_addresses=[],
            relay_circuit=True,
        )

        async def advertise() -> None:
            aggregate = (ExecutorDescriptor(class_="aggregate", name="test"),)
            while True:
                message = request(Resources(cpu=0.1), 500, timeout=4e9, executors=aggregate)
                await scheduler.publish(TOPIC, encode(message))
                await trio.sleep(0.3)

        async with trio.open_nursery() as nursery:
            await until(scheduler, lambda: bool(scheduler.subscribers(TOPIC)))
            nursery.start_soon(advertise)
            found = await examine(path, "market.requests")
            nursery.cancel_scope.cancel()
    [refused] = found
    assert (refused.mark, "trainers could not send it their updates" in refused.message) == ("warning", True)
    assert "offer.aggregate_needs_reach" in refused.remedy


async def until_ready(node: NodeProcess) -> None:
    with trio.fail_after(DEADLINE_S):
        while "connected peers subscribe to hypha/worker" not in node.log:  # noqa: ASYNC110 - another process writes it
            await trio.sleep(0.05)


async def test_a_running_node_is_named_and_hears_requests_all_the_same(directory: Path, pki: Pki) -> None:
    async with forwarding_gateway(pki) as entry, stage(pki, entry, "run", relay_circuit=True) as running:
        config = running.node.config
        await until_ready(running.node)
        [found] = await examine(config, "configuration.node")
        assert f"a node runs with this work_dir (process {running.node.pid})" in found.message
        assert [found.mark for found in await examine(config, "network.gateways")] == ["ok"]
        assert [found.mark for found in await examine(config, "network.listen")] == ["skipped"]
        for check in ("network.join", "market.topic", "market.requests"):
            [found] = await examine(config, check)
            assert (found.mark, "a node runs" in found.message) == ("skipped", True)
        assert [found.mark for found in await examine(config, "work_dir.sockets")] == ["ok"]
        subscribers = entry.subscribers(TOPIC)
        assert len(subscribers) == 1
        assert subscribers == entry.mesh(TOPIC)
        with trio.fail_after(DEADLINE_S):
            await running.scheduler.lease(within_s=20)
        assert "lost the connection" not in running.node.log
        relayed = f"{direct_address(entry)}/p2p-circuit/p2p/{subscribers[0]}"
        with trio.fail_after(DEADLINE_S):
            assert await running.scheduler.network.dial(relayed) == subscribers[0], "its relay slot is still reserved"


async def test_a_sound_worker_passes_all_checks_with_exit_code_0(directory: Path, pki: Pki) -> None:
    async with forwarding_gateway(pki) as entry:
        path = write_config(directory, pki, gateway_addresses=[direct_address(entry)], relay_circuit=True)
        command = [sys.executable, "-m", "hypha_worker", "doctor", "--json", "--config", str(path)]
        with trio.fail_after(DEADLINE_S):
            result = await trio.run_process(command, capture_stdout=True, check=False)
    marks = {check["id"]: check["mark"] for check in json.loads(result.stdout)["checks"]}
    assert result.returncode == 0, marks
    assert {marks[check] for check in ("network.gateways", "network.join", "market.topic")} == {"ok"}
