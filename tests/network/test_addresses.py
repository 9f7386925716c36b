import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from hypha_contracts.addresses import RESERVED_CIDRS, unwrap
from hypha_network.errors import PeerUnreachable
from hypha_network.wire import addresses
from hypha_network.wire.addresses import (
    Address,
    AddressError,
    TransportName,
    excluded,
    expand,
    parse,
    parse_cidrs,
    parse_supported,
    usable,
)
from hypha_network.wire.multistream import encode_varint
from hypha_network.wire.transports import transports
from support.certs import Pki
from support.networks import direct_address, gateway, member, node

A = "12D3KooWBkAZ52FV28vNpUsNcSLLfdTZdhph8Vhb2w5hCENAinpB"
B = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"


@pytest.mark.parametrize("host", [".host", "a..b", "-a-", "a_b", "xn--a", "ab--c", "x" * 253])
def test_every_host_name_that_is_read_can_be_written(host: str) -> None:
    name = host.encode()
    data = b"\x36" + encode_varint(len(name)) + name + b"\x06\x0f\xa1"
    assert addresses.from_bytes(data).to_bytes() == data


@pytest.mark.parametrize("end", ["", f"/p2p/{A}", f"/p2p/{A}/p2p-circuit", f"/p2p/{A}/p2p-circuit/p2p/{B}"])
@pytest.mark.parametrize("port", ["tcp/4001", "udp/4001/quic-v1"])
@pytest.mark.parametrize("host", ["ip4/203.0.113.1", "ip6/2001:db8::1", "dns/host", "dns4/a.example", "dns6/host"])
def test_an_address_is_written_as_libp2p_writes_it(host: str, port: str, end: str) -> None:
    text = f"/{host}/{port}{end}"
    assert parse(text).to_bytes() == Multiaddr(text).to_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/203.0.113.50/tcp/4001",
        "/ip6/2001:db8::1/tcp/1",
        "/dns4/gateway.example.org/tcp/4001",
        "/dns6/gateway.example.org/tcp/4001",
        "/dns/gateway/tcp/65535",
        "/ip4/203.0.113.50/udp/4001/quic-v1",
        f"/dns6/gateway/udp/4001/quic-v1/p2p/{A}",
        f"/ip6/2001:db8::1/udp/4001/quic-v1/p2p/{A}/p2p-circuit/p2p/{B}",
        f"/ip4/203.0.113.50/tcp/4001/p2p/{A}",
        f"/ip4/203.0.113.50/tcp/4001/p2p/{A}/p2p-circuit",
        f"/ip4/203.0.113.50/tcp/4001/p2p/{A}/p2p-circuit/p2p/{B}",
    ],
)
def test_an_address_reads_back_as_it_was_written(text: str) -> None:
    assert str(parse(text)) == text
    assert addresses.from_bytes(parse(text).to_bytes()) == parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "host and a port"),
        ("/ip4/1.2.3.4", "host and a port"),
        ("203.0.113.50:4001", "host and a port"),
        ("/ip4/1.2.3.400/tcp/1", "1.2.3.400"),
        ("/ip4/1.2.3.4/tcp/70000", "70000"),
        ("/ip4/1.2.3.4/tcp/x", "'x'"),
        ("/ip4/1.2.3.4/udp/1", "udp"),
        ("/ip4/1.2.3.4/udp/1/webrtc-direct", "webrtc-direct"),
        ("/ip4/1.2.3.4/tcp/1/quic-v1", "quic-v1"),
        ("/ip6/1.2.3.4/tcp/1", "1.2.3.4"),
        ("/dns4/a b/tcp/1", "a b"),
        ("/dns4//tcp/1", "''"),
        ("/ip4/1.2.3.4/tcp/1/p2p/nonsense", "nonsense"),
        ("/ip4/1.2.3.4/tcp/1/ws", "/ws"),
        (f"/ip4/1.2.3.4/tcp/1/p2p-circuit/p2p/{A}", "/p2p-circuit"),
        ("/unix/tmp/tcp/1", "host and a port"),
    ],
)
def test_a_malformed_address_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(AddressError, match=re.escape(reason)):
        parse(text)


