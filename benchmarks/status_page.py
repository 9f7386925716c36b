"""The CPU time that an open status page costs a node with 20 jobs and 200 leases.

The page asks for the state every two seconds. This asks as fast as it can, and each answer is made anew. Counted is the
time of the node's thread: it accepts the connection, checks the request, makes the state and sends it. Several viewers
within two seconds share one state; the figure for an answer that is shared shows what each further viewer costs.
"""

import http.client
import statistics
import time
from dataclasses import dataclass

import trio

from benchmarks.busy_node import ROUND_S, BusyNode, open_networks, scheduler_ids
from benchmarks.figures import Figure
from hypha_worker.connector.http_server import serve_plain
from hypha_worker.status.board import INTERVAL_S
from hypha_worker.status.model import STATUS_PATH
from hypha_worker.status.server import page_handler


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        leases: of the node.
        jobs: on some of these.
        rounds: that each job has reported.
        answers: how many to measure.
        pause_s: between two answers, because the node answers 20 a second of one address.
    """

    leases: int
    jobs: int
    rounds: int
    answers: int
    pause_s: float


FULL = Scale(leases=200, jobs=20, rounds=300, answers=200, pause_s=0.06)
SMALL = Scale(leases=4, jobs=1, rounds=3, answers=3, pause_s=0)


def run(scale: Scale) -> list[Figure]:
    """Return the CPU time of an answer, and which part of a core one open page takes."""
    return trio.run(_run, scale)


async def _run(scale: Scale) -> list[Figure]:
    async with open_networks() as (network, _), trio.open_nursery() as nursery:
        node = BusyNode(network, scheduler_ids(4), scale.leases)
        for number in range(scale.leases):
            if number < scale.jobs:
                node.job(number, seconds=scale.rounds * ROUND_S)
            else:
                node.lease(number)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(serve_plain, [listener], page_handler([], node.board.json))
        anew, size_bytes = await _cpu_ms(scale, port, node, INTERVAL_S)
        shared, _ = await _cpu_ms(scale, port, node, 0.0)
        nursery.cancel_scope.cancel()
    return [
        Figure("size of an answer", size_bytes / 1000, "kB"),
        Figure("an answer that is made anew, median", anew, "ms of CPU"),
        Figure("an answer that is shared, median", shared, "ms of CPU"),
        Figure("one open page, of a core", anew / INTERVAL_S / 10, "%", at_most=1),
    ]


async def _cpu_ms(scale: Scale, port: int, node: BusyNode, later_s: float) -> tuple[float, int]:
    """Return the median CPU time of an answer in ms, and its size. The clock goes on by `later_s` before each."""
    times_ms, size_bytes = [], 0
    for _ in range(scale.answers):
        await trio.sleep(scale.pause_s)
        node.past.offset_s += later_s
        began = time.thread_time()
        size_bytes = await trio.to_thread.run_sync(_ask, port)
        times_ms.append(1000 * (time.thread_time() - began))
    return statistics.median(times_ms), size_bytes


def _ask(port: int) -> int:
    """Ask as the page does; return the size of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", STATUS_PATH, headers={"Sec-Fetch-Site": "same-origin"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != http.client.OK:
        raise OSError(f"the page answered {answer.status}: {body.decode()}")
    return len(body)
