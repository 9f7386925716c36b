"""Nodes of a network on loopback, with certificates of one authority."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from hypha_network.identity import Identity
from hypha_network.network import Network, NetworkConfig, open_network
from hypha_network.wire.addresses import parse
from support.certs import Pki

LOOPBACK = NetworkConfig(listen_addresses=("/ip4/127.0.0.1/tcp/0",), exclude_cidr=())
DEADLINE_S = 60.0


@asynccontextmanager
async def node(pki: Pki, name: str, **config: object) -> AsyncIterator[Network]:
    """Run a node on loopback without a gateway; `config` overrides its settings."""
    async with open_network(pki.identity(name), replace(LOOPBACK, **config)) as network:
        yield network


@asynccontextmanager
async def gateway(pki: Pki, name: str = "gateway", **config: object) -> AsyncIterator[Network]:
    """Run a gateway."""
    async with node(pki, name, kademlia_server=True, relay_server=True, **config) as network:
        yield network


@asynccontextmanager
async def member(pki: Pki, name: str, *gateways: Network, **config: object) -> AsyncIterator[Network]:
    """Run a node that has joined through these gateways."""
    addresses = tuple(direct_address(network) for network in gateways)
    async with node(pki, name, gateways=addresses, **config) as network:
        with trio.fail_after(DEADLINE_S):
            await network.wait_ready()
        yield network


async def run_node(
    identity: Identity, config: NetworkConfig, task_status: trio.TaskStatus[tuple[Network, trio.Event]]
) -> None:
    """Run a node as a task for `nursery.start`, which returns the node and the event that stops it."""
    stop = trio.Event()
    async with open_network(identity, config) as network:
        task_status.started((network, stop))
        await stop.wait()


def direct_address(network: Network) -> str:
    """Return the address where the node listens, with its peer id."""
    return network.addresses()[0]


def observe(network: Network, address: str) -> None:
    """Let the gateways of a node observe it at an address."""
    for peer_id in network.status().gateways:
        for connection in network._host.connections[peer_id]:
            connection.observed = parse(address)
    network._host.changes.notify()


async def until(network: Network, condition: Callable[[], bool]) -> None:
    """Wait until a condition on a node's connections, subscribers or status holds; fail if it takes too long."""
    with trio.fail_after(DEADLINE_S):
        await network.wait_until(condition)


def messages(records: list[logging.LogRecord]) -> list[str]:
    """Return the texts of log records."""
    return [record.getMessage() for record in records]
