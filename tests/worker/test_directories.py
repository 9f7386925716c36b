"""Directories of jobs are removed whatever a job left in them."""

import os
from pathlib import Path

import pytest

from hypha_worker.runtimes.process.directories import remove_tree


def test_a_directory_is_removed_however_deep_it_is_and_without_other_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    job, kept = tmp_path / "job", tmp_path / "kept"
    kept.write_text("kept")
    (job / "sealed" / "inside").mkdir(parents=True)
    (job / "sealed" / "inside" / "file").write_text("")
    (job / "link").symlink_to(kept)
    (job / "link to a directory").symlink_to(tmp_path, target_is_directory=True)
    make_deep(job, 3000)
    for directory in (job / "sealed" / "inside", job / "sealed"):
        directory.chmod(0)
    remove_tree(job)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def make_deep(directory: Path, depth: int) -> None:
    """Make nested directories whose path is longer than a system call takes."""
    inner = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)