def test_an_address_of_an_unsupported_transport_is_none_and_a_malformed_one_is_an_error() -> None:
    assert parse_supported("/ip4/1.2.3.4/tcp/1") == parse("/ip4/1.2.3.4/tcp/1")
    assert parse_supported("/ip4/1.2.3.4/udp/1/webrtc-direct") is None
    assert parse_supported("/ip4/1.2.3.4/tcp/1/ws") is None
    assert parse_supported("/dnsaddr/gateway.example.org") is None  # of gateways alone
    with pytest.raises(AddressError, match="nonsense"):
        parse_supported("nonsense")


def test_every_transport_that_an_address_can_name_has_an_implementation() -> None:
    assert set(transports(None)) == set(TransportName)  # type: ignore[arg-type]


def test_ipfs_is_another_name_of_p2p() -> None:
    assert parse(f"/dns4/ipfs/tcp/1/ipfs/{A}/p2p-circuit/ipfs/{B}") == parse(
        f"/dns4/ipfs/tcp/1/p2p/{A}/p2p-circuit/p2p/{B}"
    )


@given(st.text())
def test_any_text_parses_as_an_address_or_is_refused(text: str) -> None:
    try:
        address = parse(text)
    except AddressError:
        return
    assert parse(str(address)) == address


@given(st.binary(max_size=80))
def test_any_bytes_parse_as_an_address_or_are_refused(data: bytes) -> None:
    try:
        address = addresses.from_bytes(data)
    except AddressError:
        return
    assert isinstance(address, Address)


def test_a_binary_address_costs_no_more_than_a_few_parts() -> None:
    host = Multiaddr("/ip4/203.0.113.1/tcp/4001").to_bytes()
    circuit, name = bytes.fromhex("a202"), bytes.fromhex("350178")
    for hostile in (host + circuit * 500, host + name * 300, bytes.fromhex("060001") * 300, bytes.fromhex("35f007")):
        with pytest.raises(AddressError) as refused:
            addresses.from_bytes(hostile)
        assert len(str(refused.value)) < 200


def test_a_host_name_of_a_binary_address_cannot_hold_further_parts() -> None:
    name = b"host/tcp/1/p2p/12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"
    with pytest.raises(AddressError, match="not a host name"):
        addresses.from_bytes(b"\x35" + bytes([len(name)]) + name + bytes.fromhex("060001"))


def test_announced_addresses_of_unsupported_transports_are_left_out() -> None:
    said = [
        Multiaddr("/ip4/203.0.113.1/udp/4001/quic-v1/webtransport").to_bytes(),
        b"nonsense",
        Multiaddr("/ip4/203.0.113.1/tcp/0").to_bytes(),
        Multiaddr("/ip4/203.0.113.1/tcp/4001").to_bytes(),
        Multiaddr("/ip4/203.0.113.1/tcp/4001").to_bytes(),
    ]
    assert usable(said) == [parse("/ip4/203.0.113.1/tcp/4001")]


def test_a_peer_cannot_occupy_the_node_with_addresses_that_it_cannot_use() -> None:
    unusable = Multiaddr("/ip4/203.0.113.1/udp/4001/quic-v1/webtransport").to_bytes()
    parsed = iter([unusable] * 10_000)
    assert usable(parsed) == []
    assert len(list(parsed)) >= 10_000 - 32


def test_a_peer_cannot_have_more_addresses_than_the_limit() -> None:
    said = [parse(f"/ip4/203.0.113.1/tcp/{port}").to_bytes() for port in range(1, 100)]
    assert len(usable(said, limit=16)) == 16


