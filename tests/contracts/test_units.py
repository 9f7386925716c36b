"""Amounts of the network in bytes."""

import pytest

from hypha_contracts.units import to_bytes


@pytest.mark.parametrize(("gigabytes", "expected"), [(0.0, 0), (1e-12, 1), (0.1, 10**8), (1.1, 1_100_000_000)])
def test_only_an_amount_of_zero_is_no_bytes(gigabytes: float, expected: int) -> None:
    assert to_bytes(gigabytes) == expected
