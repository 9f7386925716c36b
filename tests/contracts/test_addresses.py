"""Which IP addresses lead to special networks."""

from ipaddress import ip_address

import pytest

from hypha_contracts.addresses import unwrap


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
