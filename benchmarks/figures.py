"""Figures, and tables of them."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """Something measured; where it is promised to be at least or at most something, so it says."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def promise(self) -> str:
        """What was promised, and whether it is kept."""
        if self.at_least is not None:
            return f"at least {self.at_least:g}: {'met' if self.value >= self.at_least else 'MISSED'}"
        if self.at_most is not None:
            return f"at most {self.at_most:g}: {'met' if self.value <= self.at_most else 'MISSED'}"
        return ""


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def spread(name: str, values: Sequence[float], unit: str) -> list[Figure]:
    """The median and, where there are several values, the least and the greatest."""
    figures = [Figure(f"{name}, median of {len(values)}", statistics.median(values), unit)]
    if len(values) > 1:
        figures += [Figure(f"{name}, least", min(values), unit), Figure(f"{name}, greatest", max(values), unit)]
    return figures


def table(figures: Sequence[Figure]) -> str:
    """A Markdown table."""
    rows = [("figure", "value", "unit", "promised"), ("---", "---:", "---", "---")]
    rows += [(f.name, f"{f.value:.3g}" if abs(f.value) < 100 else f"{f.value:.0f}", f.unit, f.promise) for f in figures]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
