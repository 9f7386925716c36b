"""The metrics of a round that an executor reports: a value that is not a finite number is dropped, the report goes on.

JSON has no such numbers. Of the loss of a model that diverged, Python writes `NaN` or `Infinity`, and others `null`.
"""

import logging
import math
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from hypha_contracts.text import escaped
from hypha_executor.telemetry import Telemetry
from hypha_messages.cbor import MAX_SINGLE
from hypha_messages.progress import Progress

logger = logging.getLogger(__name__)

DROPPED: Final = "hypha.job.metrics.dropped"


def _mark(value: Any) -> Any:
    """Replace metrics that the message cannot hold by NaN."""
    match value:
        case {"metrics": {"metrics": dict(metrics)} as report}:
            marked = {name: number if _fits(number) else math.nan for name, number in metrics.items()}
            return value | {"metrics": report | {"metrics": marked}}
    return value


def _fits(value: Any) -> bool:
    return value is not None and not (isinstance(value, int | float) and abs(value) > MAX_SINGLE)


AnyProgress = Annotated[Progress, BeforeValidator(_mark)]
"""Progress in which metrics may be any number or null. `FiniteMetrics.keep` drops those that are not finite."""


class FiniteMetrics:
    """Drops metrics that are not finite, counts them, and logs the first."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._logged = False

    def keep(self, progress: Progress) -> Progress:
        """Return the progress without metrics that are not finite."""
        if progress.metrics is None:
            return progress
        metrics = progress.metrics.metrics
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if dropped := metrics.keys() - finite.keys():
            self._telemetry.add(DROPPED, len(dropped))
            self._log(min(dropped), progress.metrics.round)
        return Progress(metrics=progress.metrics.model_copy(update={"metrics": finite}))

    def _log(self, name: str, round_number: int) -> None:
        if not self._logged:
            self._logged = True
            logger.warning(
                "the metric %s of round %d is not a finite number, so it is left out of the report; the model may have "
                "diverged. Further ones are counted by %s and not logged.",
                *(escaped(name), round_number, DROPPED),
            )
