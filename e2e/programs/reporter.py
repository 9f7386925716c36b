"""Run in a job: report progress `args[0]` times with pauses of `args[1]` seconds.

Meanwhile, receive the SafeTensors files that peer `args[2]` sends, if there is one, and read their headers as a trainer
does. Prints how long all of it took in seconds, the slowest report, and what is wrong with each file.
"""

import http.client
import json
import os
import pathlib
import socket
import threading
import time

from hypha_executor.errors import MalformedFileError
from hypha_executor.safetensors import read_header

problems = []


class Bridge(http.client.HTTPConnection):
    """A connection to the job's bridge."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.environ["SOCKET_PATH"])


def post(path, body):
    """Return the bridge's answer to a request."""
    bridge = Bridge("bridge", timeout=120)
    bridge.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = bridge.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {answer.read()}")
    return answer


def listen(peer):
    reference = {"type": "Peers", "peers": [peer], "strategy": "All"}
    for line in post("/resources/receive", {"receive": reference, "out_dir": "incoming"}):
        if line.startswith(b"data:"):
            problems.append(problem(os.path.join(os.environ["WORK_DIR"], json.loads(line[5:])["path"])))


def problem(path):
    try:
        read_header(pathlib.Path(path))
    except MalformedFileError as error:
        return str(error)


if len(args) > 2:
    threading.Thread(target=listen, args=[args[2]], daemon=True).start()
slowest, began = 0.0, time.monotonic()
for _ in range(int(args[0])):
    asked = time.monotonic()
    json.load(post("/status/send", {"status": {"batch_size": 1}}))
    slowest = max(slowest, time.monotonic() - asked)
    time.sleep(float(args[1]))
print(json.dumps({"seconds": time.monotonic() - began, "slowest": slowest, "problems": problems}), flush=True)
