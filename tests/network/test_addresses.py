import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from hypha_contracts.addresses import RESERVED_CIDRS
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
from hypha_network.wire.transports import TRANSPORTS

A = "12D3KooWBkAZ52FV28vNpUsNcSLLfdTZdhph8Vhb2w5hCENAinpB"
B = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/203.0.113.50/tcp/4001",
        "/ip6/2001:db8::1/tcp/1",
        "/dns4/gateway.example.org/tcp/4001",
        "/dns6/gateway.example.org/tcp/4001",
        "/dns/gateway/tcp/65535",
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
        ("/ip4/1.2.3.4/udp/1/quic-v1", "udp"),
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
    assert parse_supported("/ip4/1.2.3.4/udp/1/quic-v1") is None
    with pytest.raises(AddressError, match="nonsense"):
        parse_supported("nonsense")


def test_every_transport_that_an_address_can_name_has_an_implementation() -> None:
    assert set(TRANSPORTS) == set(TransportName)


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
        Multiaddr("/ip4/203.0.113.1/udp/4001/quic-v1").to_bytes(),
        b"nonsense",
        Multiaddr("/ip4/203.0.113.1/tcp/0").to_bytes(),
        Multiaddr("/ip4/203.0.113.1/tcp/4001").to_bytes(),
        Multiaddr("/ip4/203.0.113.1/tcp/4001").to_bytes(),
    ]
    assert usable(said) == [parse("/ip4/203.0.113.1/tcp/4001")]


def test_a_peer_cannot_occupy_the_node_with_addresses_that_it_cannot_use() -> None:
    unusable = Multiaddr("/ip4/203.0.113.1/udp/4001/quic-v1").to_bytes()
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
    expected = any(ip in network for network in networks if network.version == ip.version)  # type: ignore[attr-defined,operator]
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
