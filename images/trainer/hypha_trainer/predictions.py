"""Inference with a model: the predictions of each slice, batch by batch, and what becomes of them."""

import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import pad

from hypha_executor.bridge import Bridge
from hypha_executor.errors import ExecutorError, JobError
from hypha_executor.labels import Labels
from hypha_executor.progress import Answer, Progress
from hypha_trainer.job import InferenceJob
from hypha_trainer.log import log
from hypha_trainer.models import run_model
from hypha_trainer.slices import Tensors, length, read_slice
from hypha_trainer.weights import DTYPE_NAMES, save_tensors


@dataclass(frozen=True)
class Part:
    """A batch of one slice: the model's inputs, its samples, and the index of the slice.

    Attributes:
        last: Whether it is the last batch of its slice.
    """

    inputs: Tensors
    samples: int
    slice_index: int
    last: bool


def parts(
    bridge: Bridge,
    job: InferenceJob,
    names: tuple[tuple[str, ...], tuple[str, ...]],
    prepare: Callable[[Tensors], Tensors],
) -> Iterator[Part]:
    """Yield the batches of slice after slice, until the scheduler has no more slices for this job. None spans two."""
    while (fetched := bridge.next_slice(job.data)) is not None:
        tensors = read_slice(fetched.path, *names)
        fetched.path.unlink()  # the memory map keeps the bytes
        total = length(tensors)
        for first in range(0, total, job.batch_size):
            rows = {name: tensor[first : first + job.batch_size] for name, tensor in tensors.items()}
            yield Part(prepare(rows), length(rows), fetched.index, first + job.batch_size >= total)


class Predictor:
    """A model in evaluation mode.

    Args:
        model: The model on its devices.
        device: Where it takes its inputs.
        outputs: The names of its outputs to keep. None keeps every tensor that has a row for each sample.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device, outputs: tuple[str, ...] | None):
        self._model = model.eval()
        self._device = device
        self._outputs = outputs
        self._dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def predict(self, part: Part) -> Tensors:
        """Return the outputs for a batch, on the CPU. The first dimension of each tensor counts the samples.

        Raises:
            ExecutorError: The model refuses the batch.
            JobError: It has no output of a configured name, or none to keep.
        """
        inputs = {name: self._placed(tensor) for name, tensor in part.inputs.items()}
        with torch.inference_mode():
            made = run_model(self._model, inputs)
        kept = _with_rows({"output": made} if isinstance(made, torch.Tensor) else made, part.samples)
        chosen = self._outputs or tuple(kept)
        if not chosen or (missing := [name for name in chosen if name not in kept]):
            raise JobError(
                f"the model has no outputs {missing if chosen else 'to keep'}, only {sorted(kept)} with a row for each "
                "sample; correct the job's outputs"
            )
        return {name: _storable(kept[name]) for name in chosen}

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)


def _with_rows(outputs: Mapping[str, object], samples: int) -> Tensors:
    """Return the outputs that are tensors with a row for each sample, which a loss is not."""
    tensors = {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}
    return {name: tensor for name, tensor in tensors.items() if tensor.dim() > 0 and len(tensor) == samples}


def _storable(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", torch.uint8 if tensor.dtype not in DTYPE_NAMES else None)


def join(batches: list[Tensors]) -> Tensors:
    """Return the outputs of all batches of a slice as one tensor each.

    Batches may be padded to different lengths. The shorter ones are filled with zeros at the end of each dimension.
    """
    return {name: _concatenated([batch[name] for batch in batches]) for name in batches[0]}


def _concatenated(tensors: list[torch.Tensor]) -> torch.Tensor:
    shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    filled = []
    for tensor in tensors:
        missing = [size - own for size, own in zip(shape, tensor.shape[1:], strict=True)]
        filled.append(pad(tensor, [n for size in reversed(missing) for n in (0, size)]) if any(missing) else tensor)
    return torch.cat(filled)


@dataclass(frozen=True)
class Delivery:
    """What becomes of predictions: they are sent to the peers of the job's `results`, or kept if it names none.

    Attributes:
        output_dir: The directory that outlives the job.
        max_bytes: The size that this directory, with the results of all jobs, may reach. None if it has no limit.
    """

    bridge: Bridge
    job: InferenceJob
    output_dir: Path
    max_bytes: int | None

    def __call__(self, slice_index: int, outputs: Tensors) -> Answer:
        """Deliver the predictions of a slice, and report that to the scheduler; return its answer.

        Raises:
            ExecutorError: The folder is full, or the scheduler does not count the slice.
            BridgeError: The bridge is gone, or a peer does not take the predictions.
        """
        samples = length(outputs)
        labels = Labels(self.job.job_id, samples=samples, dataset=self.job.dataset, slice_index=slice_index)
        with self.bridge.telemetry.span("predictions delivered", {"index": slice_index, "samples": samples}):
            if self.job.results is None:
                self._keep(slice_index, outputs, labels)
            else:
                path = self.bridge.work_dir / f"predictions-{slice_index}.safetensors"
                save_tensors(path, outputs.items(), outputs, labels.to_metadata())
                self.bridge.send(self.job.results, path, wait=True)
                path.unlink()
        answer = Progress(self.bridge).slice_predicted(slice_index, samples)
        if answer.failed:
            raise ExecutorError(f"the scheduler does not count the predictions of slice {slice_index}")
        return answer

    def _keep(self, slice_index: int, outputs: Tensors, labels: Labels) -> None:
        folder = self.output_dir / self.job.job_id
        folder.mkdir(parents=True, exist_ok=True)
        if self.max_bytes is not None:
            self._check_room(outputs, self.max_bytes)
        # Other workers of the job may keep the same slice in the same folder.
        path = folder / f".{slice_index}-{secrets.token_hex(4)}.safetensors"
        save_tensors(path, outputs.items(), outputs, labels.to_metadata())
        path.replace(folder / f"{slice_index}.safetensors")

    def _check_room(self, outputs: Tensors, max_bytes: int) -> None:
        held, needed = _disk_bytes(self.output_dir), sum(tensor.nbytes for tensor in outputs.values())
        if held + needed > max_bytes:
            raise ExecutorError(
                f"{self.output_dir} holds {held} of at most {max_bytes} bytes; remove results of old jobs there, "
                "or allow more"
            )


def _disk_bytes(folder: Path) -> int:
    """Return the size on disk of all files below a folder."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(directory, name).lstat().st_blocks * 512
            except FileNotFoundError:  # another job has renamed it
                continue
    return total


