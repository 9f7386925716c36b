"""A job like `mixed_job`, whose model is a ResNet with variances that begin far from those of the data."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

from hypha_devnet.demo import digits
from hypha_devnet.demo.models import DIGITS, DemoModel
from hypha_devnet.demo.settings import job_config
from support.mixed_job import ROUNDS, MixedJob

_SLICES = 4


class BatchNormJob(MixedJob):
    """The job. Outer learning rate and momentum move a tensor by 1.33 times its first change."""

    MODEL: ClassVar[DemoModel] = DIGITS

    def write_model(self) -> None:
        """Write the untrained model and the slices."""
        torch.manual_seed(0)
        config = ResNetConfig(
            num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
        )
        model = ResNetForImageClassification(config)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(10)
        model.save_pretrained(self.files.untrained)
        train, _ = digits.samples()
        for number in range(_SLICES):
            tensors = {name: tensor.chunk(_SLICES)[number].clone() for name, tensor in train.items()}
            save_file(tensors, self.files.dataset / f"{number}.safetensors")

    def job(self) -> dict[str, Any]:
        """Return the scheduler's job."""
        job = job_config(DIGITS)
        del job["schedule"]
        job["rounds"] |= {"update_rounds": ROUNDS, "avg_samples_between_updates": 1280}
        job["outer_optimizer"] = {"learning-rate": 0.7, "momentum": 0.9}
        return job

    def smallest_variance(self, weights: Path) -> float:
        """Return the smallest variance in a trainer's weights."""
        return min(float(tensor.min()) for name, tensor in load_file(weights).items() if name.endswith("running_var"))

    def accuracy(self, weights: Path) -> float:
        """Return the share of held-out digits that a trainer's weights read right in evaluation."""
        model = AutoModelForImageClassification.from_pretrained(self.files.untrained)
        model.load_state_dict(load_file(weights))
        return digits.score(model.eval(), digits.samples()[1])
