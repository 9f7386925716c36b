"""The demo's last step: an inference job over the network predicts the held-out samples with the trained model.

The trained model gets to the workers as a user's would: it is published on the model hub.
"""

import shutil
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from safetensors.numpy import load_file

from hypha_devnet.demo.settings import TRAINERS, Files, job_config

Array = np.ndarray[Any, Any]


def trained_repository(files: Files) -> str:
    """Return the repository of the trained model in the hub."""
    return f"{files.model.repository}-trained"


def publish(files: Files) -> None:
    """Copy the model that the first trainer has kept into the hub."""
    (trained,) = files.trained(TRAINERS[0]).iterdir()
    shutil.copytree(trained, files.hub / trained_repository(files))


def inference_job(files: Files, repository: str, needed: Mapping[str, float]) -> dict[str, Any]:
    """Return the job that a scheduler runs. Each worker needs these resources, in cores and GB."""
    training = job_config(files.model)
    inputs = [name for name in training["model"]["input_names"] if name != "labels"]
    return {
        **{key: training[key] for key in ("model", "preprocessor") if key in training},
        "type": "inference",
        "dataset": {"dataset": files.held_out.name},
        "model": training["model"] | {"repository": repository, "input_names": inputs},
        "outputs": ["logits"],
        "results": {"directory": str(files.predictions)},
        "resources": {"num_workers": len(TRAINERS), "worker": dict(needed)},
    }


def share_right(logits: Array, labels: Array) -> float:
    """Return the share of the samples whose greatest logit is that of their label."""
    return float((logits.argmax(axis=1) == labels).mean())


def next_token_loss(logits: Array, tokens: Array) -> float:
    """Return the mean loss for each token but the first of a sample, in nats."""
    shifted = logits[:, :-1] - logits[:, :-1].max(axis=2, keepdims=True)
    chosen = np.take_along_axis(shifted, tokens[:, 1:, None], axis=2)[:, :, 0]
    return float((np.log(np.exp(shifted).sum(axis=2)) - chosen).mean())


_SCORES: Final[Mapping[str, Callable[[Array, Array], float]]] = {
    "image-classification": share_right,
    "causal-lm": next_token_loss,
}


def score_predictions(files: Files) -> float:
    """Return the score of the predictions. A slice is joined with its predictions by its index."""
    total, samples = 0.0, 0
    for index, path in enumerate(sorted(files.held_out.iterdir())):  # as the data node numbers them
        labels = load_file(path)["labels"]
        logits = load_file(files.predictions / f"{index}.safetensors")["logits"]
        total += _SCORES[files.model.type](logits, labels) * len(labels)
        samples += len(labels)
    return total / samples
