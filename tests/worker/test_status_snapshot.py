"""The parts of the state that people see."""

from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from hypha_contracts.reach import DESCRIPTIONS, Reach
from hypha_contracts.reasons import WorkerReason
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.progress import Metrics, Progress
from hypha_messages.types import Resources, peer_id_from_ed25519
from hypha_network.status import ConnectionStatus, NetworkStatus
from hypha_worker.job_history import JobHistory
from hypha_worker.market.evaluator import Refusal
from hypha_worker.market.ledger import Lease, Ledger
from hypha_worker.market.recent_requests import RecentRequests
from hypha_worker.status import snapshot
from hypha_worker.status.model import RequestState
from support import jobs
from support.hostile_text import HOSTILE
from support.set_clock import SetClock
from support.worker import ALICE, BOB, HALF, TRAIN, WHOLE, ledger_of, request

STATUS = NetworkStatus(("/ip4/10.0.0.1/tcp/1",), (ALICE,), (), bootstrapped=True, healthy=True, reach=Reach.PUBLIC)


@pytest.fixture
def ledger(clock: SetClock) -> Ledger:
    return ledger_of(WHOLE, clock, duration_s=10)


def offered(ledger: Ledger, scheduler: str = ALICE, price: float = 100, request_id: UUID | None = None) -> Lease:
    lease = ledger.offer(scheduler, request_id or uuid4(), [TRAIN], HALF, price=price)
    assert lease is not None
    return lease


def held(ledger: Ledger, scheduler: str = ALICE, price: float = 100) -> Lease:
    lease = offered(ledger, scheduler, price)
    ledger.renew(lease.id, scheduler)
    return next(one for one in ledger.leases if one.id == lease.id)


def connection(
    peer: str, *, relayed: bool = False, transport: str = "tcp", received: int = 0, sent: int = 0
) -> ConnectionStatus:
    return ConnectionStatus(
        peer,
        inbound=True,
        relayed=relayed,
        transport=transport,
        round_trip_s=0.02,
        received_bytes=received,
        sent_bytes=sent,
    )


def peer(number: int) -> str:
    return peer_id_from_ed25519(number.to_bytes(32, "big"))


@pytest.mark.parametrize("reach", Reach)
def test_a_reach_that_keeps_some_peers_from_sending_has_a_remedy(reach: Reach) -> None:
    shown = snapshot.network_of(replace(STATUS, reach=reach), ["/ip4/10.0.0.2/tcp/1"], ["/ip4/10.0.0.1/tcp/1"])
    assert (shown.reach, shown.reached) == (reach, DESCRIPTIONS[reach])
    assert bool(shown.remedy) == (reach in (Reach.LIMITED_RELAY, Reach.NONE))


def test_a_reach_that_no_gateway_has_observed_is_not_known() -> None:
    shown = snapshot.network_of(replace(STATUS, reach=None), [], [])
    assert (shown.reach, shown.remedy) == (None, None)
    assert "not known" in shown.reached


def test_leased_resources_are_those_of_all_leases_and_offers(ledger: Ledger) -> None:
    offered(ledger)
    held(ledger)
    shown = {one.name: (one.leased, one.total, one.unit) for one in snapshot.resources_of(ledger)}
    assert shown["cpu"] == (4, 4, "cores")
    assert shown["memory"] == (16, 16, "GB of memory")


def test_leases_come_before_offers(ledger: Ledger, clock: SetClock) -> None:
    offer, lease = offered(ledger), held(ledger, BOB, 120)
    first, second = snapshot.leases_of(ledger)
    assert (first.id, first.scheduler, first.state, first.price) == (str(lease.id), BOB, "held", 120)
    assert (first.deadline, first.accepted, first.executors) == (clock.now + 10, clock.now, ("train/test",))
    assert (second.id, second.state, second.accepted) == (str(offer.id), "offered", None)


def test_a_limited_number_of_leases_jobs_and_peers_is_shown(clock: SetClock) -> None:
    each = Resources(cpu=0.001, memory=0.001, storage=0.001)
    many = ledger_of(WHOLE, clock, max_live=2000)
    for _ in range(snapshot.MAX_LEASES + 1):
        assert many.offer(ALICE, uuid4(), [TRAIN], each)
    history = JobHistory()
    for _ in range(snapshot.MAX_JOBS + 1):
        history.add(jobs.job())
    peers, total = snapshot.peers_of([connection(peer(number)) for number in range(snapshot.MAX_PEERS + 1)], [], [])
    assert len(snapshot.leases_of(many)) == snapshot.MAX_LEASES
    assert len(snapshot.jobs_of(history, many)) == snapshot.MAX_JOBS
    assert (len(peers), total) == (snapshot.MAX_PEERS, snapshot.MAX_PEERS + 1)


def test_a_job_shows_its_progress_its_curve_and_the_deadline_of_its_lease(ledger: Ledger, clock: SetClock) -> None:
    history, job = JobHistory(clock, clock), jobs.job()
    held(ledger)
    ledger.assign(ALICE, TRAIN, job.task_id)
    history.add(job, started=True)
    for value in (2.0, 1.0):
        clock.now += 1
        history.on_report(job.task_id, Progress(metrics=Metrics(round=3, metrics={"loss": value})))
    (shown,) = snapshot.jobs_of(history, ledger)
    assert (shown.task_id, shown.phase, shown.round, shown.metrics) == (str(job.task_id), "running", 3, {"loss": 1.0})
    assert (shown.loss.x, shown.loss.y) == ([1, 2], [2.0, 1.0])
    assert shown.deadline == 1000 + 10


