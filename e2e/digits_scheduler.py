"""`python -m e2e.digits_scheduler CONFIG UPDATES`: the devnet's scheduler, which also receives every merged update.

It receives the same updates as the trainers, so it can compute the trained model without access to the pods.
"""

import sys
from pathlib import Path

import trio

from hypha_contracts import logs
from hypha_contracts.command_line import leaves
from hypha_devnet.config import DilocoJob, SchedulerConfig, load
from hypha_devnet.events import Events
from hypha_devnet.roles.allocation import AllocationError
from hypha_devnet.roles.node import join, until_signal
from hypha_devnet.roles.scheduler import Scheduler
from hypha_devnet.roles.steps import JobFailedError
from hypha_messages.job import AggregateExecutor, JobSpec
from hypha_messages.streams import PUSH
from hypha_network.changes import Changes
from hypha_network.wire.streams import Stream

_MAX_UPDATE_BYTES = 64 * 1024 * 1024
_LAST_UPDATE_S = 60.0


class Observer(Scheduler):
    """A scheduler that adds itself to the receivers of the updates."""

    def _aggregate_spec(self, trainers: list[str]) -> JobSpec:
        spec = super()._aggregate_spec(trainers)
        assert isinstance(spec.executor, AggregateExecutor)
        results = spec.executor.config.results
        watched = results.model_copy(update={"peers": [*results.peers, self._network.peer_id]})
        config = spec.executor.config.model_copy(update={"results": watched})
        return spec.model_copy(update={"executor": spec.executor.model_copy(update={"config": config})})


class Updates:
    """Receives the updates, and saves each as a file, numbered in the order of arrival."""

    def __init__(self, directory: Path, events: Events) -> None:
        self._directory = directory
        self._events = events
        self._changes = Changes()
        self.count = 0
        directory.mkdir(parents=True)

    async def take(self, peer: str, stream: Stream) -> None:
        """Receive an update."""
        data = await stream.read_to_end(_MAX_UPDATE_BYTES)
        path = self._directory / f"{self.count:04}.safetensors"
        path.write_bytes(data)
        self.count += 1
        self._events.emit("update", peer=peer, number=self.count, bytes=len(data))
        self._changes.notify()

    async def until(self, count: int) -> None:
        """Wait until this many updates have arrived."""
        await self._changes.until(lambda: self.count >= count)


async def run(config: SchedulerConfig, directory: Path, events: Events) -> int:
    """Run the job; return 0 when it is done and all updates have arrived."""
    job = config.scheduler.job
    assert isinstance(job, DilocoJob)
    async with join(config) as network:
        events.emit("listening", peer_id=network.peer_id, addresses=network.addresses())
        updates = Updates(directory, events)
        network.handle_stream(PUSH, updates.take)
        reasons: list[str] = []
        try:
            await Observer(network, job, events).run()
            with trio.fail_after(_LAST_UPDATE_S):
                await updates.until(job.rounds.update_rounds)
        except* (JobFailedError, AllocationError, trio.TooSlowError) as group:
            reasons = [str(error) or type(error).__name__ for error in leaves(group)]
    if reasons:
        events.emit("failed", reason="; ".join(reasons))
    return 1 if reasons else 0


def main(config: Path, directory: Path) -> int:
    """Run until the job is done or a signal arrives."""
    logs.configure("info")
    settings, events = load(SchedulerConfig, config), Events.to_stdout(True)
    return trio.run(until_signal, lambda: run(settings, directory, events), 143)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
