"""The demo's view of its network, computed from the events of the nodes without any I/O."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hypha_contracts.text import escaped
from hypha_devnet.demo.models import DIGITS, DemoModel
from hypha_devnet.demo.settings import SERVER, TRAINERS, WORKERS

PHASES: Final = ("certificates", "network", "workers", "training", "inference", "judgement")
_RECENT: Final = 6


@dataclass
class Worker:
    """A worker as the scheduler sees it. `losses` are pairs (samples of this trainer so far, loss)."""

    role: str = "-"
    state: str = "starting"
    offer: float | None = None
    lease_until: float | None = None
    renewals: int = 0
    batches: int = 0
    samples: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Board:
    """The state of the demo. Times are in seconds since the epoch; `rounds` has the duration of each round.

    `page` is the URL of a worker's status page, once there is one.
    """

    began: float
    model: DemoModel = DIGITS
    peers: dict[str, str] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=lambda: {name: Worker() for name in WORKERS})
    phase: str = PHASES[0]
    page: str | None = None
    rounds: list[float] = field(default_factory=list)
    samples: int = 0
    alone: list[tuple[float, float]] = field(default_factory=list)
    alone_score: float | None = None
    line_count: int = 0
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def name(self, peer: str) -> str:
        """Return the name of a peer."""
        return self.peers.get(peer, peer)

    def add_line(self, text: str) -> None:
        """Add a line to show."""
        self.recent.append(escaped(text))
        self.line_count += 1

    def take(self, source: str, event: Mapping[str, Any]) -> None:
        """Update the state with an event of a process."""
        handler = getattr(self, f"_{source}_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _worker(self, event: Mapping[str, Any]) -> Worker:
        return self.workers.setdefault(self.name(event["peer"]), Worker())

    def _model_prepared(self, event: Mapping[str, Any]) -> None:
        samples = f"{event['train']} {self.model.samples} in {event['slices']} slices"
        self.add_line(f"{samples} to train on, {event['held_out']} held out")

    def _model_alone(self, event: Mapping[str, Any]) -> None:
        self.alone.append((event["samples"], event["loss"]))

    def _model_trained_alone(self, event: Mapping[str, Any]) -> None:
        self.alone_score = event["score"]

    def _data_announced(self, event: Mapping[str, Any]) -> None:
        self.add_line(f"the data node announces {event['dataset']}: {event['slices']} slices")

    def _scheduler_request(self, event: Mapping[str, Any]) -> None:
        self.add_line(f"the scheduler asks for {event['wanted']} of {event['role']}, bidding {event['bid']:g}")

    def _scheduler_offer(self, event: Mapping[str, Any]) -> None:
        worker = self._worker(event)
        worker.offer, worker.state = event["price"], "offers"
        self.add_line(f"{self.name(event['peer'])} offers its resources for {event['price']:g}")

    def _scheduler_lease(self, event: Mapping[str, Any]) -> None:
        worker = self._worker(event)
        if worker.lease_until is None:
            worker.state = "leased"
            self.add_line(f"{self.name(event['peer'])} is leased as {event['role']}")
        else:
            worker.renewals += 1
        worker.role, worker.lease_until = event["role"], event["expires"]

    def _scheduler_lease_lost(self, event: Mapping[str, Any]) -> None:
        self._worker(event).lease_until = None

    def _scheduler_dispatched(self, event: Mapping[str, Any]) -> None:
        self._worker(event).state = "loads" if event["role"] == "trainer" else "waits"
        self.add_line(f"the job is dispatched to {self.name(event['peer'])}")

    def _scheduler_batch(self, event: Mapping[str, Any]) -> None:
        worker = self._worker(event)
        worker.state = "trains"
        worker.batches += 1
        self.samples = event["samples"]

    def _scheduler_metrics(self, event: Mapping[str, Any]) -> None:
        metrics = event["metrics"]
        if "loss" in metrics:
            worker = self._worker(event)
            worker.samples += int(metrics.get("samples", self.model.batch_size))
            worker.losses.append((worker.samples, metrics["loss"]))

    def _scheduler_updating(self, event: Mapping[str, Any]) -> None:
        self._worker(event).state = "sends"
        self.workers[SERVER].state = "collects"

    def _scheduler_update_received(self, event: Mapping[str, Any]) -> None:
        self._worker(event).state = "done" if event["done"] else "trains"

    def _scheduler_round(self, event: Mapping[str, Any]) -> None:
        self.rounds.append(event["seconds"])
        self.samples = 0
        self.workers[SERVER].state = "waits"
        losses = (f"{name} {self.workers[name].losses[-1][1]:.3f}" for name in self.trainers_with_losses())
        self.add_line(f"round {event['round']} of {event['of']} in {event['seconds']:.1f} s; loss: {', '.join(losses)}")

    def _scheduler_job_status(self, event: Mapping[str, Any]) -> None:
        self._worker(event).state = event["status"].lower()

    def _scheduler_worker_lost(self, event: Mapping[str, Any]) -> None:
        self.add_line(f"lost {self.name(event['peer'])}: {event['reason']}")

    def _scheduler_failed(self, event: Mapping[str, Any]) -> None:
        self.add_line(f"the job failed: {event['reason']}")

    def _inference_dispatched(self, event: Mapping[str, Any]) -> None:
        self._worker(event).state = "infers"
        self.add_line(f"the inference job is dispatched to {self.name(event['peer'])}")

    def _inference_predicted(self, event: Mapping[str, Any]) -> None:
        done = f"{event['done']} of {event['of']}"
        self.add_line(f"{self.name(event['peer'])} has predicted held-out slice {event['index']}: {done}")

    def _inference_job_status(self, event: Mapping[str, Any]) -> None:
        self._worker(event).state = event["status"].lower()

    def _inference_failed(self, event: Mapping[str, Any]) -> None:
        self.add_line(f"the inference job failed: {event['reason']}")

    def trainers_with_losses(self) -> list[str]:
        """Return the trainers that have reported a loss."""
        return [name for name in TRAINERS if self.workers[name].losses]
