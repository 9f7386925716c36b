"""Figures, and tables of them."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A measured value, with the promised lower or upper bound if there is one."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    def promise(self, *, judged: bool) -> str:
        """Return the promise and, if `judged`, whether the value keeps it."""
        if self.at_least is not None:
            promised, kept = f"at least {self.at_least:g}", self.value >= self.at_least
        elif self.at_most is not None:
            promised, kept = f"at most {self.at_most:g}", self.value <= self.at_most
        else:
            return ""
        return f"{promised}: {'met' if kept else 'MISSED'}" if judged else f"{promised}: not judged"


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the value that this many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def spread(name: str, values: Sequence[float], unit: str) -> list[Figure]:
    """Return the median and, for several values, the least and the greatest."""
    figures = [Figure(f"{name}, median of {len(values)}", statistics.median(values), unit)]
    if len(values) > 1:
        figures += [Figure(f"{name}, least", min(values), unit), Figure(f"{name}, greatest", max(values), unit)]
    return figures


def table(figures: Sequence[Figure], *, judged: bool = True) -> str:
    """Return a Markdown table; if `judged`, it says whether each promise is kept."""
    rows = [("figure", "value", "unit", "promised"), ("---", "---:", "---", "---")]
    for figure in figures:
        value = f"{figure.value:.3g}" if abs(figure.value) < 100 else f"{figure.value:.0f}"
        rows.append((figure.name, value, figure.unit, figure.promise(judged=judged)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
