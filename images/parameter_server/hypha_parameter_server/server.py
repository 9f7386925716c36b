"""The parameter server's loop: collect a round, take the outer step, send the update."""

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from hypha_executor.bridge import Bridge
from hypha_executor.errors import MalformedFileError
from hypha_executor.incoming import Incoming, Received
from hypha_executor.labels import parse_labels
from hypha_executor.progress import Progress
from hypha_executor.safetensors import digest, open_header, read_header
from hypha_parameter_server.arithmetic import Nesterov, Source, check
from hypha_parameter_server.errors import Refused, Untimely
from hypha_parameter_server.job import AggregateJob
from hypha_parameter_server.rounds import (
    Attendance,
    Contribution,
    Policy,
    Selection,
    check_job,
    check_layout,
    check_round,
    quorum_of,
    select,
    weights,
)
from hypha_parameter_server.store import Store

log = logging.getLogger(__name__)


class Server:
    """The parameter server of one job."""

    def __init__(self, job: AggregateJob, bridge: Bridge, store: Store, policy: Policy) -> None:
        self._job = job
        self._bridge = bridge
        self._progress = Progress(bridge)
        self._store = store
        self._policy = policy
        self._attendance = Attendance(job.members)
        self._pending: dict[str, Contribution] = {}
        self._refused: set[str] = set()
        self._late: set[str] = set()
        self._round_began: float | None = None
        self._deadline = 0.0
        self._overdue = False

    def run(self, incoming: Incoming) -> None:
        """Serve rounds until the scheduler answers that the job is done.

        Raises:
            BridgeError: The bridge is gone for good.
            OSError: A file cannot be read or written.
        """
        done = self._deliver()
        for peer, path in self._store.unmerged():
            self._take(peer, path)
        for received in self._store.unannounced(self._job.members):
            self._receive(received)
        while not done:
            selection = self._select()
            if selection is not None:
                done = self._close_round(selection)
                continue
            began = time.monotonic()
            arrived = incoming.next(self._until_deadline_s())
            waited_s = time.monotonic() - began
            self._bridge.telemetry.add("hypha.job.waiting.time", waited_s, {"for": "pseudo-gradients"})
            if arrived is not None:
                self._receive(arrived)
        log.info("The scheduler says that the job is done")

    @property
    def _expected(self) -> int | None:
        return None if self._store.last_round is None else self._store.last_round + 1

    def _receive(self, received: Received) -> None:
        try:
            if received.peer not in self._job.members:
                log.warning("Refused: a file from %.100r, which is not a member of this job", received.peer)
                self._store.discard(received.path)
            elif claimed := self._store.claim(received.peer, received.path):
                self._take(received.peer, claimed)
            else:
                log.warning("The file %.200r from %s does not exist", received.path, received.peer)
        except Refused as verdict:
            log.warning("Refused: the file from %.100r %s", received.peer, verdict)

    def _take(self, peer: str, path: Path) -> None:
        try:
            contribution = self._check(peer, path)
        except (Refused, MalformedFileError) as verdict:
            log.warning("Refused: the pseudo-gradient from %s %s", peer, verdict)
            path.unlink(missing_ok=True)
            outcome = verdict.outcome if isinstance(verdict, Refused) else Refused.outcome
            self._count(outcome)
            if outcome == "late":
                self._late.add(peer)
            if outcome == Refused.outcome:
                self._refused.add(peer)
                self._start_clock()
            return
        self._pending[peer] = contribution
        self._refused.discard(peer)
        self._start_clock()
        log.info(
            "Pseudo-gradient from %s: round %s, %s samples, length %.4g (%d of %d); %s",
            peer,
            "unknown" if contribution.round is None else contribution.round,
            "unknown" if contribution.samples is None else contribution.samples,
            contribution.length.weights,
            len(self._pending),
            len(self._job.members),
            self._waiting_for(),
        )

    def _count(self, outcome: str, increase: int = 1) -> None:
        self._bridge.telemetry.add("hypha.job.pseudo_gradients", increase, {"outcome": outcome})

    def _waiting_for(self) -> str:
        """Say when the round closes, and for whom it waits; the metrics say the same."""
        missing = sorted(self._job.members - self._pending.keys() - self._refused)
        self._bridge.telemetry.set("hypha.job.round.missing", len(missing))
        awaited = sorted(self._attendance.awaited & set(missing))
        if not awaited:
            return "the round waits for nobody"
        closes = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._deadline))
        return f"the round waits until {closes} for {', '.join(awaited)}"

    def _check(self, peer: str, path: Path) -> Contribution:
        if peer in self._pending:
            raise Untimely("second", "is its second for this round")
        try:
            descriptor, header = open_header(path)
        except OSError as error:  # a symbolic link, for example
            raise Refused(f"cannot be opened: {error.strerror}") from error
        try:
            labels = parse_labels(header.metadata)
            check_round(labels.round, self._expected, owed=peer in self._attendance.owing - self._late)
            check_job(labels.job_id, self._job.job_id)
            if self._store.layout is not None:
                check_layout(header.layout, self._store.layout)
            length = check(descriptor, header)
            return Contribution(peer, path, digest(header.layout), length, labels.round, labels.samples)
        finally:
            os.close(descriptor)

    def _start_clock(self) -> None:
        if self._round_began is None:
            self._round_began = time.monotonic()
            self._deadline = time.time() + self._policy.deadline_s
            self._bridge.telemetry.set("hypha.job.round.deadline", self._deadline)

    def _until_deadline_s(self) -> float | None:
        if self._round_began is None or self._overdue:
            return None
        return max(0.0, self._round_began + self._policy.deadline_s - time.monotonic())

    def _select(self) -> Selection | None:
        waited_s = 0.0 if self._round_began is None else time.monotonic() - self._round_began
        selection = select(
            self._pending.values(),
            self._refused,
            self._job.members,
            self._attendance.awaited,
            expected=self._expected,
            waited_s=waited_s,
            policy=self._policy,
        )
        if selection is None and waited_s >= self._policy.deadline_s and not self._overdue:
            self._overdue = True
            log.error(
                "After %.0f s there are %d usable pseudo-gradients of %d; the round closes with %d",
                waited_s,
                len(self._pending),
                len(self._job.members),
                quorum_of(len(self._job.members), self._policy),
            )
        return selection

    def _close_round(self, selection: Selection) -> bool:
        """Take the outer step; return whether the job is done."""
        began = time.monotonic()
        missing = self._job.members - {item.peer for item in selection.chosen}
        if missing:
            log.warning("Round %d closes without %s", selection.round, ", ".join(sorted(missing)))
        for item in selection.misfits:
            log.warning(
                "Refused: the pseudo-gradient from %s does not match the others of round %d",
                item.peer,
                selection.round,
            )
            item.path.unlink(missing_ok=True)
        shares = weights(selection.chosen, self._policy)
        sources = [
            Source(item.path, read_header(item.path), share)
            for item, share in zip(selection.chosen, shares, strict=True)
        ]
        with self._bridge.telemetry.span("outer step", {"round": selection.round, "pseudo_gradients": len(sources)}):
            self._store.merge(selection.round, sources, Nesterov(self._job.learning_rate, self._job.momentum))
        log.info(
            "Round %d: merged %d pseudo-gradients in %.2f s, shares %s",
            selection.round,
            len(sources),
            time.monotonic() - began,
            ", ".join(f"{share.weights:.3f}" for share in shares),
        )
        self._count("merged", len(sources))
        self._count(Refused.outcome, len(selection.misfits))
        self._attendance.close_round(self._pending.keys() | self._refused, self._late)
        self._pending.clear()
        self._refused.clear()
        self._late.clear()
        self._round_began = None
        self._overdue = False
        return self._deliver()

    def _deliver(self) -> bool:
        """Send the last update unless an earlier process has sent it; return whether the job is done.

        The report to the scheduler comes first. If a trainer reported its merged update before that, the scheduler
        would let it continue after the last round.
        """
        delivery = self._store.delivery()
        if (round_number := delivery.round) is None:
            return False
        if delivery.done is None:
            answer = self._progress.outer_step_taken()
            if answer.failed:
                log.warning("The scheduler answered the report of an outer step with an error; the job continues")
            delivery = replace(delivery, done=answer.done)
            self._store.record(delivery)
        if not delivery.sent:
            with self._bridge.telemetry.span("update sent", {"round": round_number}):
                self._bridge.send(self._job.results, self._store.last_update())
            self._store.record(replace(delivery, sent=True))
        return bool(delivery.done)
