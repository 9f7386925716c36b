"""Progress reports beside the training, and the countdown to the next update that the answers set."""

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet

from hypha_executor.errors import BridgeError, ExecutorError
from hypha_executor.progress import Answer, Progress
from hypha_trainer.log import log

MOST_ERRORS = 20
"""How many answers in a row may be errors before the scheduler is taken to have dropped this trainer."""

METRICS_EVERY_S = 0.25


class Countdown:
    """How many batches are left until the update; unknown (None) until the scheduler says.

    The answer to the report of a batch may set how many more batches follow it.
    """

    def __init__(self) -> None:
        self.left: int | None = None

    def batch_done(self) -> None:
        """One more batch has been trained."""
        if self.left is not None:
            self.left = max(0, self.left - 1)

    def answered(self, answer: Answer, batches_since: int) -> None:
        """The answer to a report came, `batches_since` batches after the reported one."""
        if answer.batches_left is not None:
            self.left = max(0, answer.batches_left - batches_since)

    @property
    def over(self) -> bool:
        """Whether the update is due."""
        return self.left == 0


class Reporter:
    """Reports batches in order, one report under way at a time, while the next batch is computed.

    Before the next batch the answer is waited for, but no longer than a tenth of what a batch takes: slow batches stop
    where the scheduler says, fast ones do not wait for the network and may overrun by one.
    """

    def __init__(self, progress: Progress):
        self._progress = progress
        self._thread = ThreadPoolExecutor(1, "progress")
        self._pending: Future[Answer] | None = None
        self._errors = 0
        self.countdown = Countdown()

    def batch_done(self, samples: int, duration_s: float) -> None:
        """Reports a batch of `samples`, trained in `duration_s`; takes in the answers that are there."""
        self.countdown.batch_done()
        self._collect(batches_since=1, timeout_s=None)
        self._pending = self._thread.submit(self._progress.batch_trained, samples)
        self._collect(batches_since=0, timeout_s=duration_s / 10)

    def finish_round(self) -> None:
        """Waits for the last answer and says that the update is on its way; the next round counts anew."""
        self._collect(batches_since=0, timeout_s=None)
        self._check(self._progress.update_due())
        self.countdown = Countdown()

    def update_received(self) -> bool:
        """Says that the update is merged; whether training is done."""
        while True:
            answer = self._check(self._progress.update_merged())
            if not answer.failed:
                return answer.done
            time.sleep(0.5)

    def _collect(self, batches_since: int, timeout_s: float | None) -> None:
        if self._pending is None:
            return
        try:
            answer = self._pending.result(timeout_s)
        except NotYet:
            return
        self._pending = None
        self.countdown.answered(self._check(answer), batches_since)

    def _check(self, answer: Answer) -> Answer:
        self._errors = self._errors + 1 if answer.failed else 0
        if self._errors == 1:
            log("the scheduler answered a report with an error; training goes on")
        if self._errors >= MOST_ERRORS:
            raise ExecutorError(
                f"the scheduler answered {MOST_ERRORS} reports in a row with errors; it dropped this worker"
            )
        return answer


class Metrics:
    """Loss, batch time and samples, sent by a thread of its own: of each batch, or of several if they are fast."""

    def __init__(
        self, progress: Progress, every_s: float = METRICS_EVERY_S, clock: Callable[[], float] = time.monotonic
    ):
        self._progress = progress
        self._every_s = every_s
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._sending: Future[None] | None = None
        self._last_s = -every_s
        self._batches: list[tuple[float, float, int]] = []

    def batch_done(self, round_number: int, loss: float, duration_s: float, samples: int) -> None:
        """Takes in one batch and sends what has gathered, unless that is too soon."""
        self._batches.append((loss, duration_s, samples))
        if self._clock() - self._last_s >= self._every_s and (self._sending is None or self._sending.done()):
            self.flush(round_number)

    def flush(self, round_number: int) -> None:
        """Sends what has gathered."""
        if self._batches:
            self._last_s = self._clock()
            self._sending = self._thread.submit(self._send, round_number, summarise(self._batches))
            self._batches = []

    def _send(self, round_number: int, metrics: Mapping[str, float]) -> None:
        try:
            self._progress.metrics(round_number, metrics)
        except BridgeError as error:  # metrics are no reason to stop; a bridge that is gone shows elsewhere
            log(f"metrics were lost: {error}")


def summarise(batches: list[tuple[float, float, int]]) -> dict[str, float]:
    """Metrics of some batches: mean of finite losses, mean batch time in seconds, samples, samples per second."""
    duration_s = sum(batch[1] for batch in batches)
    samples = sum(batch[2] for batch in batches)
    losses = [loss for loss, _, _ in batches if math.isfinite(loss)]
    return {
        **({"loss": sum(losses) / len(losses)} if losses else {}),
        "batch_time": duration_s / len(batches),
        "samples": float(samples),
        "samples_per_second": samples / duration_s if duration_s > 0 else 0.0,
    }
