"""Run the fuzz targets: `python -m fuzz.harness [--runs N] [--jobs N] [NAME ...]`, with `tests` in PYTHONPATH.

A child process fuzzes the instrumented decoder with libFuzzer, checks exceptions and round trips, and keeps the inputs
that reach new code and the slowest ones. Then this process measures the decoder on those without instrumentation.
The findings stay in `.fuzz/<name>/`.
"""

import argparse
import itertools
import logging
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from fuzz.target import Target

_DIRECTORY: Final = Path(".fuzz")
_INSTRUMENTED: Final = [
    "hypha_messages",
    "hypha_network",
    "hypha_worker",
    "hypha_bridge",
    "hypha_executor",
    "hypha_contracts",
    "fuzz.wire",
    "h11",
    "tomllib",
    "multiaddr",
    "base58",
]
_REPORT: Final = "{:20} {:>11} {:>7} {:>5} {:>6} {:>8} {:>13}  {}"


@dataclass(frozen=True)
class Result:
    """What fuzzing one target has found."""

    name: str
    executions: int
    seconds: float
    coverage: int
    features: int
    findings: tuple[str, ...]
    slowest: str = ""

    def __str__(self) -> str:
        rate = self.executions / self.seconds if self.seconds else 0
        return _REPORT.format(
            self.name,
            self.executions,
            f"{rate:.0f}",
            f"{self.seconds:.0f}",
            self.coverage,
            self.features,
            self.slowest,
            "; ".join(self.findings) or "none",
        )


def main() -> int:
    """Fuzz the targets and print a table; 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--runs", type=int, default=100_000, help="executions per target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at once")
    parser.add_argument("--directory", type=Path, default=_DIRECTORY, help="where corpus and findings are kept")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a target; all by default")
    options = parser.parse_args()
    logging.disable()
    if options.child:
        trio.run(_fuzz_here, options.names[0], options.runs, options.directory)
    from fuzz.targets import TARGETS  # noqa: PLC0415 - the child imports it instrumented

    print(
        _REPORT.format("target", "executions", "per s", "s", "cov.", "features", "slowest: ms/B", "findings"),
        flush=True,
    )
    results = []
    with ThreadPoolExecutor(options.jobs) as threads:
        jobs = {
            name: threads.submit(fuzz, name, options.runs, options.directory / name)
            for name in options.names or TARGETS
        }
        for name, job in jobs.items():
            fuzzed = job.result()
            slowest, problems = measure(TARGETS[name], options.directory / name)
            result = replace(fuzzed, slowest=slowest, findings=fuzzed.findings + problems)
            print(result, flush=True)
            results.append(result)
    findings = sum(len(result.findings) for result in results)
    executions = sum(result.executions for result in results)
    print(f"{executions} executions, {findings} findings in {options.directory}")
    return 1 if findings else 0


def fuzz(name: str, runs: int, directory: Path) -> Result:
    """Fuzz a target in a child process, which libFuzzer ends."""
    for part in ("corpus", "seeds", "slow"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    arguments = ["--child", f"--runs={runs}", f"--directory={directory}", name]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    started = time.monotonic()
    with (directory / "log").open("wb") as log:
        command = [sys.executable, "-m", "fuzz.harness", *arguments]
        child = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    seconds = time.monotonic() - started
    text = (directory / "log").read_text(errors="replace")
    done = re.search(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+)", text)
    executions, coverage, features = map(int, done.groups()) if done else (0, 0, 0)
    findings = []
    if child.returncode or not done:
        raised = re.findall(r"^[\w.]+(?:Error|Exception|Panic)\w*:.*|^==\d+== ?ERROR.*", text, re.MULTILINE)
        findings.append(f"{(raised or ['it ended early'])[0][:200]} (see {directory}/log)")
    return Result(name, executions, seconds, coverage, features, tuple(findings))


async def _fuzz_here(name: str, runs: int, directory: Path) -> None:
    """Fuzz a target with libFuzzer, which ends this process. Inside trio, because some decoders set deadlines."""
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=_INSTRUMENTED, enable_loader_override=False):
        from fuzz.targets import TARGETS  # noqa: PLC0415

    target = TARGETS[name]
    for index, data in enumerate(target.seeds):
        (directory / "seeds" / str(index)).write_bytes(data)
    slowest, slow_files = 0.0, itertools.count()

    def execute(data: bytes) -> None:
        """Run the decoder, and keep the input if it is the slowest one so far."""
        nonlocal slowest
        if target.run(data) / target.budget_s(data) > slowest:
            found = min(target.run(data) for _ in range(3)) / target.budget_s(data)
            if found > slowest:
                slowest = found
                (directory / "slow" / str(next(slow_files))).write_bytes(data)

    flags = {
        "runs": runs,
        "seed": 1,
        "max_len": target.max_bytes,
        "len_control": 20,
        "timeout": 20,
        "rss_limit_mb": 4096,
        "artifact_prefix": f"{directory}/",
    }
    arguments = [f"-{key}={value}" for key, value in flags.items()]
    atheris.Setup([name, *arguments, str(directory / "corpus"), str(directory / "seeds")], execute)
    atheris.Fuzz()


def measure(target: Target, directory: Path) -> tuple[str, tuple[str, ...]]:
    """Measure a decoder, without instrumentation, on its seeds, its bombs and the found inputs.

    Returns:
        The slowest input and the part of its budget that it takes; the inputs with which the decoder exceeds a budget.
    """
    inputs = {f"seed {index}": data for index, data in enumerate(target.seeds)} | dict(target.bombs)
    for part in ("slow", "corpus"):
        inputs |= {str(path): path.read_bytes() for path in sorted((directory / part).iterdir())}

    async def measure_all() -> tuple[str, tuple[str, ...]]:
        problems = tuple(f"{name}: {problem}" for name, data in inputs.items() for problem in target.problems(data))
        slowness = {name: target.slowness(data) for name, data in inputs.items()}
        name = max(slowness, key=lambda name: slowness[name])
        return f"{slowness[name] * target.budget_s(inputs[name]) * 1e3:.2f}/{len(inputs[name])}", problems

    return trio.run(measure_all)


if __name__ == "__main__":
    sys.exit(main())
