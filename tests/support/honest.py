"""Honest peers of a node under attack: they ask, run jobs and join, and measure how long it takes."""

import gc
import math
import random
import time
from collections.abc import Sequence
from functools import partial
from uuid import UUID, uuid4

import trio

from hypha_messages.health import HEALTH, HealthRequest
from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from hypha_messages.streams import PUSH
from hypha_messages.types import Resources
from hypha_network.errors import NetworkError
from hypha_network.wire.streams import Stream
from support.answers import Answers
from support.attacks.catalogue import Role
from support.jobs import train_spec
from support.networks import node
from support.node_process import Scheduler, wanted
from support.siege import ECHO, Sample, Siege, sample
from support.siege_report import Bounds, Report

SMALL = Resources(cpu=1, memory=1, storage=1)
PUSH_BYTES = 300_000
TRAIN_S = 0.2
"""How long the job computes for each push, without using a core, as on a GPU."""
ASK_EVERY_S = 0.25
ANSWER_S = 10.0
JOB_S = 60.0
TRACEBACK_CHARS = 4000
FAILED = math.inf


class Honest:
    """The honest scheduler, the peer that exchanges data with its job, and the schedulers that join."""

    def __init__(self, scene: Siege) -> None:
        self.scene = scene
        self.answers = Answers()
        self.problems: list[str] = []
        """What went wrong without an answer being late: refused leases and jobs that failed."""
        self._echoes_in, self._echoes = trio.open_memory_channel[bytes](8)
        self.undisturbed_s: list[float] = []
        self._joined = trio.Event()
        scene.echo.handle_stream(PUSH, self._take_echo)
        scene.scheduler.network.handle(PROGRESS, self._progress)

    async def _take_echo(self, _: str, stream: Stream) -> None:
        await self._echoes_in.send(await stream.read_to_end(1 << 24))

    async def _progress(self, _: str, __: ReportProgress) -> ProgressResponse:
        return ProgressResponse(type="Ok")

    async def ask(self) -> None:
        """Request a worker and take the offer, again and again."""
        scheduler = self.scene.asker
        while True:
            started = time.perf_counter()
            offers = await scheduler.collect(wanted(SMALL), lambda offers: offers[:1], within_s=ANSWER_S)
            offered = time.perf_counter()
            self.answers.seconds["offer"].append(offered - started if offers else FAILED)
            if offers:
                taken = await scheduler.take(offers[0], "trainer") is not None
                self.answers.seconds["first renewal"].append(time.perf_counter() - offered if taken else FAILED)
            await trio.sleep(ASK_EVERY_S)

    async def ask_health(self) -> None:
        """Ask whether the node is healthy, again and again."""
        while True:
            started = time.perf_counter()
            try:
                answer = await self.scene.asker.network.request(
                    self.scene.worker, HEALTH, HealthRequest(), timeout_s=ANSWER_S
                )
                self.answers.seconds["health"].append(time.perf_counter() - started if answer.healthy else FAILED)
            except NetworkError as error:
                self.problems.append(f"health: {error}")
                self.answers.seconds["health"].append(FAILED)
            await trio.sleep(ASK_EVERY_S / 2)

    async def join(self, every_s: float) -> None:
        """Let new schedulers join through the gateway, each with an offer to await."""
        number = 0
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._join, f"new scheduler {number}")
                number += 1
                await trio.sleep(every_s)

    async def _join(self, name: str) -> None:
        started = time.perf_counter()
        waited = FAILED
        with trio.move_on_after(3 * ANSWER_S):
            async with node(self.scene.pki, name, gateways=(self.scene.gateway,)) as network:
                newcomer = Scheduler(network)
                while not await newcomer.collect(wanted(SMALL), lambda offers: offers[:1]):
                    pass
                waited = time.perf_counter() - started
        self.answers.seconds["first offer to a new scheduler"].append(waited)
        self._joined.set()

    async def run_job(self, rounds: int) -> float:
        """Run a job of so many rounds; return how long it took from its dispatch to its end, infinite if it failed."""
        scheduler, network = self.scene.scheduler, self.scene.echo
        named = self.scene.hostile.get(Role.NAMED, [])
        script = ECHO.replace("ECHO", repr(network.peer_id)).replace("HOSTILE", repr(named))
        script = script.replace("ROUNDS", str(rounds)).replace("TRAIN_S", str(TRAIN_S))
        (self.scene.node.directory / "executor.py").write_text(script)
        peers = {"type": "peers", "peers": [network.peer_id, *named], "strategy": {"type": "All"}}
        with trio.move_on_after(JOB_S):
            lease = await scheduler.hire(wanted(SMALL), self.scene.worker)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scheduler.keep, lease)
                started = time.perf_counter()
                task_id = uuid4()
                try:
                    if not await scheduler.dispatch(lease, train_spec(updates=peers, results=peers), task_id):
                        raise NetworkError("the node refused the job")
                    nursery.start_soon(self._exchange, rounds)
                    status = await self._status_of(task_id)
                    if status != "Finished":
                        raise NetworkError(f"the job ended as {status}")
                    return time.perf_counter() - started
                except NetworkError as error:
                    self.problems.append(f"job: {error}")
                    log = self.scene.node.log.splitlines()
                    self.problems += [f"the node's log: {line}" for line in log if str(task_id) in line]
                finally:
                    if lease.refused or lease.lost.is_set():
                        self.problems.append("job: its lease was lost")
                    lease.abandoned = True
                    nursery.cancel_scope.cancel()
        return FAILED

    async def _exchange(self, rounds: int) -> None:
        """Push, and await what the job sends back, once in each round."""
        data = random.randbytes(PUSH_BYTES)
        for _ in range(rounds):
            started = time.perf_counter()
            while True:
                try:
                    stream = await self.scene.echo.open_stream(self.scene.worker, PUSH)
                    await stream.send_all(data)
                    await stream.send_eof()
                    break
                except NetworkError as error:
                    self.problems.append(f"push: {error}")
                    await trio.sleep(0.1)
            while await self._echoes.receive() != data:
                pass  # from an earlier job, which failed
            self.answers.seconds["round of the job"].append(time.perf_counter() - started - TRAIN_S)

    async def _status_of(self, task_id: UUID) -> str:
        while True:
            report = await self.scene.scheduler.statuses.receive()
            if report.task_id == task_id and report.status.type != "Running":
                return str(report.status.type)

    async def measure_undisturbed(self, rounds: int) -> None:
        """Measure how long a job takes before any attack. The first job only warms the caches up."""
        await self.run_job(rounds)
        self.undisturbed_s = [await self.run_job(rounds) for _ in range(2)]

    async def endure(
        self,
        attacks: Sequence[tuple[Role, str]],
        bounds: Bounds,
        rounds: int,
        seconds: float,
        *,
        warm_up_s: float,
        join_every_s: float,
    ) -> Report:
        """Ask, join and run jobs one after the other during attacks, until so much time is over.

        At least one job runs to its end, and one scheduler joins.
        """
        gc.freeze()  # a garbage collection that visited every module of the tests would make answers seem late
        self.answers, self.problems, self._joined = Answers(), [], trio.Event()
        attacked_s: list[float] = []
        samples: list[Sample] = []
        logged = len(self.scene.node.log)
        with self.scene.attack(attacks) as figures:
            await trio.sleep(warm_up_s)
            until = time.monotonic() + seconds
            async with trio.open_nursery() as nursery:
                for task in (
                    self.ask,
                    self.ask_health,
                    partial(self.join, join_every_s),
                    partial(_watch, self.scene, samples),
                ):
                    nursery.start_soon(task)
                while not attacked_s or time.monotonic() < until:
                    attacked_s.append(await self.run_job(rounds))
                await self._joined.wait()
                nursery.cancel_scope.cancel()
        log = self.scene.node.log[logged:]
        if (found := log.find("Traceback")) >= 0:
            self.problems.append(f"the node's log has a traceback: {log[found : found + TRACEBACK_CHARS]}")
        return Report(bounds, figures, self.answers, self.undisturbed_s, attacked_s, samples, self.problems)


async def _watch(scene: Siege, samples: list[Sample]) -> None:
    """Sample the node's memory, CPU time, descriptors and log each second."""
    while True:
        samples.append(sample(scene.node))
        await trio.sleep(1)
