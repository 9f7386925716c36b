"""What a siege has measured, as JSON and as a table, and the bounds that it must keep."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from support.answers import Answers
from support.siege import Sample

KNOWN = ("offer", "first renewal", "health")
NEW = "first offer to a new scheduler"


@dataclass(frozen=True)
class Bounds:
    """What an attack may do at most.

    Attributes:
        answer_p99_s: until 99 of 100 answers to a scheduler that is connected.
        first_offer_s: until the first offer to a scheduler that joins.
        job_ratio: how much longer a job takes than undisturbed.
        late_growth_mib: how much the node's memory grows in the last third of the attack.
        log_bytes: how much the node logs.
    """

    answer_p99_s: float
    first_offer_s: float
    job_ratio: float
    late_growth_mib: float
    log_bytes: int


@dataclass
class Report:
    """The figures of one siege. Durations are in seconds."""

    bounds: Bounds
    attack: dict[str, Any]
    answers: Answers
    undisturbed_s: list[float]
    attacked_s: list[float]
    samples: list[Sample]
    problems: list[str] = field(default_factory=list)

    def broken_bounds(self) -> list[str]:
        """Return the bounds that were not kept, each with what was measured, and what else went wrong."""
        quantiles, bounds = self.answers.quantiles(), self.bounds
        checks = [
            (f"p99 of {kind}, s", quantiles[kind]["p99"], bounds.answer_p99_s) for kind in quantiles if kind in KNOWN
        ]
        checks += [
            (f"slowest {NEW}, s", quantiles[NEW]["max"] if NEW in quantiles else math.inf, bounds.first_offer_s),
            ("slowest job / undisturbed", self.job_ratio(), bounds.job_ratio),
            ("growth in the last third, MiB", self.late_growth_mib(), bounds.late_growth_mib),
            ("log, bytes", self.log_bytes(), bounds.log_bytes),
        ]
        broken = [f"{name}: {value:.3g}, at most {limit:g}" for name, value, limit in checks if not value <= limit]
        return broken + [f"{problem} ({count} times)" for problem, count in Counter(self.problems).items()]

    def job_ratio(self) -> float:
        """How much longer the slowest job took under attack. Infinite if none ended."""
        return max(self.attacked_s, default=math.inf) / max(self.undisturbed_s)

    def late_growth_mib(self) -> float:
        """How much more memory the last third needed than the time before, each at its most."""
        third = max(1, len(self.samples) // 3)
        earlier, last = self.samples[:-third] or self.samples, self.samples[-third:]
        return max(s.resident_mib for s in last) - max(s.resident_mib for s in earlier)

    def log_bytes(self) -> int:
        return self.samples[-1].log_bytes - self.samples[0].log_bytes

    def node_shares(self) -> tuple[float, float]:
        """For how much of the time the node ran, and was ready to run while other programs used its core."""
        first, last = self.samples[0], self.samples[-1]
        seconds = max(last.at - first.at, 1e-9)
        return (last.cpu_s - first.cpu_s) / seconds, (last.waited_s - first.waited_s) / seconds

    def node_us_per_attempt(self) -> float:
        """The node's CPU microseconds per attempt, those for honest peers included."""
        attempts = sum(tally["attempts"] for tally in self.attack["attacks"].values())
        return 1e6 * self.attack["seconds"] * self.node_shares()[0] / max(1, attempts)

    def as_json(self) -> str:
        seconds = self.attack["seconds"]
        rates = {
            name: tally | {"attempts_per_s": tally["attempts"] / seconds, "bytes_per_s": tally["sent_bytes"] / seconds}
            for name, tally in self.attack["attacks"].items()
        }
        return json.dumps(
            {
                "seconds": seconds,
                "attackers_cpu_s": self.attack["cpu_s"],
                "attacks": rates,
                "answers": self.answers.quantiles(),
                "job": {"undisturbed_s": self.undisturbed_s, "attacked_s": self.attacked_s},
                "node": {
                    "cpu_share": self.node_shares()[0],
                    "waited_share": self.node_shares()[1],
                    "resident_mib": [round(s.resident_mib, 1) for s in self.samples],
                    "files": [s.files for s in self.samples],
                    "log_bytes": self.log_bytes(),
                },
                "broken_bounds": self.broken_bounds(),
            },
        )

    def as_text(self) -> str:
        seconds = self.attack["seconds"]
        lines = [f"attackers: {self.attack['cpu_s']:.1f} CPU seconds in {seconds:.1f} s"]
        lines.append(f"{'attack':44}{'attempts/s':>12}{'KiB/s':>10}{'connected':>11}{'lost':>8}")
        lines += [
            f"{name:44}{tally['attempts'] / seconds:12.1f}{tally['sent_bytes'] / 1024 / seconds:10.1f}"
            f"{tally['connections']:11}{tally['lost']:8}"
            for name, tally in self.attack["attacks"].items()
        ]
        lines.append(f"\n{'answer':44}{'count':>12}{'p50 ms':>10}{'p99 ms':>11}{'max ms':>8}")
        lines += [
            f"{kind:44}{q['count']:12}{q['p50'] * 1000:10.1f}{q['p99'] * 1000:11.1f}{q['max'] * 1000:8.0f}"
            for kind, q in self.answers.quantiles().items()
        ]
        jobs = " ".join(f"{s:.1f}" for s in self.attacked_s)
        lines.append(f"\njob: undisturbed {' '.join(f'{s:.1f}' for s in self.undisturbed_s)} s, under attack {jobs} s")
        resident = [s.resident_mib for s in self.samples]
        lines.append(
            f"node: ran for {100 * self.node_shares()[0]:.0f}% of the time, waited for its core for "
            f"{100 * self.node_shares()[1]:.0f}%, {self.node_us_per_attempt():.0f} us per attempt"
        )
        lines.append(
            f"node: memory {resident[0]:.0f} MiB at first, "
            f"{max(resident):.0f} at most, {resident[-1]:.0f} at last; {self.late_growth_mib():+.1f} in the last third"
        )
        lines.append(f"node: at most {max(s.files for s in self.samples)} descriptors, log {self.log_bytes()} bytes")
        broken = self.broken_bounds()
        lines.append("bounds: all kept" if not broken else "bounds broken:\n  " + "\n  ".join(broken))
        return "\n".join(lines)
