"""Run a program as in a terminal, and draw what it printed."""

import io
import os
import re
import subprocess
from pathlib import Path
from typing import Final

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from e2e.kube import KubeError
from e2e.settings import OUTPUT, ROOT

PICTURES: Final = OUTPUT / "pictures"
_COLUMNS: Final = 112
_TIMEOUT_S: Final = 120.0
# The fonts that rich names would be fetched from another site.
_FRAME: Final = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace"
)


def run(*command: str) -> str:
    """Return what a program prints to a terminal of 112 columns, with colours. KubeError if it fails."""
    environment = os.environ | {"PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    environment |= {"FORCE_COLOR": "1", "COLUMNS": str(_COLUMNS), "TERM": "xterm-256color"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, env=environment, check=False)
    if done.returncode:
        raise KubeError(done.returncode, f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.stdout


def draw(path: Path, title: str, printed: str) -> None:
    """Write a picture of what a program printed, an SVG file."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(printed.rstrip()))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(console.export_svg(title=title, code_format=_FRAME, unique_id=path.stem))
