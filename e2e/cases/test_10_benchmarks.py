"""The benchmark that needs a real kubelet."""

import pytest

from benchmarks.small_run import run_small
from e2e.settings import Settings

pytestmark = pytest.mark.long

_RUN_S = 300


@pytest.mark.timeout(400)
def test_a_small_run_of_the_dispatch_benchmark_prints_its_figures(settings: Settings) -> None:
    if not settings.own_cluster:
        pytest.skip("the benchmark starts a cluster of its own, which the machine of `make cluster` can do")
    output = run_small("dispatch", _RUN_S)
    assert "| HyphaJob to executor started, p50 |" in output
