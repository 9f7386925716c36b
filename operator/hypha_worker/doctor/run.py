"""Runs all checks at once, each with a deadline."""

from collections.abc import Callable, Sequence

import trio

from hypha_contracts.findings import Finding, Result, failure, skipped
from hypha_worker.doctor.check import Check
from hypha_worker.doctor.worker import Unknown, Worker

Progress = Callable[[Sequence[Check]], None]
"""Called with the checks that still run, whenever one has ended."""


async def run(worker: Worker, checks: Sequence[Check], on_progress: Progress) -> list[Result]:
    """Run checks and return their results in the same order. An error in a check is a failure of that check."""
    found: dict[str, Sequence[Finding]] = {}

    async def examine(check: Check) -> None:
        found[check.id] = await _findings(worker, check)
        on_progress([other for other in checks if other.id not in found])

    on_progress(checks)
    async with trio.open_nursery() as nursery:
        for check in checks:
            nursery.start_soon(examine, check)
    return [Result(check, found[check.id]) for check in checks]


async def _findings(worker: Worker, check: Check) -> Sequence[Finding]:
    with trio.move_on_after(check.timeout_s):
        try:
            return tuple(await check.run(worker))
        except Unknown as reason:
            return (skipped(str(reason)),)
        except Exception as error:  # a fault of ours must not hide what the other checks found
            return (failure(f"this check failed: {type(error).__name__}: {error}", "Report this as a fault."),)
    return (failure(f"no result within {check.timeout_s:g} s", "Try again; this machine may be overloaded."),)
