"""What describes a metric: its name, instrument, unit, meaning and attributes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Buckets for what takes from a millisecond to a minute."""
LONG_SECONDS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0)
"""Buckets for what takes from a second to a day."""
BYTES_PER_SECOND: Final = tuple(10.0**exponent * step for exponent in range(4, 10) for step in (1, 2.5, 5))

_UNITS: Final = {"s": "_seconds", "By": "_bytes", "By/s": "_bytes_per_second"}


class Kind(StrEnum):
    """The instrument of a metric."""

    COUNTER = "counter"
    UP_DOWN_COUNTER = "up-down counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        unit: in UCUM, such as `s`, `By` or `{job}`.
        attributes: by name, the values that the attribute has.
        buckets: the upper bounds of a histogram's buckets, in `unit`.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    buckets: tuple[float, ...] = ()

    @property
    def prometheus_name(self) -> str:
        """The name under which Prometheus knows the metric. A histogram has series with further endings."""
        name = self.name.replace(".", "_")
        unit = _UNITS.get(self.unit, "")
        name = name if name.endswith(unit) else name + unit
        return f"{name}_total" if self.kind is Kind.COUNTER else name
