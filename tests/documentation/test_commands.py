"""A test runs each command of the pages, or the page says why none does. Options, targets and files of all exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from documentation.commands import Block, as_written, blocks, faults, report
from documentation.pages import ROOT, read
from documentation.reference import APPS
from hypha_worker.config_file import load

OURS = re.compile(rf"(?:^|&& |\| |-- )({'|'.join(APPS)})( [^&|]*)?")
TARGETS = re.findall(r"^([-a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
DIRECTORIES = ("charts/", "crds/", "examples/")
BLOCKS = blocks()


def commands() -> Iterator[str]:
    for block in BLOCKS:
        yield from block.commands()


def block_of(text: str, *marks: tuple[str, str]) -> Block:
    return Block("page.md", 1, marks, text)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_test_runs_the_commands_or_the_page_says_why_not(block: Block) -> None:
    assert faults(block) == []


def test_a_test_that_claims_to_run_a_block_as_it_is_written_asks_for_it() -> None:
    for test in {name for block in BLOCKS for kind, name in block.marks if kind == "run"}:
        path, _, name = test.partition("::")
        source = (ROOT / path).read_text()
        assert f"::{name}" in source or f'of_test("{name}")' in source, test
        assert "as_written(" in source, test


def test_the_options_of_our_programs_in_the_pages_exist() -> None:
    refused = []
    for command in commands():
        for program, arguments in OURS.findall(command):
            words = [*shlex.split(arguments.replace("\\\n", " ")), "--help"]
            result = CliRunner().invoke(APPS[program], words, prog_name=program)
            if result.exit_code != 0:
                refused.append(f"{command}: {result.output}")
    assert refused == []


def test_the_targets_of_make_in_the_pages_exist() -> None:
    used = {word for line in commands() for part in re.findall(r"(?:^|&& )make ([^&]*)", line) for word in part.split()}
    assert {word for word in used if "=" not in word} <= set(TARGETS)


def test_the_files_of_the_repository_that_commands_name_exist() -> None:
    words = {word for command in commands() for word in re.split(r"[\s=]", command) if word.startswith(DIRECTORIES)}
    assert len(words) > 5
    assert [word for word in words if not (ROOT / word.split("/$")[0]).exists()] == []


def test_comments_are_no_commands_and_a_command_may_have_several_lines() -> None:
    text = "make a  # why\n# a line\nmake b \\\n  c |\n  d\nhelm e <<EOF\nf: 1\nEOF\nmake g\n"
    assert block_of(text).commands() == ["make a", "make b \\\n  c |\n  d", "helm e <<EOF\nf: 1\nEOF", "make g"]


def test_a_block_without_a_mark_or_with_one_that_names_no_test_is_a_fault() -> None:
    unmarked, wrong = block_of("make a\n"), block_of("make a\n", ("run", "tests/none.py::test_none"))
    assert "page.md:1: no test runs these commands." in faults(unmarked)[0]
    assert "page.md:1: there is no test tests/none.py::test_none." in faults(wrong)[0]
    assert faults(block_of("make a\n", ("not run", "it takes minutes"))) == []


def test_a_test_without_a_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="remove the test or mark a block"):
        as_written("tests/none.py::test_none")


def test_the_report_lists_every_command_and_counts_them() -> None:
    *lines, numbers = report()
    listed = [line.strip() for line in lines if line.startswith("    ")]
    assert listed == [command.splitlines()[0] for command in commands()]
    assert numbers.startswith(f"{len(listed)} commands: ")


def test_the_complete_configuration_of_a_page_loads(tmp_path: Path) -> None:
    (complete,) = re.findall(r"```toml\n(cert_pem.*?)```", read("docs/installation.md"), re.DOTALL)
    (path := tmp_path / "worker.toml").write_text(complete)
    loaded = load(path, {})
    assert loaded.warnings == ()
    assert [executor.class_ for executor in loaded.config.executors] == ["train", "inference", "aggregate"]
