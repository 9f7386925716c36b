"""Every decoder refuses what it cannot use with its own error, at a cost that the input's size bounds."""

from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has no wheel for this platform")

from fuzz.harness import fuzz, measure
from fuzz.targets import TARGETS

RUNS = 2000


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_keeps_its_budgets_and_raises_no_other_error(name: str, tmp_path: Path) -> None:
    assert not fuzz(name, RUNS, tmp_path).findings
    _, problems = measure(TARGETS[name], tmp_path)
    assert not problems
