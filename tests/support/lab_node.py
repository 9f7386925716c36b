"""A node of the laboratory: `CERT KEY TRUST GATEWAYS receive` or `CERT KEY TRUST GATEWAYS push BYTES`.

It listens on port 4001 of the transports of its gateways, whose addresses are separated by commas. It writes a JSON
object about each push that it received or sent. The one that receives writes its peer id first. The one that sends
reads this from its standard input.
"""

import hashlib
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network.errors import NetworkError
from hypha_network.identity import Identity
from hypha_network.network import Network, NetworkConfig, open_network
from hypha_network.services import hole_punching
from hypha_network.wire.addresses import parse
from hypha_network.wire.streams import Stream

PUSH = "/test/push"
hole_punching.ATTEMPT_S = 2.0  # the laboratory's packets arrive at once


def write(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def way_to(network: Network, peer_id: str) -> str:
    """Return how the node reaches a peer."""
    return "direct" if any(c.peer_id == peer_id and not c.relayed for c in network.connections()) else "relayed"


async def receive(network: Network) -> None:
    async def take(peer_id: str, stream: Stream) -> None:
        digest, size = hashlib.sha256(), 0
        while data := await stream.receive_some():
            digest.update(data)
            size += len(data)
        write(way=way_to(network, peer_id), bytes=size, sha256=digest.hexdigest())

    async def health(_: str, __: HealthRequest) -> HealthResponse:
        return HealthResponse(healthy=True)

    network.handle_stream(PUSH, take)
    network.handle(HEALTH, health)
    write(peer_id=network.peer_id, addresses=network.addresses())
    await trio.sleep_forever()


async def push(network: Network, peer_id: str, data: bytes) -> None:
    try:
        stream = await network.open_stream(peer_id, PUSH)
        await stream.send_all(data)
        await stream.send_eof()
        await stream.receive_some()
        found = {"way": way_to(network, peer_id), "sha256": hashlib.sha256(data).hexdigest()}
    except NetworkError as error:
        answer = await network.request(peer_id, HEALTH, HealthRequest())
        way = way_to(network, peer_id)
        found = {"error": type(error).__name__, "text": str(error), "healthy": answer.healthy, "way": way}
    await network.wait_until(lambda: network.reach is not None)
    write(reach=network.reach, **found)
    await trio.sleep_forever()


async def main(cert: str, key: str, trust: str, gateways: str, command: str, *arguments: str) -> None:
    identity = Identity.load(Path(cert), Path(key), Path(trust))
    known = [parse(address) for address in gateways.split(",")]
    listening = tuple(dict.fromkeys(str(replace(address, host="0.0.0.0")) for address in known))
    config = NetworkConfig(gateways=tuple(map(str, known)), listen_addresses=listening, relay_circuit=True)
    async with open_network(identity, config) as network:
        await network.wait_ready()
        await network.wait_until(lambda: len(network.status().reservations) == len({address.host for address in known}))
        if command == "receive":
            await receive(network)
        else:
            peer_id = (await trio.to_thread.run_sync(sys.stdin.readline)).strip()
            await push(network, peer_id, bytes(range(256)) * (int(arguments[0]) // 256))


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(message)s")
    trio.run(main, *sys.argv[1:])
