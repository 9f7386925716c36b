"""The parameter server's round at full size, compared with reading and writing the same bytes once."""

import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from hypha_executor.safetensors import lay_out, open_header, read_header
from hypha_parameter_server.arithmetic import DTYPES, Nesterov, PerKind, Source, check, outer_step

WORKERS = 4
_BLOCK = 1 << 20
_TENSORS = 64


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        file_bytes: Size of each worker's file.
    """

    file_bytes: float


FULL = Scale(file_bytes=1e9)
SMALL = Scale(file_bytes=1e6)


def run(scale: Scale) -> list[Figure]:
    """Measure a round with momentum in which every worker's file is checked, as in all rounds but the first."""
    figures = []
    for dtype in ("F32", "F16", "BF16"):
        with tempfile.TemporaryDirectory() as name:
            figures += measure(Path(name), scale.file_bytes, WORKERS, dtype)
    return figures


def measure(directory: Path, size_bytes: float, workers: int, dtype: str) -> list[Figure]:
    """Measure with files that were just written, as if peers had just pushed them."""
    files = [directory / f"worker-{number}" for number in range(workers)]
    for number, path in enumerate(files):
        make(path, int(size_bytes), dtype, number)
    copying_s, _ = timed(lambda: copy_once(files, directory / "copy"))
    (directory / "copy").unlink()
    checking_s, _ = timed(lambda: run_check(files))
    timed(lambda: run_step(files, directory, first=True))
    step_s, memory_mib = timed(lambda: run_step(files, directory, first=False))
    _, memory_of_two_mib = timed(lambda: run_step(files[:2], directory, first=False))
    return [
        Figure(f"{dtype}: reading and writing {workers} x {size_bytes / 1e9:g} GB once", copying_s, "s"),
        Figure(f"{dtype}: checking the files, as they arrive", checking_s, "s"),
        Figure(f"{dtype}: outer step", step_s, "s"),
        Figure(f"{dtype}: speed against reading and writing", copying_s / (checking_s + step_s), "x", at_least=0.5),
        Figure(f"{dtype}: memory, {workers} workers", memory_mib, "MiB"),
        Figure(f"{dtype}: memory, 2 workers", memory_of_two_mib, "MiB"),
    ]


def make(path: Path, size_bytes: int, dtype: str, seed: int) -> None:
    """Write a pseudo-gradient of equal tensors of random numbers."""
    count = size_bytes // DTYPES[dtype].itemsize // _TENSORS
    head, _ = lay_out([(f"layer.{number}.weight", dtype, (count,)) for number in range(_TENSORS)], {})
    values = np.random.default_rng(seed).standard_normal(count, dtype=np.float32).astype(DTYPES[dtype])
    with path.open("wb") as file:
        file.write(head)
        for _ in range(_TENSORS):
            file.write(values.view(np.uint8).data)


def copy_once(files: list[Path], target: Path) -> None:
    """Read every byte once and write every byte once, in one thread and large blocks."""
    buffer = bytearray(_BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as source, target.open("wb", buffering=0) as sink:
            while count := source.readinto(buffer):
                sink.write(memoryview(buffer)[:count])


def run_check(files: list[Path]) -> None:
    """Check files as the parameter server does on arrival."""
    for path in files:
        descriptor, header = open_header(path)
        check(descriptor, header)
        os.close(descriptor)


def run_step(files: list[Path], directory: Path, *, first: bool) -> None:
    """Run the outer step of a round."""
    sources = [Source(path, read_header(path), PerKind(*[1 / len(files)] * 3)) for path in files]
    momentum = None if first else (directory / "momentum", read_header(directory / "momentum"))
    outer_step(sources, Nesterov(0.7, 0.9), momentum, (directory / "momentum.new", {}), (directory / "update", {}))
    (directory / "momentum.new").rename(directory / "momentum")


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Run in a new process; return its seconds, and the growth of its resident memory (and mapped files) in MiB."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_timed, args=(work, sender))
    process.start()
    result: tuple[float, float] = receiver.recv()
    process.join()
    return result


def _timed(work: Callable[[], None], sender: "multiprocessing.connection.Connection") -> None:
    peak = start = _resident_bytes()
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, _resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    work()
    taken_s = time.perf_counter() - began
    over.set()
    watcher.join()
    sender.send((taken_s, round((peak - start) / 2**20, 1)))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
