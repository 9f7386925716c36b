"""Heed what the checks of a start have found."""

import logging
from collections.abc import Iterable

from hypha_contracts.findings import Finding, Mark
from hypha_worker.errors import NodeError


def heed(findings: Iterable[Finding], logger: logging.Logger) -> None:
    """Log warnings, and raise NodeError for failures."""
    found = list(findings)
    for finding in found:
        if finding.mark is Mark.WARNING:
            logger.warning("%s", finding)
    if failures := [str(finding) for finding in found if finding.mark is Mark.FAILURE]:
        raise NodeError(" ".join(failures))