def test_a_job_whose_lease_has_expired_is_ending_for_that_reason(ledger: Ledger, clock: SetClock) -> None:
    history, job = JobHistory(clock, clock), jobs.job()
    held(ledger)
    ledger.assign(ALICE, TRAIN, job.task_id)
    history.add(job, started=True)
    clock.now += 11
    ledger.expire()
    (shown,) = snapshot.jobs_of(history, ledger)
    assert (shown.phase, shown.reason) == ("ending", "its lease expired")
    ledger.end(job.task_id, "Failed")
    history.on_end(job.task_id, "stopped: its lease expired")
    (shown,) = snapshot.jobs_of(history, ledger)
    assert (shown.phase, shown.reason, shown.deadline) == ("failed", "stopped: its lease expired", None)


class Answers:
    """A request that got an offer, and how it goes on."""

    def __init__(self, ledger: Ledger) -> None:
        self.recent, self.ledger, wanted = RecentRequests(), ledger, request()
        self.recent.on_waiting(ALICE, wanted, 1.0)
        self.lease = offered(ledger, price=130, request_id=wanted.id)
        self.recent.on_offered(self.lease)

    def shown(self) -> RequestState:
        (one,) = snapshot.requests_of(self.recent.newest_first, self.ledger, lambda _: False)
        assert one.price == 130
        return one


def test_an_offer_is_accepted_by_its_first_renewal(ledger: Ledger, clock: SetClock) -> None:
    answers = Answers(ledger)
    assert answers.shown().answer == "offered"
    ledger.renew(answers.lease.id, ALICE)
    assert answers.shown().answer == "accepted"
    clock.now += 60
    ledger.expire()
    assert answers.shown().answer == "accepted"


def test_an_offer_that_nobody_renews_lapses(ledger: Ledger, clock: SetClock) -> None:
    answers = Answers(ledger)
    clock.now += 1
    ledger.expire()
    assert answers.shown().answer == "lapsed"


def test_an_offer_that_was_withdrawn_could_not_be_delivered(ledger: Ledger) -> None:
    answers = Answers(ledger)
    ledger.withdraw(answers.lease.id)
    assert answers.shown().answer == "undelivered"


def test_a_request_that_waits_no_more_and_has_no_offer_was_passed_over(ledger: Ledger) -> None:
    recent = RecentRequests()
    recent.on_waiting(ALICE, request(), 1.0)
    (waits,) = snapshot.requests_of(recent.newest_first, ledger, lambda _: True)
    (passed,) = snapshot.requests_of(recent.newest_first, ledger, lambda _: False)
    assert (waits.answer, passed.answer, passed.price) == ("waiting", "passed", None)
    assert "not enough was free" in passed.reason


@pytest.mark.parametrize("character", HOSTILE, ids=[f"U+{ord(character):04X}" for character in HOSTILE])
def test_hidden_characters_in_requests_are_escaped(ledger: Ledger, character: str) -> None:
    recent = RecentRequests()
    named = request(executors=(ExecutorDescriptor(class_="train", name=f"a{character}b"),))
    refusal = Refusal(WorkerReason.EXECUTOR_UNSUPPORTED, f"executor train/a{character}b is not supported")
    recent.on_refused(ALICE, named, refusal, 1.0)
    (shown,) = snapshot.requests_of(recent.newest_first, ledger, lambda _: False)
    assert (shown.answer, shown.count) == ("refused", 1)
    assert character not in shown.executors[0] + shown.reason
    assert (shown.executors[0] + shown.reason).isprintable()


def test_peers_have_the_path_of_their_best_connection_and_the_bytes_of_all() -> None:
    relayed = connection(ALICE, relayed=True, received=5, sent=1)
    direct = connection(ALICE, transport="quic-v1", received=10, sent=2)
    (shown,), total = snapshot.peers_of([relayed, direct], [], [])
    assert (shown.relayed, shown.transport, shown.connections) == (False, "quic-v1", 2)
    assert (shown.received_bytes, shown.sent_bytes, total) == (15, 3, 1)


def test_gateways_come_first_then_schedulers_then_those_that_moved_most_bytes() -> None:
    found = [connection(peer(number), received=number) for number in range(4)]
    shown, _ = snapshot.peers_of(found, [peer(0)], [peer(1)])
    assert [(one.peer_id, one.role) for one in shown] == [
        (peer(0), "gateway"),
        (peer(1), "scheduler"),
        (peer(3), "peer"),
        (peer(2), "peer"),
    ]


def test_earnings_are_those_of_ended_leases_and_what_present_ones_add(ledger: Ledger, clock: SetClock) -> None:
    held(ledger, ALICE, price=10)
    clock.now += 9
    held(ledger, BOB, price=7)
    clock.now += 3
    ledger.expire()  # that of ALICE, whose lease nobody renewed
    clock.now += 2
    shown = snapshot.earnings_of(ledger, clock.now)
    assert [(one.scheduler, one.leases, one.leased_s, one.earned, one.accruing) for one in shown.accounts] == [
        (ALICE, 1, 12, 120, 0),
        (BOB, 0, 0, 0, 35),
    ]
    assert (shown.earned, shown.accruing, shown.per_s) == (120, 35, 7)


def test_an_offer_earns_nothing_before_it_is_accepted(ledger: Ledger, clock: SetClock) -> None:
    offered(ledger)
    assert snapshot.earnings_of(ledger, clock.now + 100).accounts == ()
