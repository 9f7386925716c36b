"""From the tensors of a slice to the model's inputs."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hypha_executor.errors import JobError
from hypha_trainer.job import Artifact, InferenceJob, TrainJob

Tensors = dict[str, torch.Tensor]

NEXT_TOKEN_TASKS = {"causal-lm", "image-text-to-text", "vision-2-seq", "vison2-seq", "vision2-seq"}
"""Model types whose labels, if nothing else brings them, are the input tokens."""


def slice_names(job: TrainJob | InferenceJob) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the tensors that a slice must have, and those that it may have instead of the preprocessor's outputs."""
    if job.preprocessor is None:
        return job.model.input_names, ()
    required = job.preprocessor.input_names
    return required, tuple(name for name in job.model.input_names if name not in required)


def ensure_pad_token(preprocessor: Any) -> int | None:
    """Let a tokenizer without a padding token pad with its end token. Return the padding's id; None without tokenizer.

    Padding must be found by the attention mask from then on, because the end token is also part of texts.

    Raises:
        JobError: The tokenizer has neither token.
    """
    tokenizer = getattr(preprocessor, "tokenizer", preprocessor)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise JobError(
                "the tokenizer has neither a padding nor an end token; add pad_token to its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return int(tokenizer.pad_token_id)


class Preparation:
    """Applies the job's preprocessor, selects the model's inputs and converts them to the model's dtypes."""

    def __init__(self, job: TrainJob | InferenceJob, preprocessor: Any):
        self._job = job
        self._preprocessor = preprocessor

    def __call__(self, rows: Tensors) -> Tensors:
        """Prepare the rows of one batch.

        Raises:
            JobError: The preprocessor fails, or an input is missing.
        """
        stage = self._job.preprocessor
        made = self._preprocess(stage, rows) if stage else rows
        if self._job.model.task in NEXT_TOKEN_TASKS and "labels" not in made and "input_ids" in made:
            made = {**made, "labels": _causal_labels(made)}
        if missing := [name for name in self._job.model.input_names if name not in made]:
            raise JobError(
                f"neither slice nor preprocessor has {missing}, only {sorted(made)}; correct the input-names"
            )
        return {name: _model_format(made[name]) for name in self._job.model.input_names}

    def _preprocess(self, stage: Artifact, rows: Tensors) -> Tensors:
        taken = {name: _preprocessor_format(stage.task, name, rows[name]) for name in stage.input_names}
        options: dict[str, Any] = {"return_tensors": "pt"}
        if stage.task == "tokenizer":
            options |= {"padding": True, "truncation": True}
        elif "text" in stage.input_names:  # a processor of text and images; cutting the text could cut its image tokens
            options["padding"] = True
        try:
            made = self._preprocessor(**taken, **options)
        except Exception as error:
            shapes = {name: f"{rows[name].dtype} {list(rows[name].shape)}" for name in stage.input_names}
            raise JobError(f"the preprocessor failed on {shapes}: {' '.join(str(error).split())[:400]}") from error
        rest = {name: tensor for name, tensor in rows.items() if name not in stage.input_names}
        return {**{name: torch.as_tensor(value) for name, value in made.items()}, **rest}


def _preprocessor_format(task: str, name: str, rows: torch.Tensor) -> Any:
    """Convert a tensor to the preprocessor's input. Text is rows of UTF-8 bytes padded with zeros; audio is arrays."""
    if rows.dtype == torch.uint8 and (task == "tokenizer" or name == "text"):
        return [row.numpy().tobytes().rstrip(b"\0").decode() for row in rows]
    return list(rows.numpy()) if task == "feature" else rows


def _causal_labels(made: Tensors) -> torch.Tensor:
    labels = made["input_ids"].clone()
    if "attention_mask" in made:
        labels[made["attention_mask"] == 0] = -100
    return labels


def _model_format(tensor: torch.Tensor) -> torch.Tensor:
    """Convert to float32 or int64, as models take them; autocast converts further."""
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    return tensor if tensor.dtype == torch.bool else tensor.to(torch.int64)
