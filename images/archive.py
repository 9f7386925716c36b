"""Read the files of an image from the archive that the build saves."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast


def files(archive: Path) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield each file of an image and the layer that holds it. Later layers of our images only add files."""
    with tarfile.open(archive) as image:
        manifest = json.load(_content(image, "manifest.json"))
        for name in manifest[0]["Layers"]:
            with tarfile.open(fileobj=_content(image, name)) as layer:
                for file in layer:
                    yield file, layer


def read(archive: Path, *paths: str) -> list[str]:
    """Return the texts of files of an image; an empty text for a file that it lacks."""
    found = {file.name: _content(layer, file).read() for file, layer in files(archive) if file.name in paths}
    return [found.get(path, b"").decode() for path in paths]


def _content(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> IO[bytes]:
    return cast("IO[bytes]", archive.extractfile(member))
