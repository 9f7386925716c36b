import logging
from pathlib import Path

from hypha_executor.last_lines import LastLines


def test_in_a_pod_the_last_lines_are_left_for_the_cluster(tmp_path: Path) -> None:
    (file := tmp_path / "termination-log").touch()
    lines = LastLines(file)
    logger = logging.getLogger("test_last_lines")
    logger.addHandler(lines)
    for number in range(30):
        lines.add(f"line {number}")
    logger.warning("the loss is %g", 0.25)
    lines.leave()
    assert file.read_text().splitlines() == [*(f"line {number}" for number in range(11, 30)), "the loss is 0.25"]


def test_at_most_three_kibibytes_are_left_and_the_end_is_among_them(tmp_path: Path) -> None:
    (file := tmp_path / "termination-log").touch()
    lines = LastLines(file)
    for number in range(20):
        lines.add(f"{number} " + "ä" * 500)
    lines.add("the end")
    lines.leave()
    assert file.stat().st_size == 3072
    assert file.read_text(errors="replace").endswith("the end")


def test_without_a_pod_or_without_lines_nothing_is_written(tmp_path: Path) -> None:
    lines = LastLines(tmp_path / "termination-log")
    lines.add("a line")
    lines.leave()
    assert not list(tmp_path.iterdir())
    (file := tmp_path / "empty").touch()
    LastLines(file).leave()
    assert file.read_text() == ""