@given(st.ip_addresses())
def test_an_address_is_excluded_exactly_if_it_lies_in_one_of_the_networks(ip: object) -> None:
    networks = parse_cidrs(RESERVED_CIDRS)
    version = "ip6" if ":" in str(ip) else "ip4"
    forms = (ip, unwrap(ip))  # type: ignore[arg-type]
    expected = any(form in network for form in forms for network in networks if network.version == form.version)  # type: ignore[attr-defined,operator]
    assert excluded(parse(f"/{version}/{ip}/tcp/1"), networks) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("ip4/127.0.0.1", True),
        ("ip4/10.255.255.255", True),
        ("ip4/11.0.0.0", False),
        ("ip4/172.31.255.255", True),
        ("ip4/172.32.0.0", False),
        ("ip4/192.168.1.1", True),
        ("ip4/169.254.0.1", True),
        ("ip6/::1", True),
        ("ip6/fe80::1", True),
        ("ip6/fd00::1", True),
        ("ip6/2001:db8::1", False),
        ("dns4/localhost", False),
    ],
)
def test_the_default_excludes_loopback_private_and_local_networks(host: str, expected: bool) -> None:
    assert excluded(parse(f"/{host}/tcp/1"), parse_cidrs(RESERVED_CIDRS)) is expected


def test_an_address_behind_a_relay_is_excluded_by_the_relays_network() -> None:
    assert excluded(parse(f"/ip4/10.0.0.1/tcp/1/p2p/{A}/p2p-circuit/p2p/{B}"), parse_cidrs(RESERVED_CIDRS))


def test_a_malformed_network_is_named_in_the_error() -> None:
    with pytest.raises(AddressError, match=re.escape("10.0.0.0/40")):
        parse_cidrs(["10.0.0.0/8", "10.0.0.0/40"])


def test_an_unspecified_listen_address_expands_to_every_interface() -> None:
    assert parse("/ip4/127.0.0.1/tcp/5") in expand(parse("/ip4/0.0.0.0/tcp/5"))
    assert expand(parse("/ip4/192.0.2.1/tcp/5")) == [parse("/ip4/192.0.2.1/tcp/5")]


@pytest.mark.parametrize(
    "host",
    [
        "ip6/::ffff:127.0.0.1",
        "ip6/::ffff:10.0.0.1",
        "ip6/64:ff9b::127.0.0.1",
        "ip6/2002:7f00:1::",
        "ip6/::7f00:1",
        "ip4/0.0.0.0",
        "ip4/100.64.0.1",
        "ip4/224.0.0.1",
        "ip6/::",
        "ip6/ff02::1",
    ],
)
def test_the_default_excludes_special_networks_in_every_form(host: str) -> None:
    assert excluded(parse(f"/{host}/tcp/1"), parse_cidrs(RESERVED_CIDRS))


def test_only_the_first_announced_addresses_are_parsed() -> None:
    said = [b"nonsense"] * 10_000 + [parse("/ip4/203.0.113.1/tcp/1").to_bytes()]
    assert usable(said, limit=16) == []


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["dns4/localhost", "ip4/127.0.0.1", "ip6/::ffff:127.0.0.1", "dns/2130706433"])
async def test_the_address_that_is_connected_to_is_checked_unless_the_operator_configured_it(host: str) -> None:
    pki = Pki()
    async with node(pki, "target") as target, node(pki, "a", exclude_cidr=RESERVED_CIDRS) as a:
        address = parse(f"/{host}/tcp/{direct_address(target).split('/')[4]}/p2p/{target.peer_id}")
        with pytest.raises(PeerUnreachable, match="exclude_cidr"):
            await a._host.connect(target.peer_id, [address])
        a._host.configured.add(address.endpoint)
        assert (await a._host.connect(target.peer_id, [address])).peer_id == target.peer_id


@pytest.mark.anyio
async def test_a_gateway_in_an_excluded_network_is_dialled_because_it_is_configured() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g, exclude_cidr=RESERVED_CIDRS) as a:
        assert a.status().gateways == (g.peer_id,)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["x..y", "x" * 64, "-._"])
async def test_a_name_that_cannot_be_looked_up_is_a_failed_dial(name: str) -> None:
    async with node(Pki(), "a") as a:
        with pytest.raises(PeerUnreachable):
            await a._host.connect(A, [parse(f"/dns4/{name}/tcp/1/p2p/{A}")])
