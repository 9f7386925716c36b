"""Fixtures of the worker's tests."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypha_worker.runtimes.process import control, supervised, supervisor
from support import jobs
from support.certs import Pki
from support.set_clock import SetClock


@pytest.fixture
def work_dir() -> Iterator[Path]:
    """A work directory short enough for sockets' names, which pytest's own are not; no job in it outlives the test."""
    path = Path(tempfile.mkdtemp(prefix="hypha-test-"))
    yield path
    directories = control.ControlDirectories(jobs.config(path, ""))
    for job in filter(Path.is_dir, (path / "jobs").iterdir()):
        while supervised.is_locked(job / supervisor.LOCK_FILE):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((job / supervisor.PID_FILE).read_text()), signal.SIGKILL)
        directories.remove(directories.paths(job.name))
    shutil.rmtree(path)


@pytest.fixture
def clock() -> SetClock:
    """A clock that the test sets."""
    return SetClock()


@pytest.fixture(scope="module")
def pki() -> Pki:
    """The authority of a network."""
    return Pki()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
