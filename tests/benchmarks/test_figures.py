"""How tables state promises."""

from benchmarks.figures import Figure, table

FIGURES = [
    Figure("speed", 3.0, "MB/s", at_least=2),
    Figure("delay", 30.0, "ms", at_most=20),
    Figure("calls", 100.0, ""),
]


def promises(*, judged: bool) -> list[str]:
    return [row.split("|")[-2].strip() for row in table(FIGURES, judged=judged).splitlines()[2:]]


def test_a_table_judges_each_promise() -> None:
    assert promises(judged=True) == ["at least 2: met", "at most 20: MISSED", ""]


def test_a_table_of_a_small_run_states_promises_without_judging_them() -> None:
    assert promises(judged=False) == ["at least 2: not judged", "at most 20: not judged", ""]
