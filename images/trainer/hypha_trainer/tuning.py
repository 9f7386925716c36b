"""How a batch is trained, as the accelerate configuration says: in parts, clipped, with recomputed activations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypha_executor.errors import JobError


@dataclass(frozen=True)
class Tuning:
    """What the accelerate configuration asks for.

    Attributes:
        parts: The number of parts of a batch that are trained one after the other, to save memory.
        max_gradient_norm: To which norm the gradient of a batch is clipped; None to leave it.
        recompute_activations: Whether the backward pass computes activations again, to save memory.
    """

    parts: int = 1
    max_gradient_norm: float | None = None
    recompute_activations: bool = False


def read_tuning(environ: Mapping[str, str]) -> Tuning:
    """Return the tuning that the launcher's variables state.

    Raises:
        JobError: A variable is not a number in its range.
    """
    parts = _number(environ, "gradient_accumulation_steps", 1.0)
    if not parts >= 1 or parts != int(parts):
        raise JobError(f"gradient_accumulation_steps is {parts:g}; it must be a whole number of at least 1")
    norm = _number(environ, "gradient_clipping", math.inf)
    if not norm > 0:
        raise JobError(f"gradient_clipping is {norm:g}; it must be more than 0")
    recompute = environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false") == "true"
    return Tuning(int(parts), norm if math.isfinite(norm) else None, recompute)


def _number(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(f"ACCELERATE_{name.upper()}")
    try:
        return default if text is None else float(text)
    except ValueError:
        raise JobError(f"{name} is {text!r} in the accelerate configuration; it must be a number") from None


def recompute_activations(model: Any) -> None:
    """Let the backward pass of a model of transformers compute activations again.

    Raises:
        JobError: The model cannot do that.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise JobError(
            f"{type(model).__name__} cannot recompute its activations; "
            "set fsdp_activation_checkpointing: false in the accelerate configuration"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
