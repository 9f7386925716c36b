"""The records of failed cases, and the table of results."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.kube import Kube, KubeError

_LOG_LINES: Final = "400"


@dataclass(frozen=True)
class Case:
    """The outcome of a case."""

    name: str
    outcome: str
    seconds: float
    reason: str = ""


def sentence(test: str) -> str:
    """Return a test's name as a sentence: `test_a_b[3]` is "a b (3)"."""
    name, _, parameter = test.removeprefix("test_").partition("[")
    return name.replace("_", " ") + (f" ({parameter.rstrip(']')})" if parameter else "")


def table(cases: Iterable[Case]) -> list[str]:
    """Return the lines of the table."""
    rows = list(cases)
    width = max((len(case.name) for case in rows), default=0)
    lines = [f"{case.outcome:8}{case.seconds:7.1f} s  {case.name:{width}}  {case.reason}".rstrip() for case in rows]
    counts = {outcome: sum(case.outcome == outcome for case in rows) for outcome in ("passed", "failed", "skipped")}
    total = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    return [*lines, f"{total}, {sum(case.seconds for case in rows):.0f} s"]


def dump(kube: Kube, directory: Path, namespaces: Iterable[str]) -> None:
    """Write the objects, events and logs of these namespaces to files."""
    directory.mkdir(parents=True, exist_ok=True)
    for namespace in namespaces:
        in_it = ("--namespace", namespace)
        kinds = "hyphaworkers,hyphajobs,jobs,pods,deployments,networkpolicies"
        for name, command in {
            "objects.yaml": ("get", kinds, "-o", "yaml", *in_it),
            "describe.txt": ("describe", "pods,jobs,deployments", *in_it),
            "events.txt": ("get", "events", "--sort-by=.lastTimestamp", *in_it),
        }.items():
            (directory / f"{namespace}-{name}").write_text(kube.kubectl(*command, check=False))
        try:
            pods = [pod["metadata"]["name"] for pod in kube.items("pods", namespace)]
        except KubeError:
            continue
        for pod in pods:
            logs = kube.kubectl("logs", pod, "--all-containers", "--prefix", "--tail", _LOG_LINES, *in_it, check=False)
            (directory / f"{namespace}-{pod}.log").write_text(logs)
