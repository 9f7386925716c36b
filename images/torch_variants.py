"""PyTorch's builds for the trainer's image, by the names of the worker's documentation.

PyPI has one build for Linux, `cuda`. `cpu` is that build without its CUDA libraries (`images/cpu_torch.py`). PyTorch
publishes the others on package indexes of its own, one for each build, whose address the caller of the build passes.
"""

import re
import tomllib
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from images.contexts import ROOT
from images.tool import BuildError

FROM_PYPI: Final = ("cuda", "cpu")
FROM_AN_INDEX: Final = ("mps_cu128", "cu126", "cu129", "rocm64")
VARIANTS: Final = (*FROM_PYPI, *FROM_AN_INDEX)

REQUIREMENTS: Final = "torch.txt"
"""The file of a context with the packages that come from PyTorch's index; empty if none does."""

_REPLACED: Final = re.compile(r"(torch|torchvision|triton)==|nvidia-|cuda-")


def check_variant(variant: str, index: str | None) -> None:
    """Check that a variant exists and has a package index exactly if it needs one.

    Raises:
        BuildError: It does not.
    """
    if variant not in VARIANTS:
        raise BuildError(f"TORCH={variant}: must be one of {', '.join(VARIANTS)}")
    if variant in FROM_AN_INDEX and not index:
        raise BuildError(f"TORCH={variant} needs TORCH_INDEX, the address of PyTorch's package index for this build")
    if index and variant in FROM_PYPI:
        raise BuildError(f"TORCH_INDEX has no use with TORCH={variant}: unset it, or choose {', '.join(FROM_AN_INDEX)}")
    if index and (urlsplit(index).scheme not in {"http", "https"} or "@" in index):
        raise BuildError("TORCH_INDEX must be an http(s) address without credentials, which the image would keep")


def take_from_index(context: Path) -> None:
    """Move PyTorch from the requirements of the trainer's context to the file of packages from PyTorch's index."""
    requirements = context / "requirements.txt"
    entries = re.split(r"^(?=\S)", requirements.read_text(), flags=re.MULTILINE)
    requirements.write_text("".join(entry for entry in entries if not _REPLACED.match(entry)))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [line for line in extras["trainer"] if re.match(r"torch(vision)?\b", line)]
    (context / REQUIREMENTS).write_text("".join(f"{line}\n" for line in wanted))
