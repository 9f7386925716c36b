"""`python -m images.dist [DIRECTORY]`: build what a release consists of into dist/, or into another directory.

These are the wheel, the pinned requirements of its node and of kubectl hypha, the source archive, the chart's archive,
and their SHA256SUMS. The same files in git give the same bytes. Only files that git tracks are in the archives. Their
time is that of the last commit.
"""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from images.contexts import ROOT

CHART: Final = Path("charts/hypha-worker")
VALUES: Final = CHART / "values.yaml"
REQUIREMENTS: Final = "requirements-node.txt"
KUBECTL_REQUIREMENTS: Final = "requirements-kubectl.txt"


def build(root: Path, directory: Path, values: str | None = None) -> list[Path]:
    """Build the archives of a git checkout into a directory, which is emptied before; return their paths.

    `values` replace the text of the chart's values.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    tracked = [Path(name) for name in _git(root, "ls-files", "-z").split("\0") if name]
    epoch_s = int(_git(root, "log", "-1", "--format=%ct"))
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "hypha-worker"
        for path in tracked:
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, copy / path)
        os.environ["SOURCE_DATE_EPOCH"] = str(epoch_s)  # hatchling reads it
        built = [
            Path(next(iter(builder(str(copy)).build(directory=str(directory), versions=["standard"]))))
            for builder in (WheelBuilder, SdistBuilder)
        ]
    built.append(_build_chart(root, tracked, directory, epoch_s, values))
    for name in (REQUIREMENTS, KUBECTL_REQUIREMENTS):
        source = root / "requirements" / name.removeprefix("requirements-")
        built.append(Path(shutil.copyfile(source, directory / name)))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(built)]
    (directory / "SHA256SUMS").write_text("".join(sums))
    return [*built, directory / "SHA256SUMS"]


def _build_chart(root: Path, tracked: Iterable[Path], directory: Path, epoch_s: int, values: str | None) -> Path:
    """Archive the chart as `helm package` does, but with fixed times, modes, owners and order."""
    chart = yaml.safe_load((root / CHART / "Chart.yaml").read_text())
    archive = directory / f"{chart['name']}-{chart['version']}.tgz"
    with (
        archive.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=epoch_s) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(path for path in tracked if path.is_relative_to(CHART)):
            replaced = values if path == VALUES else None
            content = (root / path).read_bytes() if replaced is None else replaced.encode()
            entry = tarfile.TarInfo(f"{chart['name']}/{path.relative_to(CHART)}")
            entry.size, entry.mtime, entry.mode = len(content), epoch_s, 0o644
            tar.addfile(entry, io.BytesIO(content))
    return archive


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", root, *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def main(arguments: Sequence[str]) -> int:
    """Build the archives and print their paths; return the exit code."""
    try:
        built = build(ROOT, Path(arguments[0]) if arguments else ROOT / "dist")
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"error: {error}. Build from a complete git checkout.", file=sys.stderr)
        return 1
    print(*built, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
