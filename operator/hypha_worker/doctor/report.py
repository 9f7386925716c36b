"""Shows results to people and to programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hypha_contracts import findings
from hypha_contracts.findings import Result
from hypha_worker.doctor.check import Check

SCHEMA_VERSION: Final = 1


def to_json(results: Sequence[Result], config: Path, version: str) -> str:
    """Return the results for programs. docs/troubleshooting.md documents the fields."""
    return findings.to_json(results, schema=SCHEMA_VERSION, version=version, config=str(config))


def progress(remaining: Sequence[Check], total: int) -> str:
    """Return a line about the checks that still run."""
    names = ", ".join(check.id for check in remaining[:3]) + (", ..." if len(remaining) > 3 else "")
    return f"{total - len(remaining)} of {total} checks done" + (f"; waiting for {names}" if names else "")
