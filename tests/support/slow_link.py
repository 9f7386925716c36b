"""A link between two network namespaces: `NAMESPACE NAMESPACE RATE_BYTES_PER_S DELAY_S LOSS QUEUE_BYTES`.

It makes a TUN device `path` in each, and carries packets from one to the other: each waits for its turn at the rate,
and then for the delay. A packet that finds the queue full is dropped, and one of 1 / LOSS packets at random. It writes
a line once both devices are there, and runs until it is killed.
"""

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Final

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 0x1001
"""A TUN device whose packets have no header of their own."""
_MAX_PACKET_BYTES: Final = 2048
_READS_AT_ONCE: Final = 64


class Direction:
    """The packets on their way from one device to the other."""

    def __init__(self, source: int, target: int, rate_bytes_per_s: float, delay_s: float, queue_bytes: int) -> None:
        self.source, self._target = source, target
        self._rate_bytes_per_s, self._delay_s = rate_bytes_per_s, delay_s
        self._queue_s = queue_bytes / rate_bytes_per_s
        self._sent_s = 0.0
        """When the last packet is through the queue."""
        self._under_way: deque[tuple[float, bytes]] = deque()

    def take(self, loss: float) -> None:
        """Read the packets that wait in the device."""
        for _ in range(_READS_AT_ONCE):
            try:
                packet = os.read(self.source, _MAX_PACKET_BYTES)
            except BlockingIOError:
                return
            now_s = time.monotonic()
            begins_s = max(now_s, self._sent_s)
            if random.random() >= loss and begins_s - now_s < self._queue_s:
                self._sent_s = begins_s + len(packet) / self._rate_bytes_per_s
                self._under_way.append((self._sent_s + self._delay_s, packet))

    def deliver(self) -> float:
        """Write the packets that are due; return the seconds until the next one is."""
        while self._under_way:
            left_s = self._under_way[0][0] - time.monotonic()
            if left_s > 0:
                return left_s
            packet = self._under_way.popleft()[1]
            with suppress(OSError):  # from a device that is not up yet, or no longer
                os.write(self._target, packet)
        return 1.0


def open_device(namespace: str) -> int:
    """Make a TUN device `path` in a namespace; return its descriptor."""
    from support.nat_lab import Place, inside  # noqa: PLC0415 - that module starts this program

    with inside(Place(namespace, "")):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", b"path", _IFF_TUN))
    return descriptor


def main(one: str, other: str, rate: str, delay: str, loss: str, queue: str) -> None:
    devices = [open_device(one), open_device(other)]
    settings = (float(rate), float(delay), int(queue))
    directions = [Direction(*devices, *settings), Direction(*reversed(devices), *settings)]
    print("{}", flush=True)
    ready = select.poll()
    for device in devices:
        ready.register(device, select.POLLIN)
    wait_s = 1.0
    while True:
        ready.poll(wait_s * 1000)
        for direction in directions:
            direction.take(float(loss))
        wait_s = min(direction.deliver() for direction in directions)


if __name__ == "__main__":
    random.seed(1)
    main(*sys.argv[1:])
