"""Private files that are replaced atomically."""

import os
from pathlib import Path


def replace_file(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a private file. A reader finds the complete old or new text. `durable` text survives a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
