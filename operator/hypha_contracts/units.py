"""Units of resources: the network counts cores and GB, Kubernetes writes quantities, devices are whole."""

import math
import re
from decimal import Decimal
from typing import Final

from hypha_messages.types import ROUNDING, Resources

RESOURCES: Final = ("gpu", "cpu", "memory", "storage")
"""The fields of `hypha_messages.types.Resources`."""

UNITS: Final = {"gpu": "GB of GPU memory", "cpu": "cores", "memory": "GB of memory", "storage": "GB of storage"}
"""What an amount of each resource counts."""

BYTES_PER_GB: Final = 10**9
"""A GB of the Hypha network."""

QUANTITY_PATTERN: Final = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[munkMGTPE]|[eE][+-]?[0-9]+)?$"
_QUANTITY: Final = re.compile(r"([0-9.]+)(?:([KMGTPE])i|([munkMGTPE])|[eE]([+-]?[0-9]{1,3}))?")
_BINARY: Final = {letter: Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse_quantity(text: str) -> Decimal:
    """Return the value of a Kubernetes quantity such as 500m, 2, 1.5Gi or 1e3; ValueError for any other text."""
    if not re.fullmatch(QUANTITY_PATTERN, text):
        raise ValueError(f"{text!r} is not a quantity; write 2, 500m, 64Gi or 1T")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is out of range for a quantity")
    number, binary, decimal, exponent = match.groups()
    if binary:
        return Decimal(number) * _BINARY[binary]
    return Decimal(number).scaleb(_DECIMAL[decimal] if decimal else int(exponent or 0))


def gigabytes(quantity: str) -> float:
    """Return a quantity of bytes in GB; ValueError if it is not a quantity."""
    return float(parse_quantity(quantity) / BYTES_PER_GB)


def to_bytes(gigabytes: float) -> int:
    """Return an amount of GB in bytes, at least one, because a limit of zero bytes could mean that there is none."""
    return max(int(Decimal(str(gigabytes)) * BYTES_PER_GB), 1)


def exceeding(wanted: Resources, capacity: Resources) -> list[str]:
    """Return the names of the resources of which more is wanted than there is, apart from rounding errors."""
    return [name for name in RESOURCES if getattr(wanted, name) > getattr(capacity, name) * ROUNDING]


def devices_needed(gpu_gb: float, device_gb: float) -> int:
    """Return how many devices hold this much GPU memory; a billionth more counts as a rounding error."""
    return math.ceil(gpu_gb / device_gb / ROUNDING)
