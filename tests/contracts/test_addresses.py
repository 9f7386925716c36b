"""Which IP addresses lead to special networks."""

from ipaddress import ip_address

import pytest

from hypha_contracts.addresses import is_reachable, reachable_blocks, unwrap
from support.addresses import PUBLIC, SPECIAL


@pytest.mark.parametrize(
    ("address", "embedded"),
    [
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::ffff:0:127.0.0.1", "127.0.0.1"),
        ("::127.0.0.1", "127.0.0.1"),
        ("64:ff9b::a9fe:a9fe", "169.254.169.254"),
        ("2002:7f00:1::", "127.0.0.1"),
        ("2001:0:808:808::80ff:fffe", "127.0.0.1"),
    ],
)
def test_an_embedded_ipv4_address_is_unwrapped(address: str, embedded: str) -> None:
    assert unwrap(ip_address(address)) == ip_address(embedded)


@pytest.mark.parametrize("address", ["::", "::1", "127.0.0.1", "2606:4700::1111", "fe80::1%eth0", "64:ff9b:1::1"])
def test_any_other_address_stays_as_it_is(address: str) -> None:
    assert unwrap(ip_address(address)) == ip_address(address)


@pytest.mark.parametrize("address", SPECIAL)
def test_a_special_address_is_not_reachable_unless_private_addresses_are_allowed(address: str) -> None:
    assert not is_reachable(address, 443, reachable_blocks([], allow_private_addresses=False))
    assert is_reachable(address, 443, reachable_blocks([], allow_private_addresses=True))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_reachable_unless_its_network_is_excluded(address: str) -> None:
    assert is_reachable(address, 443, reachable_blocks([], allow_private_addresses=False))
    for allow_private_addresses in (False, True):
        own = reachable_blocks(OWN_NETWORKS, allow_private_addresses=allow_private_addresses)
        assert not is_reachable(address, 443, own)


OWN_NETWORKS = ["1.0.0.0/8", "8.8.8.8/24", "192.0.0.0/8", "198.0.0.0/8", "2000::/4"]
"""Networks that hold every address of `PUBLIC`. The second one has host bits, and they overlap special networks."""


def test_excluding_every_address_leaves_no_block() -> None:
    assert reachable_blocks(["0.0.0.0/1", "128.0.0.0/1", "::/0"], allow_private_addresses=True) == []
