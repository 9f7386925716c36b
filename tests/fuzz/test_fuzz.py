"""Every decoder refuses what it cannot use with its own error, at a cost that the input's size bounds."""

from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has no wheel for this platform")

from fuzz.harness import fuzz, measure
from fuzz.targets import TARGETS

RUNS = 2000


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_keeps_its_budgets_on_valid_and_on_large_inputs(name: str, tmp_path: Path) -> None:
    _, problems = measure(TARGETS[name], tmp_path)
    assert not problems


@pytest.mark.timeout(600)
def test_fuzzed_decoders_keep_their_budgets_and_raise_no_other_error(tmp_path: Path) -> None:
    found = {
        result.name: result.findings + measure(TARGETS[result.name], tmp_path / result.name)[1]
        for result in fuzz(list(TARGETS), RUNS, tmp_path)
    }
    assert found == dict.fromkeys(TARGETS, ())
