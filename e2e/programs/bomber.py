"""Run in a job: send the same file twice to peer `args[0]`, and wait for `args[1]` seconds.

It is a complete SafeTensors file without any data, whose header of 92 MiB describes many tensors.
"""

import http.client
import json
import os
import socket
import time

TENSORS = 95_000
NAME = "x" * 950


class Bridge(http.client.HTTPConnection):
    """A connection to the job's bridge."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["SOCKET_PATH"])


with open(os.path.join(os.environ["WORK_DIR"], "bomb.safetensors"), "wb") as file:
    file.write(bytes(8))
    for number in range(TENSORS):
        tensor = f'"{NAME}{number:06}":' + '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
        file.write((("," if number else "{") + tensor).encode())
    file.write(b"}")
    size = file.tell() - 8
    file.seek(0)
    file.write(size.to_bytes(8, "little"))
reference = {"type": "Peers", "peers": [args[0]], "strategy": "All"}
for _ in range(2):
    bridge = Bridge("bridge", timeout=120)
    body = json.dumps({"send": reference, "path": "bomb.safetensors"})
    bridge.request("POST", "/resources/send", body, {"Content-Type": "application/json"})
    print("sent:", bridge.getresponse().status, flush=True)
time.sleep(float(args[1]))
