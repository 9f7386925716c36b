"""The table of budgets in docs/security.md: complete, and true about the modules and tests that it names."""

import re
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PARTIES = (
    *("a peer without a certificate", "a peer with a certificate", "a scheduler with a lease", "a job"),
    "a pod in the cluster",
)
RESOURCES = ("CPU", "memory", "descriptors", "disk", "log lines", "etcd bytes", "API calls", "relay circuits")


def rows() -> list[list[str]]:
    page = (ROOT / "docs" / "security.md").read_text()
    table = page.partition("\n## Budgets\n")[2].partition("\n| --- ")[2].partition("\n\n")[0]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in table.splitlines()[1:]]


def test_every_party_has_a_budget_of_every_resource() -> None:
    assert {(party, resource) for party, resource, *_ in rows()} == set(product(PARTIES, RESOURCES))


@pytest.mark.parametrize("module", sorted({row[3] for row in rows()}))
def test_the_module_that_enforces_a_budget_exists(module: str) -> None:
    assert find_spec(module) is not None


@pytest.mark.parametrize("test", sorted({row[4] for row in rows()}))
def test_the_test_that_measures_a_budget_exists(test: str) -> None:
    file, _, name = test.partition("::")
    assert re.search(rf"^ *(async )?def {name}\(", (ROOT / file).read_text(), flags=re.MULTILINE)
