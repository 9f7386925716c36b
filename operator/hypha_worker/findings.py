"""What a check found about this worker. The start of the node heeds findings, and `hypha-worker doctor` prints them."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from hypha_worker.errors import NodeError


class Mark(StrEnum):
    """How well a check went."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """One fact about the worker, in one line, and what to do about it unless it is ok.

    Attributes:
        message: for a skipped check, why it was skipped.
        remedy: complete sentences; empty if there is nothing to do.
    """

    mark: Mark
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


def ok(message: str) -> Finding:
    """Return that all is well."""
    return Finding(Mark.OK, message)


def warning(message: str, remedy: str) -> Finding:
    """Return what may cause trouble. The node runs all the same."""
    return Finding(Mark.WARNING, message, remedy)


def failure(message: str, remedy: str) -> Finding:
    """Return what keeps the worker from its work."""
    return Finding(Mark.FAILURE, message, remedy)


def skipped(reason: str) -> Finding:
    """Return why something was not checked."""
    return Finding(Mark.SKIPPED, reason)


def heed(findings: Iterable[Finding], logger: logging.Logger) -> None:
    """Log warnings, and raise NodeError for failures."""
    found = list(findings)
    for finding in found:
        if finding.mark is Mark.WARNING:
            logger.warning("%s", finding)
    if failures := [str(finding) for finding in found if finding.mark is Mark.FAILURE]:
        raise NodeError(" ".join(failures))
