"""DiLoCo's inner loop: train until the update is due, send the pseudo-gradient, merge the update."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from hypha_executor.bridge import Bridge
from hypha_executor.errors import BridgeError, ExecutorError
from hypha_executor.incoming import Incoming
from hypha_executor.labels import Labels
from hypha_executor.progress import Progress
from hypha_executor.safetensors import read_header
from hypha_trainer.job import TrainJob
from hypha_trainer.log import log
from hypha_trainer.processes import Processes
from hypha_trainer.progress import Metrics, Reporter
from hypha_trainer.replicas import Weights
from hypha_trainer.slices import Batch, Batches
from hypha_trainer.weights import Tensors, add_update, difference, save_tensors


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

    def step(self, batch: Batch) -> float:
        """Train one batch; return its loss over all processes."""
        with self.accelerator.autocast():
            loss = self._loss(batch)
        self.optimizer.zero_grad()
        # accelerate averages the gradients of the processes, so each is weighted by its number of samples.
        weight = batch.share * self.processes.data_ranks
        self.accelerator.backward(loss * weight if weight != 1 else loss)
        self.optimizer.step()
        if not self.accelerator.optimizer_step_was_skipped:
            self.schedule.step()
        loss = loss.detach().float() * weight
        return float(loss if self.processes.alone else self.accelerator.reduce(loss, "mean"))

    def _loss(self, batch: Batch) -> torch.Tensor:
        try:
            outputs = self.model(**batch.inputs)
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise ExecutorError("out of GPU memory; use a smaller batch_size or a larger worker") from error
            shapes = ", ".join(f"{k} {v.dtype} {list(v.shape)}".replace("torch.", "") for k, v in batch.inputs.items())
            raise ExecutorError(
                f"the model refused a batch ({shapes}): {' '.join(str(error).split())[:400]}"
            ) from error
        loss = outputs if isinstance(outputs, torch.Tensor) else outputs.get("loss")
        if loss is None:
            raise ExecutorError("the model computed no loss; name its labels among the model's input-names")
        return loss


class Coordinator:
    """The main process's part of a job: everything that uses the bridge."""

    def __init__(self, bridge: Bridge, job: TrainJob, work_dir: Path, start: Tensors, update_timeout_s: float):
        self._bridge = bridge
        self._job = job
        self._work_dir = work_dir
        self._update_timeout_s = update_timeout_s
        self._incoming = Incoming(bridge, job.results)
        self._incoming.wait_open()
        progress = Progress(bridge)
        self._reporter = Reporter(progress)
        self._metrics = Metrics(progress)
        self._merged_round = ""
        self.weights = start
        self.samples = 0
        self.round = 1

    def batch_done(self, samples: int, loss: float, duration_s: float) -> bool:
        """Report a batch; return whether it was the last one of the round."""
        self.samples += samples
        self._metrics.batch_done(self.round, loss, duration_s, samples)
        self._reporter.batch_done(samples, duration_s)
        return self._reporter.countdown.over

    def send(self, weights: Weights) -> Path:
        """Send the pseudo-gradient of the round; return its file, which must stay until the update has arrived."""
        self._metrics.flush(self.round)
        self._reporter.finish_round()
        path = self._work_dir / f"pseudo-gradient-{self.round}.safetensors"
        labels = Labels(self._job.job_id, self.round, self.samples)
        save_tensors(path, difference(weights.tensors(), self.weights), self.weights, labels.to_metadata())
        self._bridge.send(self._job.updates, path)
        return path

    def merge(self) -> None:
        """Wait for the round's update and add it to the global weights."""
        deadline = time.monotonic() + self._update_timeout_s
        while True:
            received = self._incoming.next(max(0.0, deadline - time.monotonic()))
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
            add_update(self.weights, path)
            self._merged_round = update_round
            return path.unlink()

    def next_round(self) -> bool:
        """Report the merged update; return whether training is done."""
        done = self._reporter.update_received()
        self.samples = 0
        self.round += 1
        return done


def train(training: Training, coordinator: Coordinator | None) -> int:
    """Train until the scheduler says that the job is done; return the number of rounds."""
    processes, rounds = training.processes, 0
    while True:
        _train_round(training, coordinator)
        began = time.monotonic()
        if coordinator:
            sent = coordinator.send(training.weights)
            log(f"round {coordinator.round}: pseudo-gradient sent after {time.monotonic() - began:.2f} s")
        else:
            for _ in training.weights.tensors():
                pass
        processes.decide(coordinator.merge if coordinator else lambda: None)
        training.weights.load(coordinator.weights if coordinator else {})
        rounds += 1
        if coordinator:
            sent.unlink(missing_ok=True)
            log(f"round {coordinator.round}: update merged, {time.monotonic() - began:.2f} s after the last batch")
        if processes.decide(coordinator.next_round if coordinator else lambda: True):
            return rounds


def _train_round(training: Training, coordinator: Coordinator | None) -> None:
    over, count, losses, began = False, 0, 0.0, time.monotonic()
    while not over:
        batch_began = time.monotonic()
        batch = training.batches.next()
        loss = training.step(batch)
        duration_s = time.monotonic() - batch_began
        count, losses = count + 1, losses + loss
        over = training.processes.decide(
            lambda: coordinator.batch_done(batch.samples, loss, duration_s) if coordinator else True  # noqa: B023
        )
    if coordinator:
        log(
            f"round {coordinator.round}: {count} batches, {coordinator.samples} samples, "
            f"loss {losses / count:.4f}, {time.monotonic() - began:.1f} s"
        )
