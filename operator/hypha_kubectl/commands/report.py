"""`kubectl hypha report`."""

import io
import os
import tarfile
from pathlib import Path
from typing import Final

from hypha_contracts.text import count
from hypha_kubectl.access.api import Api
from hypha_kubectl.bundle.collect import Bundle
from hypha_kubectl.checks.facts import Cluster
from hypha_kubectl.errors import PluginError

_MODE: Final = 0o600


def report(api: Api, namespace: str | None, path: Path | None) -> None:
    """Write a bundle. ApiError; PluginError if the file cannot be written."""
    bundle = Bundle(Cluster(api, namespace, before=False))
    bundle.collect()
    now = api.now()
    path = path or Path(f"hypha-report-{now:%Y%m%d-%H%M%S}.tar.gz")
    data = _archive(bundle.files, path.name.removesuffix(".gz").removesuffix(".tar"), now.timestamp())
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE), "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise PluginError(f"{path} exists. Choose another file with --output.") from error
    except OSError as error:
        raise PluginError(f"{path}: {error.strerror}. Choose another file with --output.") from error
    print(f"Wrote {path}: {count(len(bundle.files), 'file')}, {len(data) / 1000:.0f} kB. Read it before you share it.")
    for line in bundle.omitted:
        print(f"omitted: {line}")


def _archive(files: dict[str, str], directory: str, time: float) -> bytes:
    """Return a compressed archive with all files in a directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in sorted(files.items()):
            data = text.encode("utf-8", "backslashreplace")
            entry = tarfile.TarInfo(f"{directory}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), _MODE, int(time)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
