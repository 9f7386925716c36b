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

    def promise(self, *, judged: bool) -> str:
        """Return what was promised and, if it is to be judged, whether it is kept."""
        if self.at_least is not None:
            promised, kept = f"at least {self.at_least:g}", self.value >= self.at_least
        elif self.at_most is not None:
            promised, kept = f"at most {self.at_most:g}", self.value <= self.at_most
        else:
            return ""
        return f"{promised}: {'met' if kept else 'MISSED'}" if judged else f"{promised}: not judged"


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


def table(figures: Sequence[Figure], *, judged: bool = True) -> str:
    """Return a Markdown table, which says of each promise whether it is kept unless promises are not judged."""
    rows = [("figure", "value", "unit", "promised"), ("---", "---:", "---", "---")]
    for figure in figures:
        value = f"{figure.value:.3g}" if abs(figure.value) < 100 else f"{figure.value:.0f}"
        rows.append((figure.name, value, figure.unit, figure.promise(judged=judged)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
