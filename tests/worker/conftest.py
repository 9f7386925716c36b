"""Fixtures of the worker's tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypha_worker.runtimes import processes


@pytest.fixture
def work_dir() -> Iterator[Path]:
    """A work directory short enough for sockets' names, which pytest's own are not; nothing runs in it afterwards."""
    path = Path(tempfile.mkdtemp(prefix="hypha-test-"))
    yield path
    while left := processes.strays(str(path)):
        processes.kill(left)
    shutil.rmtree(path)
