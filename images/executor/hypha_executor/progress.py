"""The progress protocol on the executor's side: the values that are reported and the answers to them.

No other module of an executor knows these values. Another control protocol gets a module of its own beside this one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hypha_executor.bridge import Bridge
from hypha_executor.errors import BridgeError


@dataclass(frozen=True)
class Answer:
    """The scheduler's answer to a report.

    Attributes:
        done: The job is done.
        failed: The scheduler could not use the report.
        batches_left: How many more batches to train after the reported one, before the update; None if not said.
    """

    done: bool = False
    failed: bool = False
    batches_left: int | None = None


class Progress:
    """Reports to the scheduler. Every method returns the answer, and raises BridgeError if the bridge is gone."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def batch_trained(self, samples: int) -> Answer:
        """Report a trained batch. The answer may set the number of batches until the update."""
        return self._report({"status": {"batch_size": samples}})

    def batch_predicted(self, samples: int) -> Answer:
        """Report a batch whose predictions are computed. The answer says whether the job is done."""
        return self._report({"status": {"batch_size": samples}})

    def slice_predicted(self, index: int, samples: int) -> Answer:
        """Report that the predictions of a slice have arrived at their peers. The answer says whether the job is done.

        It is `failed` if the scheduler does not count the slice.
        """
        return self._report({"predicted": {"index": index, "samples": samples}})

    def metrics(self, round_number: int, values: Mapping[str, float]) -> Answer:
        """Report measurements of a round (from 1). Values that are not finite are left out, because JSON has none."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        return self._report({"metrics": {"round": round_number, "metrics": finite}})

    def update_due(self) -> Answer:
        """Report that a trainer has trained the round's last batch and is about to send its pseudo-gradient."""
        return self._report("update")

    def update_merged(self) -> Answer:
        """Report that a trainer has merged the update. The answer says whether the job is done."""
        return self._report("update-received")

    def outer_step_taken(self) -> Answer:
        """Report that the parameter server has taken the outer step. The answer says whether the job is done."""
        return self._report("updated")

    def _report(self, progress: object) -> Answer:
        return parse_answer(self._bridge.report(progress))


def parse_answer(answer: object) -> Answer:
    """Parse the JSON of an answer: `{"type": "Ok" | "Continue" | "ScheduleUpdate" | "Done" | "Error", "counter": n}`.

    Raises:
        BridgeError: It has no type, or a `ScheduleUpdate` has no counter.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("type"), str):
        raise BridgeError(f"the scheduler's answer is not understood: {answer!r}"[:300])
    kind, counter = answer["type"], answer.get("counter")
    if kind != "ScheduleUpdate":
        return Answer(done=kind == "Done", failed=kind == "Error")
    if not isinstance(counter, int) or counter < 0:
        raise BridgeError(f"the scheduler's ScheduleUpdate has no usable counter: {answer!r}"[:300])
    return Answer(batches_left=counter)
