"""A process runtime under test, with its events."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import trio

from hypha_network.changes import Changes
from hypha_worker.job import Failed, Finished, Job, JobEvent, Started
from hypha_worker.runtimes.process import processes, supervisor
from hypha_worker.runtimes.process.launch import ProcessConfig
from hypha_worker.runtimes.process.runtime import ProcessRuntime, open_process_runtime

PATIENCE_S = 20


class Rig:
    """A runtime; `events` are those that it has emitted."""

    def __init__(self, runtime: ProcessRuntime) -> None:
        self.runtime = runtime
        self.events: list[JobEvent] = []
        self._changes = Changes()

    async def take_events(self) -> None:
        async for event in self.runtime.events:
            self.events.append(event)
            self._changes.notify()

    async def run(self, job: Job) -> JobEvent:
        """Launch a job; return its end once its record is removed."""
        await self.runtime.launch(job)
        return await self.end_of(job.task_id)

    async def end_of(self, task_id: UUID) -> JobEvent:
        event = await self._await_event(task_id, Finished, Failed)
        await self.runtime.terminate(task_id, "returns once its record is removed")
        return event

    async def started(self, task_id: UUID) -> None:
        await self._await_event(task_id, Started)

    async def _await_event(self, task_id: UUID, *kinds: type) -> JobEvent:
        while True:
            for event in self.events:
                if event.task_id == task_id and isinstance(event, kinds):
                    return event
            await self._changes.wait()


@asynccontextmanager
async def open_rig(config: ProcessConfig) -> AsyncIterator[Rig]:
    with trio.fail_after(PATIENCE_S):
        async with open_process_runtime(config) as runtime, trio.open_nursery() as nursery:
            rig = Rig(runtime)
            nursery.start_soon(rig.take_events)
            yield rig
            nursery.cancel_scope.cancel()


def left_behind(work_dir: Path) -> list[str]:
    pids = processes.strays(str(work_dir))
    return [str(path) for path in work_dir.glob("*") if path.name not in ("jobs", "logs", "node.lock")] + [
        *map(str, (work_dir / "jobs").glob("*")),
        *map(str, pids),
    ]


async def output_of(work_dir: Path, task_id: UUID | str, text: str) -> None:
    log = work_dir / "jobs" / str(task_id) / supervisor.OUTPUT_FILE
    while not log.exists() or text not in log.read_text():  # noqa: ASYNC110 - another process writes it
        await trio.sleep(0.01)
