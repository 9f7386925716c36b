"""DiLoCo's inner loop: train until the update is due, send the pseudo-gradient, merge the update."""

import math
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from hypha_executor import restart
from hypha_executor.bridge import Bridge
from hypha_executor.errors import BridgeError, ExecutorError
from hypha_executor.incoming import Incoming
from hypha_executor.labels import Labels
from hypha_executor.progress import Progress
from hypha_executor.safetensors import read_header
from hypha_executor.telemetry import Attributes
from hypha_trainer.checkpoint import Checkpoint, Merged, Stage
from hypha_trainer.checkpoint import Progress as Kept
from hypha_trainer.job import TrainJob
from hypha_trainer.log import log
from hypha_trainer.models import run_model
from hypha_trainer.processes import Processes
from hypha_trainer.progress import Metrics, Reporter
from hypha_trainer.replicas import Weights
from hypha_trainer.slices import Batch, Batches
from hypha_trainer.throughput import RoundTally
from hypha_trainer.tuning import Tuning
from hypha_trainer.weights import Tensors, add_update, difference, save_tensors

TRACE_BATCH_EVERY_S: Final = 5.0
"""Of the batches within this time, the trace has one."""
METRICS_WAIT_S: Final = 5.0
"""How long the end of a round waits until its metrics are sent."""