class Background:
    """Makes calls in a thread, one after the other. At most one of them waits."""

    def __init__(self, name: str):
        self._thread = ThreadPoolExecutor(1, name)
        self._pending: Future[Answer] | None = None

    def start(self, call: Callable[[], Answer]) -> Answer:
        """Start a call once the previous one is over; return the answer of that one, or raise its error."""
        answer = self.finish()
        self._pending = self._thread.submit(call)
        return answer

    def finish(self) -> Answer:
        """Wait until the last call is over; return its answer, or raise its error."""
        pending, self._pending = self._pending, None
        return pending.result() if pending else Answer()


def infer(
    batches: Iterable[Part], predictor: Predictor, bridge: Bridge, deliver: Callable[[int, Tensors], Answer]
) -> int:
    """Predict slice after slice; return the number of samples. Ends early once the scheduler says that the job is done.

    Reports and deliveries go on while the next batch is computed.
    """
    progress, reports, deliveries = Progress(bridge), Background("reports"), Background("deliveries")
    outputs: list[Tensors] = []
    samples, waiting_since = 0, time.monotonic()
    for part in batches:
        bridge.telemetry.add("hypha.job.waiting.time", time.monotonic() - waiting_since, {"for": "data"})
        outputs.append(predictor.predict(part))
        samples += part.samples
        done = reports.start(partial(progress.batch_predicted, part.samples)).done
        if part.last:
            done |= deliveries.start(partial(deliver, part.slice_index, join(outputs))).done
            log(f"slice {part.slice_index}: predicted")
            outputs = []
        if done:
            log("the scheduler says that the job is done")
            return samples
        waiting_since = time.monotonic()
    reports.finish()
    deliveries.finish()
    return samples
