"""Amounts of the network in bytes."""

import pytest

from hypha_contracts.units import to_bytes


@pytest.mark.parametrize(("gigabytes", "expected"), [(0.0, 1), (1e-12, 1), (0.1, 10**8), (1.1, 1_100_000_000)])
def test_no_amount_is_less_than_one_byte(gigabytes: float, expected: int) -> None:
    assert to_bytes(gigabytes) == expected