@dataclass
class Training:
    """The model, its optimizer and its data in this process."""

    accelerator: Accelerator
    processes: Processes
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    weights: Weights
    batches: Batches
    tuning: Tuning

    def step(self, batch: Batch) -> torch.Tensor:
        """Train one batch; return its loss over all processes, which the device may still be computing."""
        self.optimizer.zero_grad()
        # accelerate averages the gradients of the processes, so each is weighted by its number of samples.
        weight = batch.share * self.processes.data_ranks
        loss = torch.zeros((), device=self.accelerator.device)
        parts = batch.parts(min(self.tuning.parts, batch.samples // self.processes.data_ranks))
        for number, (inputs, share) in enumerate(parts, start=1):
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    part = self._loss(inputs) * (weight * share)
                # accelerate divides the loss by its number of accumulation steps, and these add up to the batch.
                self.accelerator.backward(part * self.accelerator.gradient_accumulation_steps)
            loss += part.detach()
        if self.tuning.max_gradient_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.tuning.max_gradient_norm)
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        return loss if self.processes.alone else self.accelerator.reduce(loss, "mean")

    def resume(self, weights: Tensors, batches: int) -> None:
        """Go on from these global weights (empty except in the main process) after a number of batches."""
        self.weights.load(weights)
        self.schedule.last_epoch = batches - 1
        self.schedule.step()

    def _loss(self, inputs: Tensors) -> torch.Tensor:
        outputs = run_model(self.model, inputs)
        loss = outputs if isinstance(outputs, torch.Tensor) else outputs.get("loss")
        if loss is None:
            raise ExecutorError("the model computed no loss; name its labels among the model's input-names")
        return loss.float().mean()  # some models return a loss for each sample


class Coordinator:
    """The main process's part of a job: everything that uses the bridge."""

    def __init__(self, bridge: Bridge, job: TrainJob, work_dir: Path, start: Tensors, update_timeout_s: float):
        self._bridge = bridge
        self._job = job
        self._work_dir = work_dir
        self._update_timeout_s = update_timeout_s
        self._checkpoint = Checkpoint(work_dir)
        resumed = self._checkpoint.load(start)
        self._merged = resumed.merged
        self._incoming = Incoming(bridge, job.results, after=self._merged.event_id)
        self._incoming.wait_open()
        progress = Progress(bridge)
        self._reporter = Reporter(progress)
        self._reporter.countdown.resume(resumed.progress.batches_left)
        self._metrics = Metrics(progress, restarts=restart.record(bridge.telemetry))
        self._merged_round = str(self._merged.round or "")
        self._telemetry = bridge.telemetry
        self._began_ns = time.time_ns()
        self._traced_batch_s = -math.inf
        self.weights = start
        self.samples = 0
        self.batches = self._merged.batches
        self.round = resumed.progress.round
        self.stage = resumed.stage
        self.tally = RoundTally(time.monotonic())
        if self._merged.round:
            log(f"going on from the global weights of round {self._merged.round}: {self.stage.value}")

    def batch_done(self, samples: int, duration_s: float) -> bool:
        """Report a batch, whose loss may follow later. Return whether it was the last of the round."""
        self.samples += samples
        self.batches += 1
        scheduled = self._reporter.countdown.left is not None
        with self._waiting_for_network():
            self._reporter.batch_done(samples, duration_s)
        if not scheduled and self._reporter.countdown.left is not None:  # which the scheduler may say only once
            self._checkpoint.keep_progress(Kept(self.round, batches_left=self._reporter.countdown.left))
        return self._reporter.countdown.over

    def loss_known(self, batch: "Trained", loss: float) -> None:
        """Report the loss of a batch."""
        tally = self.tally
        tally.add_loss(loss)
        if not math.isfinite(loss):
            self._telemetry.add("hypha.job.losses.not_finite", 1)
            if tally.not_finite == 1:
                log(f"round {self.round}: the loss of batch {tally.batches} is {loss}; the model may have diverged")
        self._metrics.batch_done(self.round, loss, batch.duration_s, batch.samples)
        self._measure_batch(batch, loss)

    def _measure_batch(self, batch: "Trained", loss: float) -> None:
        self.tally.samples += batch.samples
        self.tally.tokens += batch.tokens
        self.tally.data_s += batch.waited_s
        self._telemetry.add("hypha.job.waiting.time", batch.waited_s, {"for": "data"})
        if batch.tokens:
            self._telemetry.add("hypha.job.tokens", batch.tokens)
        if (now := time.monotonic()) - self._traced_batch_s >= TRACE_BATCH_EVERY_S:
            self._traced_batch_s = now
            attributes: Attributes = {"round": self.round, "samples": batch.samples, "loss": loss}
            attributes["waited_s"] = batch.waited_s
            self._telemetry.record("batch", time.time_ns() - int(batch.duration_s * 1e9), attributes)

    @contextmanager
    def _waiting_for_network(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        waited_s = time.monotonic() - began
        self.tally.network_s += waited_s
        self._telemetry.add("hypha.job.waiting.time", waited_s, {"for": "network"})

    def send(self, weights: Weights) -> None:
        """Send the pseudo-gradient of the round. Its file stays until the update has arrived."""
        with self._telemetry.span("pseudo-gradient sent", {"round": self.round, "samples": self.samples}):
            self._send(weights)

    def _send(self, weights: Weights) -> None:
        self._metrics.flush(self.round)
        with self._waiting_for_network():
            self._reporter.finish_round()
        labels = Labels(self._job.job_id, self.round, self.samples)
        path = self._pseudo_gradient
        change = difference(weights.tensors(), self.weights, weights.untrained)
        save_tensors(path, change, self.weights, labels.to_metadata())
        with self._waiting_for_network():
            self._bridge.send(self._job.updates, path)
        self._checkpoint.keep_progress(Kept(self.round, sent=True))

    @property
    def _pseudo_gradient(self) -> Path:
        return self._work_dir / f"pseudo-gradient-{self.round}.safetensors"

    def merge(self, untrained: Set[str]) -> None:
        """Wait for the round's update, add it to the global weights and keep these for a restart."""
        with self._telemetry.span("update received", {"round": self.round}):
            self._merge(untrained)
        self._pseudo_gradient.unlink(missing_ok=True)

    def _merge(self, untrained: Set[str]) -> None:
        deadline = time.monotonic() + self._update_timeout_s
        while True:
            began = time.monotonic()
            received = self._incoming.next(max(0.0, deadline - began))
            self._telemetry.add("hypha.job.waiting.time", time.monotonic() - began, {"for": "update"})
            if received is None:
                raise BridgeError(
                    f"no update came within {self._update_timeout_s:.0f} s; is the parameter server alive? "
                    "(--update-timeout-s waits longer)"
                )
            path = self._bridge.inside(received.path)
            update_round = read_header(path).metadata.get("round", "")
            if update_round and update_round == self._merged_round:
                log(f"an update of round {update_round} arrived again and is ignored")
                path.unlink()
                continue
            add_update(self.weights, path, self._pseudo_gradient, untrained)
            self._merged_round = update_round
            self._merged = Merged(self.round, received.event_id or self._merged.event_id, self.batches)
            self._checkpoint.keep_weights(self.weights, self._merged)
            return path.unlink()  # not before, because a restarted trainer would need it again

    def next_round(self) -> bool:
        """Report the merged update; return whether training is done."""
        self._metrics.wait(METRICS_WAIT_S)  # which would be lost if the job, and so this process, ended now
        done = self._reporter.update_received()
        if not done:
            self._checkpoint.keep_progress(Kept(self.round + 1))
        self._telemetry.record("outer step", self._began_ns, {"round": self.round, "samples": self.samples})
        self._began_ns = time.time_ns()
        self.samples = 0
        self.round += 1
        self.tally = RoundTally(time.monotonic())
        return done


def train(training: Training, coordinator: Coordinator | None) -> int:
    """Train until the scheduler says that the job is done; return the number of rounds."""
    processes, rounds = training.processes, 0
    stage, batches = processes.decide(
        lambda: (coordinator.stage, coordinator.batches) if coordinator else (Stage.TRAIN, 0)
    )
    if batches or stage is not Stage.TRAIN:
        training.resume(coordinator.weights if coordinator else {}, batches)
    while True:
        began = time.monotonic()
        if stage is Stage.TRAIN:
            _train_round(training, coordinator)
            began = time.monotonic()
            _send(training, coordinator)
        if stage is not Stage.REPORT_UPDATE:
            sent_s = time.monotonic()
            processes.decide(lambda: coordinator.merge(training.weights.untrained) if coordinator else None)
            training.weights.load(coordinator.weights if coordinator else {})
            if coordinator:
                now = time.monotonic()
                coordinator.tally.outer_step_s = now - sent_s
                log(f"round {coordinator.round}: update merged, {now - began:.2f} s after the last batch")
                log(f"round {coordinator.round}: {coordinator.tally.throughput(now)}")
        rounds += 1
        if processes.decide(coordinator.next_round if coordinator else lambda: True):
            return rounds
        stage = Stage.TRAIN


def _send(training: Training, coordinator: Coordinator | None) -> None:
    if coordinator is None:
        for _ in training.weights.tensors():
            pass
        return
    began = time.monotonic()
    coordinator.send(training.weights)
    log(f"round {coordinator.round}: pseudo-gradient sent after {time.monotonic() - began:.2f} s")


@dataclass(frozen=True)
class Trained:
    """A batch whose training the device has been given, and may not have finished.

    Attributes:
        tokens: In the complete batch; 0 if it holds no text.
        duration_s: The time from the previous batch to this one.
        waited_s: Its part that was spent waiting for the batch.
    """

    loss: torch.Tensor
    samples: int
    tokens: int
    duration_s: float
    waited_s: float


def _train_round(training: Training, coordinator: Coordinator | None) -> None:
    """Train the batches of a round.

    A loss is read after the next batch has been given to the device, so that the device always has work.
    """
    over, began = False, time.monotonic()
    previous: Trained | None = None
    while not over:
        batch_began = time.monotonic()
        batch = training.batches.next()
        waited_s = time.monotonic() - batch_began
        loss = training.step(batch)
        _read_loss(previous, coordinator)
        trained = Trained(loss, batch.samples, batch.tokens, time.monotonic() - batch_began, waited_s)
        over = training.processes.decide(
            lambda: coordinator.batch_done(trained.samples, trained.duration_s) if coordinator else True  # noqa: B023
        )
        previous = trained
    if previous:  # no further batch is given to the device, so the rest of this one's time is the wait for its loss
        rest_began, _ = time.monotonic(), float(previous.loss)
        previous = replace(previous, duration_s=previous.duration_s + time.monotonic() - rest_began)
    _read_loss(previous, coordinator)
    if coordinator:
        log(f"round {coordinator.round}: {coordinator.tally.trained()}, {time.monotonic() - began:.1f} s")


def _read_loss(batch: Trained | None, coordinator: Coordinator | None) -> None:
    if batch and coordinator:
        coordinator.loss_known(batch, float(batch.loss))
