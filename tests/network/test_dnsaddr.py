"""A gateway whose name has its addresses in TXT records."""

import socket
from collections.abc import Iterator, Sequence

import pytest

from hypha_network.errors import DialError
from hypha_network.wire import addresses, dnsaddr
from hypha_network.wire.addresses import AddressError
from hypha_network.wire.dnsaddr import MAX_ADDRESSES, MAX_NAMES, NamedGateway, look_up, parse, parse_gateway
from support.certs import Pki
from support.name_server import name_server
from support.networks import direct_address, gateway, node, until

pytestmark = pytest.mark.anyio
A, B = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne", "12D3KooWSoVJ2JZZJFSzMWDLBXBY9ZrVJFSGQqgdbJKWZHyzHNxg"
NAME = "gateway.example.org"
Records = dict[str, Sequence[str]]


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[Records]:
    """The records of all names, which a test fills."""
    known: Records = {}
    with name_server(known) as resolver:
        monkeypatch.setattr(dnsaddr, "resolver", lambda: resolver)
        yield known


async def found(gateway: NamedGateway) -> list[str]:
    return [str(address) for address in await look_up(gateway)]


@pytest.mark.parametrize("text", [f"/dnsaddr/{NAME}", f"/dnsaddr/{NAME}/p2p/{A}"])
def test_a_name_is_parsed_with_or_without_the_peer(text: str) -> None:
    assert str(parse(text)) == text
    assert isinstance(parse_gateway(text), NamedGateway)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/dnsaddr", "only /p2p"),
        ("/dnsaddr/a b", "a b"),
        (f"/dnsaddr/{NAME}/tcp/4001", "only /p2p"),
        (f"/dnsaddr/{NAME}/p2p/nobody", "nobody"),
    ],
)
def test_a_malformed_name_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(AddressError, match=reason):
        parse(text)


def test_an_address_of_another_kind_is_no_name() -> None:
    assert parse("/ip4/203.0.113.1/tcp/4001") is None
    assert parse_gateway("/ip4/203.0.113.1/tcp/4001") == addresses.parse("/ip4/203.0.113.1/tcp/4001")


async def test_the_addresses_of_all_records_are_found_and_those_of_other_transports_left_out(records: Records) -> None:
    usable = [f"/ip4/203.0.113.1/tcp/4001/p2p/{A}", f"/dns4/{NAME}/udp/4001/quic-v1/p2p/{B}"]
    others = ["v=spf1 -all", "dnsaddr=/ip4/203.0.113.1/tcp/80/ws", "dnsaddr=nonsense", "dnsaddr=" + "x" * 400]
    records[f"_dnsaddr.{NAME}"] = [*(f"dnsaddr={address}" for address in usable), *others]
    assert sorted(await found(NamedGateway(NAME))) == sorted(usable)


async def test_a_peer_id_selects_the_addresses_of_one_peer(records: Records) -> None:
    records[f"_dnsaddr.{NAME}"] = [f"dnsaddr=/ip4/203.0.113.{n}/tcp/4001/p2p/{peer}" for n, peer in ((1, A), (2, B))]
    assert await found(NamedGateway(NAME, B)) == [f"/ip4/203.0.113.2/tcp/4001/p2p/{B}"]


async def test_records_that_refer_to_further_names_are_followed_even_in_a_circle(records: Records) -> None:
    records[f"_dnsaddr.{NAME}"] = ["dnsaddr=/dnsaddr/east.example.org"]
    records["_dnsaddr.east.example.org"] = [f"dnsaddr=/dnsaddr/{NAME}", "dnsaddr=/ip4/203.0.113.1/tcp/4001"]
    assert await found(NamedGateway(NAME)) == ["/ip4/203.0.113.1/tcp/4001"]


async def test_few_addresses_are_taken_and_few_names_followed(records: Records) -> None:
    last = f"{MAX_NAMES - 1}.example.org"
    for number in range(50):
        records[f"_dnsaddr.{number}.example.org"] = [f"dnsaddr=/dnsaddr/{number + 1}.example.org"]
    records[f"_dnsaddr.{last}"] = ["dnsaddr=/dnsaddr/more.example.org", "dnsaddr=/ip4/203.0.113.1/tcp/4001"]
    assert len(await found(NamedGateway("0.example.org"))) == 1
    records[f"_dnsaddr.{NAME}"] = [f"dnsaddr=/ip4/203.0.113.1/tcp/{port}" for port in range(1, 60)]
    assert len(await found(NamedGateway(NAME))) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (None, "does not exist"),
        ([], "no TXT record"),
        (["dnsaddr=/ip4/203.0.113.1/udp/1/webrtc-direct"], "no TXT record"),
        (["dnsaddr=/ip4/nonsense/tcp/1"], "nonsense"),
    ],
)
async def test_a_name_without_an_address_to_use_says_so(
    records: Records, texts: Sequence[str] | None, reason: str
) -> None:
    if texts is not None:
        records[f"_dnsaddr.{NAME}"] = texts
    with pytest.raises(DialError, match=reason):
        await look_up(NamedGateway(NAME))


async def test_a_name_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsaddr, "LOOK_UP_TIMEOUT_S", 0.05)
    with name_server({}) as resolver, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        resolver.port = silent.getsockname()[1]
        monkeypatch.setattr(dnsaddr, "resolver", lambda: resolver)
        with pytest.raises(DialError, match="no answer of the name server"):
            await look_up(NamedGateway(NAME))


async def test_a_node_joins_through_a_gateway_that_its_name_leads_to_and_finds_it_again(records: Records) -> None:
    pki = Pki()
    closed = "/ip4/127.0.0.1/tcp/1"
    async with gateway(pki) as first:
        records[f"_dnsaddr.{NAME}"] = [f"dnsaddr={closed}", f"dnsaddr={direct_address(first)}"]
        async with node(pki, "a", gateways=(f"/dnsaddr/{NAME}",)) as a:
            await until(a, lambda: a.status().healthy)
            assert a.status().gateways == (first.peer_id,)
            await until(a, lambda: bool(a._observed.addresses()))  # dialled from the listening port, as configured
            async with gateway(pki, "second") as second:
                records[f"_dnsaddr.{NAME}"] = [f"dnsaddr={direct_address(second)}"]
                for connection in list(a._host.connections[first.peer_id]):
                    connection.close()
                await until(a, lambda: a.status().gateways == (second.peer_id,))
