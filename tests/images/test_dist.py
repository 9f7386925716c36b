"""The archives of a release: the same for the same commit, complete, and usable."""

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from chart.rendering import helm
from images.contexts import ROOT


def make_dist(checkout: Path, umask: int) -> dict[str, Path]:
    """Build the archives of a clone of this checkout; return them by name."""
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, checkout], check=True, umask=umask)
    command = [sys.executable, "-m", "images.dist"]
    printed = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True, umask=umask).stdout
    return {Path(line).name: Path(line) for line in printed.splitlines()}


def commit_time_s() -> int:
    """Return the time of the last commit."""
    return int(subprocess.check_output(["git", "-C", ROOT, "log", "-1", "--format=%ct"]))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_dist(tmp_path_factory.mktemp("first") / "checkout", 0o022)


def test_two_builds_of_a_commit_give_the_same_bytes(archives: dict[str, Path], tmp_path: Path) -> None:
    again = make_dist(tmp_path / "elsewhere", 0o077)
    assert archives.keys() == again.keys()
    assert len(archives) == 6
    for name, path in archives.items():
        assert path.read_bytes() == again[name].read_bytes(), name


def test_the_checksums_are_those_of_every_archive(archives: dict[str, Path]) -> None:
    sums = dict(reversed(line.split("  ")) for line in archives["SHA256SUMS"].read_text().splitlines())
    assert sums.keys() == archives.keys() - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256(archives[name].read_bytes()).hexdigest() == digest


def test_entries_have_the_time_of_the_commit_and_the_modes_of_git(archives: dict[str, Path]) -> None:
    for name in (name for name in archives if name.endswith("gz")):
        with tarfile.open(archives[name]) as archive:
            entries = [entry for entry in archive if entry.isfile()]
        assert {entry.mtime for entry in entries} == {commit_time_s()}
        assert {entry.mode for entry in entries} <= {0o644, 0o755}
        assert {(entry.uid, entry.gid) for entry in entries} == {(0, 0)}


def test_the_source_archive_holds_the_tracked_files_and_nothing_else(archives: dict[str, Path]) -> None:
    [name] = (name for name in archives if name.endswith(".tar.gz"))
    with tarfile.open(archives[name]) as archive:
        held = {entry.name.partition("/")[2] for entry in archive if entry.isfile()}
    tracked = subprocess.check_output(["git", "-C", ROOT, "ls-tree", "-r", "-z", "--name-only", "HEAD"], text=True)
    assert held == {*filter(None, tracked.split("\0")), "PKG-INFO"}


def test_helm_renders_the_archived_chart_as_it_renders_the_directory(archives: dict[str, Path]) -> None:
    [name] = (name for name in archives if name.endswith(".tgz"))
    directory = archives[name].parent.parent / "charts/hypha-worker"
    rendered = [helm("helm", "template", "w", str(chart)) for chart in (archives[name], directory)]
    assert rendered[0] == rendered[1]


def test_the_source_archive_gives_the_same_wheel(archives: dict[str, Path], tmp_path: Path) -> None:
    [source] = (path for name, path in archives.items() if name.endswith(".tar.gz"))
    [wheel] = (path for name, path in archives.items() if name.endswith(".whl"))
    subprocess.run(["tar", "-xzf", source, "-C", tmp_path], check=True)
    [root] = tmp_path.iterdir()
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(commit_time_s())}
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=root, env=environment, check=True)
    assert (root / "dist" / wheel.name).read_bytes() == wheel.read_bytes()
