"""How long answers took."""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Answers:
    """By kind of question, the seconds until each answer; infinite if there was none."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def quantiles(self) -> dict[str, dict[str, float]]:
        """By kind, the number of answers, and how long half of them took at most, 99 in 100, and all."""
        found = {}
        for kind, values in self.seconds.items():
            ordered = sorted(values)
            at = {
                name: ordered[min(len(ordered) - 1, int(len(ordered) * q))] for name, q in (("p50", 0.5), ("p99", 0.99))
            }
            found[kind] = {"count": len(ordered), **at, "max": ordered[-1]}
        return found
