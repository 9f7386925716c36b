"""`python -m nat_table [WORD ...]`: run the job of each case that all words select, and print the table.

`python -m nat_table links` prints the rates of pushes over slow paths. `python -m nat_table crowd` shows what becomes
of CROWD (70) workers behind one address that are idle for CROWD_S (600) seconds.
The words are cells of the table. `HYPHA_BIN=DIR`, the directory of the reference's programs, adds cases with its nodes.
"""

import logging
import sys

from benchmarks.nodes import rust_binaries
from nat_table import crowd, links
from nat_table.cases import HEAD, cases, line
from nat_table.job import run
from support.nat_lab import missing


def main(words: set[str]) -> int:
    """Return 0 if every job did what it should."""
    if reason := missing():
        print(f"no laboratory: {reason}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.ERROR)
    if words in ({"links"}, {"crowd"}):
        for text in links.lines() if words == {"links"} else crowd.lines():
            print(text, flush=True)
        return 0
    failed = 0
    print(HEAD, flush=True)
    for case in cases():
        if words <= case.words and (rust_binaries() or not case.needs_reference):
            outcome = run(case)
            failed += not outcome.is_expected(case)
            print(line(case, outcome), flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(set(sys.argv[1:])))
