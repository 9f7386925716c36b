"""Run the fuzz targets: `python -m fuzz.harness [--runs N] [--seconds N] [NAME ...]`, with `tests` in PYTHONPATH.

A child process imports the decoders instrumented and forks a process for each target. That process runs libFuzzer,
checks exceptions and round trips, and keeps the inputs that reach new code and the slowest ones. Then this process
measures the decoder on those without instrumentation.
The findings stay in `.fuzz/<name>/`.
"""

import argparse
import itertools
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
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
    "multiaddr",
    "base58",
]
_REPORT: Final = "{:20} {:>11} {:>9} {:>5} {:>6} {:>8} {:>13}  {}"


@dataclass(frozen=True)
class Result:
    """What fuzzing one target has found."""

    name: str
    executions: int
    cpu_s: float
    coverage: int
    features: int
    findings: tuple[str, ...]
    slowest: str = ""

    def __str__(self) -> str:
        rate = self.executions / self.cpu_s if self.cpu_s else 0
        return _REPORT.format(
            self.name,
            self.executions,
            f"{rate:.0f}",
            f"{self.cpu_s:.0f}",
            self.coverage,
            self.features,
            self.slowest,
            "; ".join(self.findings) or "none",
        )


def main() -> int:
    """Fuzz the targets and print a table; 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="fuzz")
    parser.add_argument("--runs", type=int, default=-1, help="maximum executions of each target")
    parser.add_argument("--seconds", type=int, default=0, help="maximum time for each target")
    parser.add_argument("--jobs", type=int, default=2, help="targets at once")
    parser.add_argument("--directory", type=Path, default=_DIRECTORY, help="where corpus and findings are kept")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a target; all by default")
    options = parser.parse_args()
    logging.disable()
    limits = {"runs": options.runs, "max_total_time": options.seconds}
    if options.child:
        return _fork_targets(options.names, limits, options.directory, options.jobs)
    from fuzz.targets import TARGETS  # noqa: PLC0415 - the child imports it instrumented

    print(
        _REPORT.format("target", "executions", "per CPU s", "CPU s", "cov.", "features", "slowest: ms/B", "findings"),
        flush=True,
    )
    results = []
    for fuzzed in fuzz(options.names or list(TARGETS), options.runs, options.directory, options.seconds, options.jobs):
        slowest, problems = measure(TARGETS[fuzzed.name], options.directory / fuzzed.name)
        result = replace(fuzzed, slowest=slowest, findings=fuzzed.findings + problems)
        print(result, flush=True)
        results.append(result)
    findings = sum(len(result.findings) for result in results)
    executions = sum(result.executions for result in results)
    print(f"{executions} executions, {findings} findings in {options.directory}")
    return 1 if findings else 0


def fuzz(names: Sequence[str], runs: int, directory: Path, seconds: int = 0, jobs: int = 2) -> Iterator[Result]:
    """Fuzz targets, each until one of the limits is reached. Yield each result as soon as its target ends."""
    options = ["--child", f"--runs={runs}", f"--seconds={seconds}", f"--jobs={jobs}", f"--directory={directory}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "fuzz.harness", *options, *names]
    directory.mkdir(parents=True, exist_ok=True)
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            name, status, cpu_s = line.split()
            yield _result(name, int(status), float(cpu_s), directory / name / "log")
    if child.returncode:
        raise RuntimeError(
            f"the process that forks the targets ended with status {child.returncode}; see {directory}/log"
        )


def _result(name: str, status: int, cpu_s: float, log: Path) -> Result:
    text = log.read_text(errors="replace")
    done = re.search(r"#(\d+)\s+DONE\s+cov: (\d+) ft: (\d+)", text)
    executions, coverage, features = map(int, done.groups()) if done else (0, 0, 0)
    findings = []
    if status or not done:
        raised = re.findall(r"^[\w.]+(?:Error|Exception|Panic)\w*:.*|^==\d+== ?ERROR.*", text, re.MULTILINE)
        findings.append(f"{(raised or ['it ended early'])[0][:200]} (see {log})")
    return Result(name, executions, cpu_s, coverage, features, tuple(findings))


def _fork_targets(names: Sequence[str], limits: dict[str, int], directory: Path, jobs: int) -> int:
    """Fork a process for each target, and write its name, exit status and CPU time to standard output when it ends.

    Importing the instrumented decoders takes seconds, so all targets share one import.
    """
    import atheris  # noqa: PLC0415

    with atheris.instrument_imports(include=_INSTRUMENTED, enable_loader_override=False):
        from fuzz.targets import TARGETS  # noqa: PLC0415

    waiting, running = list(reversed(names)), dict[int, str]()
    while waiting or running:
        if waiting and len(running) < jobs:
            name = waiting.pop()
            if (pid := os.fork()) == 0:
                _fuzz_here(name, TARGETS[name], limits, directory / name)
            running[pid] = name
        else:
            pid, status, usage = os.wait4(-1, 0)
            cpu_s = usage.ru_utime + usage.ru_stime
            print(running.pop(pid), os.waitstatus_to_exitcode(status), f"{cpu_s:.2f}", flush=True)
    return 0


def _fuzz_here(name: str, target: Target, limits: dict[str, int], directory: Path) -> None:
    """Fuzz a target with libFuzzer, which ends this process."""
    for part in ("corpus", "seeds", "slow"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    log = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    trio.run(_run_libfuzzer, name, target, limits, directory)
    os._exit(1)


async def _run_libfuzzer(name: str, target: Target, limits: dict[str, int], directory: Path) -> None:
    """Run libFuzzer inside trio, because some decoders set deadlines."""
    import atheris  # noqa: PLC0415

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

    flags: dict[str, object] = {
        **limits,
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
        inputs |= {str(path): path.read_bytes() for path in sorted((directory / part).glob("*"))}

    async def measure_all() -> tuple[str, tuple[str, ...]]:
        problems = tuple(f"{name}: {problem}" for name, data in inputs.items() for problem in target.problems(data))
        slowness = {name: target.slowness(data) for name, data in inputs.items()}
        name = max(slowness, key=lambda name: slowness[name])
        return f"{slowness[name] * target.budget_s(inputs[name]) * 1e3:.2f}/{len(inputs[name])}", problems

    return trio.run(measure_all)


if __name__ == "__main__":
    sys.exit(main())
