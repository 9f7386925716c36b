"""The parameter server's round at full size, against merely reading and writing the same bytes once.

`python -m benchmarks.parameter_server [--gigabytes 1] [--workers 4] [--dtype F32] [--dir DIR]`
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hypha_parameter_server.arithmetic import Nesterov, Source, check, outer_step
from hypha_parameter_server.safetensors import DTYPES, lay_out, open_header

_BLOCK = 1 << 20
_TENSORS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--dtype", choices=["F32", "F16", "BF16", "F64"], default="F32")
    parser.add_argument("--dir", type=Path, help="where the files are made (the default temporary directory)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        print(json.dumps(measure(Path(name), options.gigabytes, options.workers, options.dtype), indent=2))


def measure(directory: Path, gigabytes: float, workers: int, dtype: str) -> dict[str, object]:
    """Times in seconds, memory in MiB. Files are made just before, as they are when peers have just pushed them."""
    files = [directory / f"worker-{number}" for number in range(workers)]
    for number, path in enumerate(files):
        make(path, int(gigabytes * 1e9), dtype, number)
    copying_s, _ = timed(lambda: copy_once(files, directory / "copy"))
    (directory / "copy").unlink()
    checking_s, _ = timed(lambda: run_check(files))
    first_s, memory_mib = timed(lambda: run_step(files, directory, first=True))
    second_s, memory_second_mib = timed(lambda: run_step(files, directory, first=False))
    return {
        "workers": workers,
        "gigabytes_each": gigabytes,
        "dtype": dtype,
        "read_and_write_once_s": round(copying_s, 2),
        "check_s": round(checking_s, 2),
        "first_step_s": round(first_s, 2),
        "later_step_s": round(second_s, 2),
        "speed_against_reading_and_writing": round(copying_s / (checking_s + second_s), 2),
        "memory_mib": {"first_step": memory_mib, "later_step": memory_second_mib},
    }


def make(path: Path, size_bytes: int, dtype: str, seed: int) -> None:
    """A pseudo-gradient of equal tensors of random numbers."""
    count = size_bytes // DTYPES[dtype].itemsize // _TENSORS
    head, _ = lay_out([(f"layer.{number}.weight", dtype, (count,)) for number in range(_TENSORS)], {})
    values = np.random.default_rng(seed).standard_normal(count, dtype=np.float32).astype(DTYPES[dtype])
    with path.open("wb") as file:
        file.write(head)
        for _ in range(_TENSORS):
            file.write(values.view(np.uint8).data)


def copy_once(files: list[Path], target: Path) -> None:
    """Reads every byte once and writes every byte once, by one thread in large blocks."""
    buffer = bytearray(_BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as source, target.open("wb", buffering=0) as sink:
            while count := source.readinto(buffer):
                sink.write(memoryview(buffer)[:count])


def run_check(files: list[Path]) -> None:
    """What is done as each file arrives, while others are still on their way."""
    for path in files:
        descriptor, header = open_header(path)
        check(descriptor, header)
        os.close(descriptor)


def run_step(files: list[Path], directory: Path, *, first: bool) -> None:
    """The outer step of a round."""
    sources = []
    for path in files:
        descriptor, header = open_header(path)
        os.close(descriptor)
        sources.append(Source(path, header, 1 / len(files)))
    momentum = None
    if not first:
        descriptor, header = open_header(directory / "momentum")
        os.close(descriptor)
        momentum = (directory / "momentum", header)
    outer_step(sources, Nesterov(0.7, 0.9), momentum, (directory / "momentum.new", {}), (directory / "update", {}))
    (directory / "momentum.new").rename(directory / "momentum")


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and how much the resident memory (mapped files included) of a process of its own grew, in MiB."""
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


if __name__ == "__main__":
    main()
