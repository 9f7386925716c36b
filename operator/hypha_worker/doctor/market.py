"""Joins the network for a few seconds as the node would, and reports who is there and which requests arrive."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import trio

from hypha_contracts.findings import Finding, Mark, failure, ok, skipped, warning
from hypha_contracts.node_config import NodeConfig
from hypha_contracts.reach import DESCRIPTIONS, REMEDY, Reach
from hypha_contracts.reasons import WorkerReason
from hypha_contracts.text import count
from hypha_messages.advertisement import DECODERS, TOPIC, RequestWorker
from hypha_network.errors import NetworkError
from hypha_network.identity import Identity
from hypha_network.network import Network, NetworkConfig, open_network
from hypha_network.services.gossip_messages import Gossip
from hypha_network.status import NetworkStatus
from hypha_worker.doctor import gateways
from hypha_worker.doctor.worker import Unknown, Worker
from hypha_worker.market.evaluator import Refusal
from hypha_worker.market.settings import EVERYTHING, settings_of
from hypha_worker.node import network_config

JOIN_S: Final = 12.0
SUBSCRIBE_S: Final = 5.0
LISTEN_S: Final = 3.0
REACH_S: Final = 5.0
_MAX_REQUESTS: Final = 1000
_REMEDIES: Final = {
    WorkerReason.BID_BELOW_FLOOR: "Lower offer.floor and offer.price, or have schedulers bid more.",
    WorkerReason.EXECUTOR_UNSUPPORTED: "Add the executor to [[executors]] under the class and name that it asks for.",
    WorkerReason.NO_EXECUTOR: "Have the scheduler name an executor.",
    WorkerReason.MORE_THAN_CAPACITY: "Raise [resources] if the machine has more, or have the scheduler ask for less.",
    WorkerReason.MORE_THAN_PER_JOB: "Raise resources.per_job, or have the scheduler ask for less.",
    WorkerReason.MORE_THAN_SHARE: "Raise schedulers.max_share, or have the scheduler ask for less.",
    WorkerReason.SCHEDULER_BLOCKED: "Remove the scheduler from schedulers.block if it may have jobs here.",
    WorkerReason.SCHEDULER_NOT_ALLOWED: "Add the scheduler to schedulers.allow, or empty that list.",
    WorkerReason.NO_BULK_DATA: "Do what the check network.reach says, or set offer.aggregate_needs_reach = false if "
    "all trainers reach this node.",
    WorkerReason.REQUEST_EXPIRED: "Correct the clock of this machine or of the scheduler.",
}


@dataclass(frozen=True)
class Visit:
    """What a visit to the network showed.

    Attributes:
        peers: how many peers are connected.
        subscribers: the connected peers that subscribe to the topic of all workers.
        mesh: the peers that send each request to this node.
        refusals: of each request that arrived, why it would get no offer, or None.
    """

    status: NetworkStatus
    peers: int
    subscribers: tuple[str, ...]
    mesh: tuple[str, ...]
    refusals: tuple[Refusal | None, ...]


async def visit(worker: Worker) -> Visit:
    """Join the network and listen for requests. Unknown beside a running node, whose place this would take."""
    config, identity = worker.config, worker.usable_identity()
    if config.kubernetes is not None:
        raise Unknown("the controller's pod joins the network; `kubectl describe hyphaworker` shows its state")
    if worker.running_node() is not None:
        raise Unknown("a node runs, and its log shows this: see the lines of hypha_worker.node and market.arbiter")
    if all(answer.mark in (Mark.FAILURE, Mark.SKIPPED) for answer in await worker.fact(gateways.ask_all)):
        raise Unknown("no gateway can be reached")
    topics, heard = settings_of(config, EVERYTHING).policy.topics, list[tuple[Gossip[RequestWorker], float]]()

    async def listen(network: Network, topic: str) -> None:
        rate = config.arbiter.requests_per_s
        with network.subscribe(topic, DECODERS[topic], _MAX_REQUESTS, rate) as requests:
            async for gossip in requests:
                heard.append((gossip, time.time()))

    async with _open_network(identity, network_config(config)) as network, trio.open_nursery() as nursery:
        for topic in topics:
            nursery.start_soon(listen, network, topic)
        with trio.move_on_after(JOIN_S):
            await network.wait_ready()
        if network.status().gateways:
            with trio.move_on_after(SUBSCRIBE_S):
                await network.wait_until(lambda: bool(network.subscribers(TOPIC)))
            await trio.sleep(LISTEN_S)
            with trio.move_on_after(REACH_S):
                await network.wait_until(lambda: network.reach is not None)
        accept = settings_of(config, EVERYTHING, network.reach).policy
        refusals = (accept.exclusion(said.source) or accept.refusal(said.message, at) for said, at in heard)
        found = Visit(
            network.status(),
            len(network.connected_peers()),
            tuple(network.subscribers(TOPIC)),
            tuple(network.mesh(TOPIC)),
            tuple(refusals),
        )
        nursery.cancel_scope.cancel()
    return found


@asynccontextmanager
async def _open_network(identity: Identity, config: NetworkConfig) -> AsyncIterator[Network]:
    """Join the network as the node would, or without its listen addresses if they are taken."""
    async with AsyncExitStack() as stack:
        try:
            network = await stack.enter_async_context(open_network(identity, config))
        except NetworkError:
            without = replace(config, listen_addresses=())
            network = await stack.enter_async_context(open_network(identity, without))
        yield network


async def join(worker: Worker) -> Iterable[Finding]:
    """Return whether the node can join the network."""
    found = await worker.fact(visit)
    return list(judge_status(found.status, found.peers, worker.config))


def judge_status(status: NetworkStatus, peers: int, config: NodeConfig) -> Iterator[Finding]:
    """Yield which steps of joining the network failed."""
    if not status.gateways:
        yield failure("no gateway is connected, so the node cannot join the network", "See the check of the gateways.")
        return
    if not status.bootstrapped:
        yield failure(
            "the gateways did not answer a look-up of peers", "Use gateways of the same network and a current version."
        )
    if config.relay_circuit and not status.reservations and config.external_addresses:
        yield warning(
            "no gateway reserved a relay slot, so peers reach this node at its external addresses alone",
            "Use a gateway that relays, or set relay_circuit = false.",
        )
    elif config.relay_circuit and not status.reservations:
        yield failure(
            "no gateway reserved a relay slot, so peers behind other routers cannot reach this node",
            "Use a gateway that relays, or set relay_circuit = false and name external_addresses.",
        )
    if status.healthy:
        slots = count(len(status.reservations), "relay slot")
        yield ok(f"the node can join: {count(len(status.gateways), 'gateway')}, {slots}, {count(peers, 'peer')}")


async def reach(worker: Worker) -> Iterable[Finding]:
    """Return how peers reach the node."""
    found = await worker.fact(visit)
    if not found.status.gateways:
        raise Unknown("no gateway is connected")
    if found.status.reach is None:
        raise Unknown("no gateway has observed the node")
    return [judge_reach(found.status.reach, worker.config)]


def judge_reach(reach: Reach, config: NodeConfig) -> Finding:
    """Return how peers reach the node, and what to do if some cannot send it bulk data."""
    text = f"peers reach the node {DESCRIPTIONS[reach]}"
    if reach.takes_bulk:
        return ok(text)
    if config.offer.aggregate_needs_reach and any(executor.class_ == "aggregate" for executor in config.executors):
        text += ", so it makes no offers for jobs of class aggregate"
    return warning(text, REMEDY)


async def topic(worker: Worker) -> Iterable[Finding]:
    """Return whether requests can reach the node."""
    found = await worker.fact(visit)
    if not found.status.gateways:
        raise Unknown("no gateway is connected")
    return [judge_topic(found.subscribers, found.mesh)]


def judge_topic(subscribers: tuple[str, ...], mesh: tuple[str, ...]) -> Finding:
    """Return whether peers with the same topic send requests to this node."""
    if not subscribers:
        return failure(
            f"no connected peer subscribes to {TOPIC}, so no request can arrive",
            "Check that the gateways run a current version and belong to the network of the schedulers.",
        )
    if not mesh:
        return warning(
            f"subscribers of {TOPIC}: {len(subscribers)}; none has this node in its mesh, so requests come late",
            "Wait a minute, because peers refuse a node that just left. Then try again, or add a gateway.",
        )
    return ok(f"subscribers of {TOPIC}: {len(subscribers)}; those with this node in their mesh: {len(mesh)}")


async def requests(worker: Worker) -> Iterable[Finding]:
    """Return what the node would answer to the requests that arrived."""
    found = await worker.fact(visit)
    if not found.subscribers:
        raise Unknown("no request can arrive")
    return list(judge_requests(found.refusals))


def judge_requests(refusals: tuple[Refusal | None, ...]) -> Iterator[Finding]:
    """Yield how many requests the node would refuse, for each reason with an example."""
    if not refusals:
        yield skipped(f"no scheduler published a request within {LISTEN_S:g} s")
        return
    counts = Counter(refusal.reason for refusal in refusals if refusal)
    for reason, number in counts.most_common():
        example = next(refusal.message for refusal in refusals if refusal and refusal.reason == reason)
        yield warning(
            f"{number} of {len(refusals)} requests would get no offer: {example}", _REMEDIES.get(reason, reason.remedy)
        )
    if answered := refusals.count(None):
        yield ok(f"{answered} of {len(refusals)} requests may get an offer")
