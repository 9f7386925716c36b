"""Private files that are replaced atomically."""

import os
from pathlib import Path


def replace_file(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a private file so that a reader finds the old or the new text, complete.

    Args:
        path: The file.
        text: What it shall hold.
        durable: Whether the new text must survive a power cut.
    """
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
