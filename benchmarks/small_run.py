"""A small run of a benchmark in a process of its own, for tests."""

import os
import signal
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_CLEAN_UP_S = 60


class SmallRunError(Exception):
    """A small run failed or took too long; the message holds its output."""


def run_small(name: str, timeout_s: float) -> str:
    """Run `python -m benchmarks --small NAME` without the Rust nodes and return what it prints.

    A run that takes too long is interrupted and not killed, so that it ends the processes that it started. The same
    happens if the caller is interrupted.

    Raises:
        SmallRunError: If the benchmark fails or does not end in time.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", "--small", name],
        cwd=_ROOT,
        env={key: value for key, value in os.environ.items() if key != "HYPHA_BIN"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that an interrupt from the terminal reaches it only once, from this process
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        output, errors = _interrupt(process)
        raise SmallRunError(f"{name} did not end within {timeout_s:g} s:\n{output}{errors}") from error
    except BaseException:
        _interrupt(process)
        raise
    if process.returncode:
        raise SmallRunError(f"{name} ended with status {process.returncode}:\n{output}{errors}")
    return output


def _interrupt(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=_CLEAN_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()
