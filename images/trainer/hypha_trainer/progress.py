"""Report progress in parallel with the training, and count down to the next update as the answers say."""

import math
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as PendingError

from hypha_executor.errors import BridgeError, ExecutorError
from hypha_executor.progress import Answer, Progress
from hypha_trainer.log import log

MAX_ERRORS = 20
"""After this many error answers in a row, the trainer assumes that the scheduler has dropped it."""

METRICS_EVERY_S = 0.25


class Countdown:
    """The number of batches left until the update; None until the scheduler sets it.

    The answer to the report of a batch may set how many more batches follow it.
    """

    def __init__(self) -> None:
        self.left: int | None = None

    def batch_done(self) -> None:
        """Count one trained batch."""
        if self.left is not None:
            self.left = max(0, self.left - 1)

    def on_answer(self, answer: Answer, batches_since: int) -> None:
        """Apply the answer to a report, which arrived `batches_since` batches after the reported one."""
        if answer.batches_left is not None:
            self.left = max(0, answer.batches_left - batches_since)

    def resume(self, batches_left: int | None) -> None:
        """Begin with what the scheduler told an earlier process of this trainer. One batch is trained in any case."""
        self.left = None if batches_left is None else max(1, batches_left)

    @property
    def over(self) -> bool:
        """Whether the update is due."""
        return self.left == 0


class Reporter:
    """Reports batches in order, one report at a time, while the next batch is computed.

    Each report waits for its answer before the next batch, for up to a tenth of the batch's duration. Slow batches
    therefore end exactly where the scheduler says. Fast batches do not wait for the network and may overrun by one.
    """

    def __init__(self, progress: Progress):
        self._progress = progress
        self._thread = ThreadPoolExecutor(1, "progress")
        self._pending: Future[Answer] | None = None
        self._errors = 0
        self.countdown = Countdown()

    def batch_done(self, samples: int, duration_s: float) -> None:
        """Report a batch of `samples` that took `duration_s` seconds; apply the answers that have arrived."""
        self.countdown.batch_done()
        self._collect(batches_since=1, timeout_s=None)
        self._pending = self._thread.submit(self._progress.batch_trained, samples)
        self._collect(batches_since=0, timeout_s=duration_s / 10)

    def finish_round(self) -> None:
        """Wait for the last answer, report that the update is due, and reset the countdown."""
        self._collect(batches_since=0, timeout_s=None)
        self._check(self._progress.update_due())
        self.countdown = Countdown()

    def update_received(self) -> bool:
        """Report that the update is merged; return whether training is done."""
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
        except PendingError:
            return
        self._pending = None
        self.countdown.on_answer(self._check(answer), batches_since)

    def _check(self, answer: Answer) -> Answer:
        self._errors = self._errors + 1 if answer.failed else 0
        if self._errors == 1:
            log("the scheduler answered a report with an error; training continues")
        if self._errors >= MAX_ERRORS:
            raise ExecutorError(
                f"the scheduler answered {MAX_ERRORS} reports in a row with errors; it dropped this worker"
            )
        return answer


class Metrics:
    """Sends loss, batch time and samples from a thread of its own, for each batch, or for several if they are fast."""

    def __init__(
        self,
        progress: Progress,
        every_s: float = METRICS_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
        restarts: int = 0,
    ):
        self._progress = progress
        self._constant = {"restarts": float(restarts)} if restarts else {}
        self._every_s = every_s
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._sending: Future[None] | None = None
        self._last_s = -every_s
        self._batches: list[tuple[float, float, int]] = []

    def batch_done(self, round_number: int, loss: float, duration_s: float, samples: int) -> None:
        """Add one batch, and send the collected metrics unless that would be too early."""
        self._batches.append((loss, duration_s, samples))
        if self._clock() - self._last_s >= self._every_s and (self._sending is None or self._sending.done()):
            self.flush(round_number)

    def flush(self, round_number: int) -> None:
        """Send the collected metrics."""
        if self._batches:
            self._last_s = self._clock()
            self._sending = self._thread.submit(self._send, round_number, summarise(self._batches) | self._constant)
            self._batches = []

    def wait(self, timeout_s: float) -> None:
        """Wait until the metrics are sent, and give up after `timeout_s` seconds."""
        if self._sending is not None:
            futures.wait([self._sending], timeout_s)

    def _send(self, round_number: int, metrics: Mapping[str, float]) -> None:
        try:
            self._progress.metrics(round_number, metrics)
        except BridgeError as error:  # lost metrics do not end the training; a lost bridge does, elsewhere
            log(f"metrics were lost: {error}")


def summarise(batches: list[tuple[float, float, int]]) -> dict[str, float]:
    """Return the mean finite loss, the mean batch time in seconds, the samples, and the samples per second."""
    duration_s = sum(batch[1] for batch in batches)
    samples = sum(batch[2] for batch in batches)
    losses = [loss for loss, _, _ in batches if math.isfinite(loss)]
    return {
        **({"loss": sum(losses) / len(losses)} if losses else {}),
        "batch_time": duration_s / len(batches),
        "samples": float(samples),
        "samples_per_second": samples / duration_s if duration_s > 0 else 0.0,
    }
