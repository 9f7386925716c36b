"""The commands of the pages, and what runs each: `python -m documentation.commands` prints the list.

A block of commands has one or more marks, which readers do not see, in the lines before it:

- `<!-- run: PATH::TEST -->`: that test runs the block as it is written.
- `<!-- like: PATH::TEST -->`: that test runs the like of it, with other values or through the function behind it.
- `<!-- not run: REASON -->`: no test runs all of it as it is. A test may still run the like of it.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from documentation.pages import ROOT, pages, read

_BLOCK: Final = re.compile(
    r"(?P<marks>(?:^ *<!-- (?:run|like|not run): .*? -->\n)*)^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
_MARK: Final = re.compile(r"<!-- (run|like|not run): (.*?) -->")
_SHELLS: Final = ("sh", "bash", "console")
_PROMPT: Final = "$ "
_COMMENT: Final = re.compile(r"(^|\s+)# .*$")
_HEREDOC: Final = re.compile(r"<<'?(\w+)'?$")


@dataclass(frozen=True)
class Block:
    """A block of commands in a page.

    Attributes:
        marks: pairs of a kind of mark and its text.
        text: the commands. Of a transcript, without the output.
    """

    page: str
    line: int
    marks: tuple[tuple[str, str], ...]
    text: str

    @property
    def place(self) -> str:
        """Where people find the block."""
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands without comments. A command may have several lines."""
        found: list[str] = []
        lines = iter(self.text.splitlines())
        for line in lines:
            command = _COMMENT.sub("", line).rstrip()
            while command.endswith(("\\", "|")):
                command += f"\n{next(lines)}"
            if heredoc := _HEREDOC.search(command):
                for line_of_document in lines:
                    command += f"\n{line_of_document}"
                    if line_of_document.strip() == heredoc[1]:
                        break
            if command.strip():
                found.append(command.strip())
        return found


def blocks() -> list[Block]:
    """Return every block of commands in every page."""
    return [block for page in pages() for block in _blocks_of(page)]


def as_written(test: str) -> list[Block]:
    """Return the blocks that a test, named PATH::TEST, runs as they are written. ValueError if there is none."""
    found = [block for block in blocks() if ("run", test) in block.marks]
    if not found:
        raise ValueError(f"no block has the mark <!-- run: {test} -->; remove the test or mark a block")
    return found


def _blocks_of(page: str) -> Iterator[Block]:
    text = read(page)
    for match in _BLOCK.finditer(text):
        transcript = "".join(
            line[len(_PROMPT) :] for line in match["text"].splitlines(keepends=True) if line.startswith(_PROMPT)
        )
        if match["language"] in _SHELLS or transcript:
            line = text.count("\n", 0, match.start("text"))
            marks = tuple((kind, of) for kind, of in _MARK.findall(match["marks"]))
            yield Block(page, line, marks, transcript or match["text"])


def faults(block: Block) -> list[str]:
    """Return what is wrong with the marks of a block."""
    if not block.marks:
        return [f"{block.place}: no test runs these commands. Name one, or write <!-- not run: REASON --> before them."]
    named = [(kind, test) for kind, test in block.marks if kind != "not run"]
    return [f"{block.place}: there is no test {test}. Correct the mark." for _, test in named if not _exists(test)]


def _exists(test: str) -> bool:
    path, _, name = test.partition("::")
    file = ROOT / path
    return file.is_file() and re.search(rf"\bdef {re.escape(name)}\(", file.read_text()) is not None


def report() -> Iterator[str]:
    """Yield a line for each command, after its block and what runs that, and at last the numbers."""
    counted: Counter[str] = Counter()
    for block in blocks():
        kinds = {kind for kind, _ in block.marks}
        kind = next((kind for kind in ("run", "not run", "like") if kind in kinds), "unmarked")
        yield f"{block.place}  {'; '.join(f'{kind}: {text}' for kind, text in block.marks) or kind}"
        for command in block.commands():
            counted[kind] += 1
            yield f"    {command.splitlines()[0]}"
    yield (
        f"{counted.total()} commands: tests run {counted['run']} as they are written and the like of "
        f"{counted['like']}; {counted['not run']} are not run, each for the reason above"
    )


if __name__ == "__main__":
    wrong = [fault for block in blocks() for fault in faults(block)]
    print("\n".join([*report(), *(f"error: {fault}" for fault in wrong)]))
    sys.exit(bool(wrong))
