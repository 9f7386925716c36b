"""Each benchmark works: its small run, started as a person starts it, ends well and prints its figures."""

import re

import pytest

from benchmarks.__main__ import ALL
from benchmarks.small_run import run_small

pytestmark = pytest.mark.timeout(330)

RUN_S = 240
"""Less than the timeout of a test, so that a run that takes too long has time to clean up."""

FIGURES = {
    "fetch": "our data node to our worker",
    "allocation": "our worker, lone request, p50",
    "outer_step": "1 MB, all ours",
    "parameter_server": "F32: outer step",
    "connector": "pull in pieces of 16 KiB",
    "muxer": "muxer, 16 KiB frames",
    "telemetry": "with telemetry, median",
    "status_page": "one open page, of a core",
    "trainer": "trainer / bare loop",
    "reconcile": "calls per worker",
}
"""One figure of each benchmark."""

END_TO_END = {"dispatch"}
"""Benchmarks that need a cluster of real nodes: the end-to-end cases run them."""


@pytest.mark.parametrize("name", FIGURES)
def test_a_small_run_prints_its_figures_and_judges_no_promise(name: str) -> None:
    output = run_small(name, RUN_S)
    assert f"\n## {name}\n" in output
    values = dict(re.findall(r"^\| (.+?) \| +([-+.e\d]+) \| .* \|$", output, re.MULTILINE))
    assert FIGURES[name] in values, output
    assert not re.search(r": (met|MISSED) \|$", output, re.MULTILINE), output


def test_every_benchmark_has_a_small_run_here_or_end_to_end() -> None:
    assert FIGURES.keys() | END_TO_END == set(ALL)
