"""The executor of every measured worker. It uses the reference form of the bridge's API, and measures times.

`executor.py fetch REPORT NUMBER [DIRECTORY]` fetches NUMBER slices. With DIRECTORY it fetches slice N only once the
file N is there, and then removes that file. `executor.py outer-steps REPORT NUMBER DIRECTORY` takes part in NUMBER
outer steps together with the other executors that use DIRECTORY, and `executor.py rounds REPORT NUMBER DIRECTORY`
fetches a slice before each. All write seconds to REPORT as JSON. `executor.py exchange REPORT NUMBER DIRECTORY` writes
the digests of what it fetched, sent and received instead. It needs only the standard library.
"""

import hashlib
import http.client
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TENSORS = 16
TOGETHER = 2


class BridgeConnection(http.client.HTTPConnection):
    def __init__(self) -> None:
        super().__init__("bridge")

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["SOCKET_PATH"])


class BridgeRefusal(Exception):  # noqa: N818 - not always an error
    pass


def post(path: str, body: Any) -> http.client.HTTPResponse:
    connection = BridgeConnection()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise BridgeRefusal(f"{path}: {response.status} {response.read()!r}")
    return response


def arrivals(resource: Any) -> Iterator[Path]:
    """Yield the files that peers push, as they arrive."""
    for line in post("/resources/receive", {"resource": resource, "path": "incoming"}):
        if line.startswith(b"data:"):
            yield Path(os.environ["WORK_DIR"], json.loads(line[5:])["path"])


def fetch(config: Any, number: int, turns: Path | None = None) -> Iterator[float]:
    """Yield the seconds from each request for a slice to the bridge's answer."""
    for i in range(number):
        while turns and not (turns / str(i)).exists():
            time.sleep(0.01)
        started = time.monotonic()
        (file,) = json.load(post("/resources/fetch", config["data"]))
        yield time.monotonic() - started
        Path(os.environ["WORK_DIR"], file["path"]).unlink()
        if turns:
            (turns / str(i)).unlink()


def rounds(config: Any, number: int, directory: Path) -> Iterator[tuple[float, float]]:
    """Do as `outer_steps` does, but fetch a slice before each step."""
    return outer_steps(config, number, directory, before=lambda: retried("/resources/fetch", config["data"]))


def exchange(config: Any, number: int, directory: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the digests of a slice, of what was sent to the peers, and of what they sent."""
    work_dir = Path(os.environ["WORK_DIR"])
    make_gradient(work_dir / "gradient", int((directory / "size").read_text()))
    updates = arrivals(config["results"])
    for step in range(number):
        (slice_,) = json.load(post("/resources/fetch", config["data"]))
        meet(directory / str(step))
        send(config["updates"])
        yield digest(work_dir / slice_["path"]), digest(work_dir / "gradient"), digest(next(updates))


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def outer_steps(
    config: Any, number: int, directory: Path, before: Callable[[], object] = lambda: None
) -> Iterator[tuple[float, float]]:
    """Yield when the pseudo-gradient was sent and when the update arrived, by the clock common to all processes."""
    make_gradient(Path(os.environ["WORK_DIR"], "gradient"), int((directory / "size").read_text()))
    updates = arrivals(config["results"])
    for step in range(number):
        before()
        meet(directory / str(step))
        started = send(config["updates"])
        update = next(updates)
        yield started, time.monotonic()
        update.unlink()


def send(resource: Any) -> float:
    """Send the pseudo-gradient; return when that began."""
    return retried("/resources/send", {"resource": resource, "path": "gradient"})


def retried(path: str, body: Any) -> float:
    """Call the bridge until it does not refuse; return when that began. Rust's refuses until it can reach the peer."""
    while True:
        started = time.monotonic()
        try:
            post(path, body)
        except BridgeRefusal as error:
            print(error, flush=True)
            time.sleep(0.2)
        else:
            return started


def meet(directory: Path) -> None:
    """Wait until the other executors have finished, too."""
    directory.mkdir(exist_ok=True)
    (directory / str(os.getpid())).touch()
    while len(list(directory.iterdir())) < TOGETHER:
        time.sleep(0.01)
    time.sleep(1)


def make_gradient(path: Path, size_bytes: int) -> None:
    """Write a file with tensors of small, different numbers."""
    each = size_bytes // TENSORS // 4 * 4
    header = json.dumps(
        {
            f"layer.{i}": {"dtype": "F32", "shape": [each // 4], "data_offsets": [i * each, (i + 1) * each]}
            for i in range(TENSORS)
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    tensor = struct.pack("<1024f", *(i / 1e6 for i in range(1024))) * (each // 4096 + 1)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for _ in range(TENSORS):
            file.write(memoryview(tensor)[:each])


def main() -> None:
    work, report, number, *directory = sys.argv[1:]
    config = json.loads(os.environ["JOB_JSON"])["executor"]["config"]
    work_of: Callable[..., Iterator[Any]] = {
        "fetch": fetch,
        "outer-steps": outer_steps,
        "rounds": rounds,
        "exchange": exchange,
    }[work]
    results, partial = [], Path(f"{report}.part")
    for result in work_of(config, int(number), *map(Path, directory)):
        results.append(result)
        partial.write_text(json.dumps(results))
    partial.rename(report)


if __name__ == "__main__":
    main()
