"""The values of the progress protocol, which the scheduler's messages must read, and its answers."""

from typing import Any

import pytest

from hypha_executor.errors import BridgeError
from hypha_executor.progress import Answer, Progress, parse_answer


class Scheduler:
    def __init__(self) -> None:
        self.reports: list[Any] = []

    def report(self, progress: object) -> Any:
        self.reports.append(progress)
        return {"type": "Ok"}


def test_reports_are_written_as_the_scheduler_reads_them() -> None:
    scheduler = Scheduler()
    progress = Progress(scheduler)
    progress.batch_trained(8)
    progress.metrics(2, {"loss": 0.5, "gradient": float("nan"), "norm": float("inf")})
    progress.update_due()
    progress.update_merged()
    progress.outer_step_taken()
    progress.batch_predicted(8)
    progress.slice_predicted(3, 20)
    assert scheduler.reports == [
        {"status": {"batch_size": 8}},
        {"metrics": {"round": 2, "metrics": {"loss": 0.5}}},
        "update",
        "update-received",
        "updated",
        {"status": {"batch_size": 8}},
        {"predicted": {"index": 3, "samples": 20}},
    ]


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ({"type": "Ok"}, Answer()),
        ({"type": "Continue"}, Answer()),
        ({"type": "Done"}, Answer(done=True)),
        ({"type": "Error"}, Answer(failed=True)),
        ({"type": "ScheduleUpdate", "counter": 3}, Answer(batches_left=3)),
    ],
)
def test_an_answer_is_parsed(answer: dict[str, Any], parsed: Answer) -> None:
    assert parse_answer(answer) == parsed


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"type": 1}, {"type": "ScheduleUpdate"}, {"type": "ScheduleUpdate", "counter": -1}]
)
def test_an_answer_that_is_not_understood_is_refused(answer: object) -> None:
    with pytest.raises(BridgeError, match=r"not understood: |no usable counter"):
        parse_answer(answer)
