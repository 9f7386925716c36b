"""`python -m zoo [NAME ...]`: train all families, or those of these names or model types, and print their table."""

import sys
import tempfile
from pathlib import Path

import torch

from zoo.jobs import open_jobs
from zoo.table import FAMILIES, HEAD, line
from zoo.trial import run


def main(names: set[str]) -> int:
    """Return 0 if every family is as it should be."""
    torch.set_num_threads(1)
    failed = 0
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="zoo-") as directory, open_jobs(Path(directory)) as jobs:
        for family in FAMILIES:
            if not names or names & {family.name, family.task}:
                trial = run(family, jobs)
                failed += bool(trial.problem)
                print(line(trial), flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(set(sys.argv[1:])))
