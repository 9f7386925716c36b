"""scikit-learn's handwritten digits as slices, and the configuration of the model that learns to read them.

It needs no torch. A model of which the hub has no weights begins with the same random ones in all trainers.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from hypha_devnet.demo.models import DIGITS
from hypha_devnet.demo.settings import Files

Arrays = dict[str, np.ndarray[Any, Any]]

NETWORK: Final[dict[str, Any]] = {
    "num_channels": 1,
    "image_size": 8,
    "patch_size": 2,
    "num_stages": 2,
    "hidden_sizes": [48, 96],
    "depths": [1, 2],
    "drop_path_rate": 0.0,
    "layer_scale_init_value": 1.0,
}
"""The shape of the ConvNext."""
LABELS: Final = 10


def samples() -> tuple[Arrays, Arrays]:
    """Return the images (n, 1, 8, 8) from -1 to 1 and their digits: the shuffled training set, and the held-out one."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=DIGITS.held_out, stratify=labels, random_state=DIGITS.seed)
    train_images, held_images, train_labels, held_labels = parts
    return _inputs(train_images, train_labels), _inputs(held_images, held_labels)


def _inputs(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> Arrays:
    pixels = (images / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    return {"pixel_values": pixels, "labels": labels.astype(np.int64)}


def write(directory: Path) -> None:
    """Write the slices and, for a hub, the model's configuration, where the demo has them."""
    files = Files(directory)
    train, held_out = samples()
    for rows, target in ((train, files.dataset), (held_out, files.held_out)):
        target.mkdir(parents=True, exist_ok=True)
        parts = {name: np.array_split(array, DIGITS.slices) for name, array in rows.items()}
        for number in range(DIGITS.slices):
            part = {name: np.ascontiguousarray(arrays[number]) for name, arrays in parts.items()}
            save_file(part, target / f"slice-{number:04}.safetensors")
    labels = {str(label): str(label) for label in range(LABELS)}
    config = {
        "architectures": ["ConvNextForImageClassification"],
        "model_type": "convnext",
        "id2label": labels,
        "label2id": {label: int(label) for label in labels},
        **NETWORK,
    }
    files.untrained.mkdir(parents=True, exist_ok=True)
    (files.untrained / "config.json").write_text(json.dumps(config))
