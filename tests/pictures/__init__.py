"""The pictures of the documentation."""

from pathlib import Path
from typing import Final

DIRECTORY: Final = Path(__file__).parents[2] / "docs" / "images"
