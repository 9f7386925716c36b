from contextlib import suppress
from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hypha_contracts.limits import MAX_ENDED, MAX_ENDED_PER_SCHEDULER
from hypha_messages.types import Resources, peer_id_from_ed25519
from hypha_worker.market.accounts import Account, Accounts
from hypha_worker.market.capacity import Capacity
from hypha_worker.market.ledger import (
    EndedJob,
    Lease,
    Ledger,
    LedgerError,
    LedgerState,
)
from support.set_clock import SetClock
from support.worker import AGGREGATE, ALICE, BOB, HALF, TRAIN, WHOLE, ledger_of


@pytest.fixture
def ledger(clock: SetClock) -> Ledger:
    return ledger_of(WHOLE, clock)


def offered(ledger: Ledger, scheduler: str = ALICE, resources: Resources = HALF) -> Lease:
    lease = ledger.offer(scheduler, uuid4(), [TRAIN], resources)
    assert lease is not None
    return lease


def held(ledger: Ledger, scheduler: str = ALICE, resources: Resources = HALF) -> Lease:
    lease = offered(ledger, scheduler, resources)
    ledger.renew(lease.id, scheduler)
    return lease


def test_the_ledger_remembers_how_an_offer_ended(ledger: Ledger, clock: SetClock) -> None:
    accepted, lapsed, withdrawn = (offered(ledger, resources=Resources(cpu=1)) for _ in range(3))
    assert ledger.offer_end(accepted.id) is None
    ledger.renew(accepted.id, ALICE)
    ledger.renew(accepted.id, ALICE)
    ledger.withdraw(withdrawn.id)
    clock.now += 1
    ledger.expire()
    ends = [ledger.offer_end(lease.id) for lease in (accepted, lapsed, withdrawn)]
    assert ends == ["accepted", "lapsed", "withdrawn"]
    assert ledger.offers_ended == {"accepted": 1, "lapsed": 1, "withdrawn": 1}


def test_the_ledger_remembers_the_ends_of_a_limited_number_of_offers(ledger: Ledger) -> None:
    leases = []
    for _ in range(1000):
        leases.append(offered(ledger))
        ledger.withdraw(leases[-1].id)
    remembered = [lease for lease in leases if ledger.offer_end(lease.id)]
    assert remembered == leases[-128:]


def test_an_offer_stands_for_half_a_second_and_a_renewal_for_ten(ledger: Ledger, clock: SetClock) -> None:
    lease = offered(ledger)
    assert lease.deadline == clock.now + 0.5
    clock.now += 0.4
    assert ledger.renew(lease.id, ALICE) == clock.now + 10


def test_reserved_resources_are_not_offered_again(ledger: Ledger) -> None:
    offered(ledger, resources=WHOLE)
    assert ledger.offer(BOB, uuid4(), [TRAIN], Resources(cpu=0.1)) is None


def test_amounts_that_exceed_the_capacity_by_a_rounding_error_fit() -> None:
    ledger = ledger_of(Resources(cpu=1), SetClock())
    for share in (0.1, 0.1, 0.1, 0.7):
        assert ledger.offer(ALICE, uuid4(), [TRAIN], Resources(cpu=share))
    assert ledger.free().cpu == 0


@pytest.mark.parametrize(("devices", "parts"), [(5, (3, 2)), (10, (2, 2, 3, 2, 1)), (16, (12, 3, 1))])
def test_all_devices_of_a_worker_can_be_leased_in_any_parts(devices: int, parts: tuple[int, ...]) -> None:
    device_gb = 80 * 2**30 / 1e9
    ledger = ledger_of(Resources(gpu=devices * device_gb), SetClock())
    for part in parts:
        assert ledger.offer(ALICE, uuid4(), [TRAIN], Resources(gpu=part * device_gb))
    assert not ledger.fits([Resources(gpu=1e-3)])


def test_an_expired_offer_frees_its_resources(ledger: Ledger, clock: SetClock) -> None:
    lease = offered(ledger, resources=WHOLE)
    clock.now += 0.5
    assert ledger.expire() == [lease]
    assert ledger.free() == WHOLE


def test_only_the_owner_renews(ledger: Ledger) -> None:
    lease = offered(ledger)
    with pytest.raises(LedgerError, match=ALICE):
        ledger.renew(lease.id, BOB)


def test_an_expired_lease_is_not_renewed_even_before_it_is_removed(ledger: Ledger, clock: SetClock) -> None:
    lease = held(ledger)
    clock.now += 10
    with pytest.raises(LedgerError, match="expired"):
        ledger.renew(lease.id, ALICE)


def test_a_renewed_lease_is_not_withdrawn_with_its_offer(ledger: Ledger) -> None:
    renewed, untouched = held(ledger), offered(ledger)
    assert not ledger.withdraw(renewed.id)
    assert ledger.withdraw(untouched.id)
    assert [lease.id for lease in ledger.leases] == [renewed.id]


def test_a_dispatch_takes_the_lease_of_its_own_request(ledger: Ledger) -> None:
    train = held(ledger)
    aggregate = ledger.offer(ALICE, uuid4(), [AGGREGATE], HALF)
    assert aggregate is not None
    assert ledger.assign(ALICE, AGGREGATE, uuid4()).id == aggregate.id
    assert ledger.assign(ALICE, TRAIN, uuid4()).id == train.id


def test_a_dispatch_without_a_lease_names_the_missing_lease(ledger: Ledger) -> None:
    held(ledger)
    with pytest.raises(LedgerError, match="no live lease"):
        ledger.assign(BOB, TRAIN, uuid4())
    with pytest.raises(LedgerError, match="no lease for aggregate/test"):
        ledger.assign(ALICE, AGGREGATE, uuid4())
    ledger.assign(ALICE, TRAIN, uuid4())
    with pytest.raises(LedgerError, match="a job on each of its leases for train/test"):
        ledger.assign(ALICE, TRAIN, uuid4())


def test_a_lease_that_lapses_with_a_job_reserves_until_the_job_is_gone(ledger: Ledger, clock: SetClock) -> None:
    lease, task_id = held(ledger, resources=WHOLE), uuid4()
    ledger.assign(ALICE, TRAIN, task_id)
    clock.now += 10
    assert [expired.id for expired in ledger.expire()] == [lease.id]
    assert ledger.expire() == []
    assert not ledger.fits([HALF])
    with pytest.raises(LedgerError, match="expired"):
        ledger.renew(lease.id, ALICE)
    ledger.end(task_id, "Failed")
    assert ledger.free() == WHOLE


def test_a_lease_that_lapses_while_its_job_fails_to_start_reserves_nothing_more(
    ledger: Ledger, clock: SetClock
) -> None:
    lease, task_id = held(ledger), uuid4()
    ledger.assign(ALICE, TRAIN, task_id)
    clock.now += 11
    ledger.expire()
    ledger.unassign(task_id, recorded=False)
    with pytest.raises(LedgerError, match="has expired"):
        ledger.renew(lease.id, ALICE)
    assert [expired.id for expired in ledger.expire()] == [lease.id]
    assert ledger.free() == WHOLE


def test_the_lease_of_a_finished_job_reserves_nothing_but_is_still_renewed_for_a_while(
    ledger: Ledger, clock: SetClock
) -> None:
    lease, task_id = held(ledger, resources=WHOLE), uuid4()
    ledger.assign(ALICE, TRAIN, task_id)
    ledger.end(task_id, "Finished")
    assert ledger.free() == WHOLE
    assert ledger.renew(lease.id, ALICE) == clock.now + 10
    with pytest.raises(LedgerError):
        ledger.renew(lease.id, BOB)
    clock.now += 60
    with pytest.raises(LedgerError):
        ledger.renew(lease.id, ALICE)


def test_the_lease_of_a_failed_job_is_gone(ledger: Ledger) -> None:
    lease, task_id = held(ledger), uuid4()
    ledger.assign(ALICE, TRAIN, task_id)
    ledger.end(task_id, "Failed")
    with pytest.raises(LedgerError):
        ledger.renew(lease.id, ALICE)


def test_an_ended_job_is_kept_until_its_end_is_reported(ledger: Ledger, clock: SetClock) -> None:
    held(ledger)
    task_id = uuid4()
    ledger.assign(ALICE, TRAIN, task_id)
    ledger.end(task_id, "Failed")
    clock.now += 1000
    ledger.expire()
    assert [ended.task_id for ended in ledger.unreported] == [task_id]
    ledger.record_reported(task_id)
    ledger.expire()
    assert ledger.find(task_id, ALICE) is None


def test_leases_and_jobs_survive_a_restart_and_offers_do_not(ledger: Ledger, clock: SetClock) -> None:
    kept, task_id, ended = held(ledger), uuid4(), uuid4()
    ledger.assign(ALICE, TRAIN, task_id)
    held(ledger, BOB)
    ledger.assign(BOB, TRAIN, ended)
    ledger.end(ended, "Finished")
    offered(ledger, BOB)
    again = ledger_of(WHOLE, clock)
    again.restore(LedgerState.model_validate_json(ledger.state().model_dump_json()))
    assert [lease.id for lease in again.leases] == [kept.id]
    assert isinstance(again.find(task_id, ALICE), Lease)
    assert isinstance(again.find(ended, BOB), EndedJob)
    assert again.renew(kept.id, ALICE) == clock.now + 10


def test_the_number_of_leases_is_limited_even_if_they_reserve_nothing(clock: SetClock) -> None:
    ledger = ledger_of(WHOLE, clock, max_live=3)
    crowd = [peer_id_from_ed25519(number.to_bytes(32)) for number in range(4)]
    leases = [ledger.offer(scheduler, uuid4(), [TRAIN], Resources()) for scheduler in crowd]
    assert [lease is not None for lease in leases] == [True, True, True, False]


amounts = st.floats(min_value=0, max_value=10, allow_nan=False)


class LedgerMachine(RuleBasedStateMachine):
    """Whatever schedulers do in whatever order: nothing is booked twice, and what is over comes back."""

    leases: Bundle[UUID] = Bundle("leases")
    tasks: Bundle[UUID] = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self.clock = SetClock()
        self.ledger = ledger_of(WHOLE, self.clock, max_live=5)
        self.owners: dict[UUID, str] = {}
        self.promised: dict[UUID, float] = {}

    @rule(target=leases, owner=st.sampled_from([ALICE, BOB]), gpu=amounts, cpu=amounts)
    def offer(self, owner: str, gpu: float, cpu: float) -> object:
        lease = self.ledger.offer(owner, uuid4(), [TRAIN], Resources(gpu=gpu, cpu=cpu))
        if lease is None:
            return multiple()
        self.owners[lease.id], self.promised[lease.id] = owner, lease.deadline
        return lease.id

    @rule(lease_id=leases, who=st.sampled_from([ALICE, BOB]))
    def renew(self, lease_id: UUID, who: str) -> None:
        try:
            deadline = self.ledger.renew(lease_id, who)
        except LedgerError:
            return
        assert who == self.owners[lease_id]
        assert self.clock.now < self.promised[lease_id] or not any(x.id == lease_id for x in self.ledger.leases)
        self.promised[lease_id] = deadline

    @rule(lease_id=consumes(leases))
    def withdraw(self, lease_id: UUID) -> None:
        self.ledger.withdraw(lease_id)

    @rule(target=tasks, who=st.sampled_from([ALICE, BOB]))
    def assign(self, who: str) -> object:
        task_id = uuid4()
        try:
            lease = self.ledger.assign(who, TRAIN, task_id)
        except LedgerError:
            return multiple()
        assert lease.scheduler == who
        assert self.clock.now < lease.deadline
        return task_id

    @rule(task_id=consumes(tasks), status=st.sampled_from(["Finished", "Failed"]))
    def end(self, task_id: UUID, status: str) -> None:
        before = len(self.ledger.leases)
        assert self.ledger.end(task_id, status) is not None, "a job lost its lease before it ended"
        assert len(self.ledger.leases) == before - 1

    @rule(seconds=st.floats(min_value=0.01, max_value=30))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.ledger.expire()
        assert all(lease.state == "ending" or lease.deadline > self.clock.now for lease in self.ledger.leases)

    @rule()
    def restart(self) -> None:
        state = LedgerState.model_validate_json(self.ledger.state().model_dump_json())
        self.ledger = ledger_of(WHOLE, self.clock, max_live=5)
        self.ledger.restore(state)

    @invariant()
    def nothing_is_booked_twice(self) -> None:
        used = sum((lease.resources for lease in self.ledger.leases), start=Resources())
        slack = Resources(gpu=WHOLE.gpu + 1e-9, cpu=WHOLE.cpu + 1e-9, memory=WHOLE.memory, storage=WHOLE.storage)
        assert used.fits_into(slack)
        assert len(self.ledger.leases) <= 5
        tasks = [lease.task_id for lease in self.ledger.leases if lease.task_id]
        assert len(tasks) == len(set(tasks))


LedgerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLedgerMachine = LedgerMachine.TestCase


def test_a_scheduler_has_at_most_half_of_the_leases() -> None:
    ledger = ledger_of(WHOLE, SetClock(), max_live=20)
    tiny = Resources(cpu=0.001)
    leases = [ledger.offer(ALICE, uuid4(), [TRAIN], tiny) for _ in range(10)]
    for lease in leases[::2]:
        assert lease is not None
        ledger.renew(lease.id, ALICE)
        ledger.assign(ALICE, TRAIN, uuid4())
    assert ledger.offer(ALICE, uuid4(), [TRAIN], tiny) is None
    assert ledger.offer(BOB, uuid4(), [TRAIN], tiny) is not None


def test_a_scheduler_whose_ended_jobs_are_kept_in_number_dispatches_no_more_until_they_are_removed() -> None:
    clock = SetClock()
    ledger = ledger_of(WHOLE, clock, kept_s=3600)
    for _ in range(MAX_ENDED_PER_SCHEDULER):
        run_to_end(ledger, ALICE)
    with pytest.raises(LedgerError, match="64 ended jobs"):
        run_to_end(ledger, ALICE)
    run_to_end(ledger, BOB)
    assert len(ledger.state().ended) == MAX_ENDED_PER_SCHEDULER + 1
    clock.now += 3601
    ledger.expire()
    assert not ledger.state().ended
    run_to_end(ledger, ALICE)


def test_a_job_that_was_recorded_but_never_started_counts_as_kept_and_has_no_end_to_report() -> None:
    clock = SetClock()
    ledger = ledger_of(WHOLE, clock, kept_s=3600)
    lease, task_ids = held(ledger), [uuid4() for _ in range(MAX_ENDED_PER_SCHEDULER)]
    for task_id in task_ids:
        ledger.assign(ALICE, TRAIN, task_id)
        ledger.unassign(task_id, recorded=True)
    again = ledger_of(WHOLE, clock, kept_s=3600)
    again.restore(ledger.state())
    for each in (ledger, again):
        with pytest.raises(LedgerError, match="64 ended jobs"):
            each.assign(ALICE, TRAIN, uuid4())
        assert each.find(task_ids[0], ALICE) is None
        assert not each.unreported
        assert each.renew(lease.id, ALICE)
    clock.now += 3601
    ledger.expire()
    assert not ledger.state().ended


def test_many_schedulers_share_the_number_of_kept_jobs_and_a_new_one_still_dispatches() -> None:
    ledger = ledger_of(WHOLE, SetClock(), kept_s=3600)
    crowd = [peer_id_from_ed25519(number.to_bytes(32)) for number in range(100)]
    for number in range(100 * MAX_ENDED_PER_SCHEDULER):
        with suppress(LedgerError):
            run_to_end(ledger, crowd[number % 100])
    assert len(ledger.state().ended) <= MAX_ENDED
    run_to_end(ledger, ALICE)


def run_to_end(ledger: Ledger, scheduler: str) -> None:
    """Let a scheduler run a job, which fails; its scheduler knows."""
    lease = held(ledger, scheduler)
    task_id = uuid4()
    try:
        ledger.assign(scheduler, TRAIN, task_id)
    except LedgerError:
        ledger._leases.pop(lease.id)
        raise
    ledger.end(task_id, "Failed")
    ledger.record_reported(task_id)


def test_an_accepted_lease_counts_by_its_price_from_its_acceptance_to_its_end(clock: SetClock) -> None:
    ledger = ledger_of(WHOLE, clock)
    lease = ledger.offer(ALICE, uuid4(), [TRAIN], HALF, price=3.0)
    assert lease is not None
    clock.now += 0.25
    for _ in range(4):
        ledger.renew(lease.id, ALICE)
        clock.now += 5
    ledger.assign(ALICE, TRAIN, task_id := uuid4())
    ledger.end(task_id, "Finished")
    assert ledger.accounts.of == (Account(scheduler=ALICE, leases=1, leased_s=20, earned=60),)


def test_offers_count_only_once_they_are_accepted_and_idle_leases_count_too(clock: SetClock) -> None:
    ledger = ledger_of(WHOLE, clock)
    ledger.offer(ALICE, uuid4(), [TRAIN], HALF, price=3.0)
    idle = ledger.offer(BOB, uuid4(), [TRAIN], HALF, price=2.0)
    assert idle is not None
    ledger.renew(idle.id, BOB)
    clock.now += 10
    ledger.expire()
    assert ledger.accounts.of == (Account(scheduler=BOB, leases=1, leased_s=10, earned=20),)


def test_the_accounts_survive_a_restart_and_count_no_lease_twice(clock: SetClock) -> None:
    ledger = ledger_of(WHOLE, clock)
    lease = ledger.offer(ALICE, uuid4(), [TRAIN], HALF, price=3.0)
    assert lease is not None
    ledger.renew(lease.id, ALICE)
    ledger.assign(ALICE, TRAIN, task_id := uuid4())
    clock.now += 5
    (running,) = ledger.leases
    ledger.end(task_id, "Failed")
    again = ledger_of(WHOLE, clock)
    again.restore(LedgerState.model_validate_json(ledger.state().model_dump_json()))
    again.recover(running)
    clock.now += 100
    again.end(task_id, "Failed")
    assert again.accounts.of == (Account(scheduler=ALICE, leases=1, leased_s=5, earned=15),)


def test_twenty_schedulers_have_accounts_and_the_others_share_one() -> None:
    accounts = Accounts()
    for number in range(30):
        accounts = accounts.count(uuid4(), f"scheduler {number}", price=2, leased_s=1)
    accounts = accounts.count(uuid4(), "scheduler 3", price=2, leased_s=1)
    assert len(accounts.of) == 21
    by_name = {account.scheduler: account for account in accounts.of}
    assert (by_name["other"].leases, by_name["other"].earned) == (10, 20)
    assert by_name["scheduler 3"].leases == 2
    assert sum(account.leases for account in accounts.of) == 31


def test_a_job_that_runs_for_too_long_loses_its_lease_however_often_that_is_renewed(clock: SetClock) -> None:
    ledger = ledger_of(WHOLE, clock, max_job_s=25)
    lease, idle = held(ledger), held(ledger, BOB)
    clock.now += 9
    ledger.assign(ALICE, TRAIN, uuid4())
    for _ in range(3):
        ledger.renew(lease.id, ALICE)
        ledger.renew(idle.id, BOB)
        clock.now += 8
        assert not ledger.expire()
    clock.now += 1
    (over,) = ledger.expire()
    assert (over.id, over.state) == (lease.id, "ending")
    assert "as long as a job of this worker may run" in over.end_reason
    with pytest.raises(LedgerError, match="expired"):
        ledger.renew(lease.id, ALICE)


def test_at_the_deadline_of_a_suspended_worker_all_leases_end(clock: SetClock) -> None:
    ledger = ledger_of(WHOLE, clock)
    held(ledger, BOB)
    busy = held(ledger)
    ledger.assign(ALICE, TRAIN, uuid4())
    ledger.rules = replace(ledger.rules, closes=clock.now + 5)
    clock.now += 4
    assert not ledger.expire()
    clock.now += 1
    assert len(ledger.expire()) == 2
    (ending,) = ledger.leases
    assert (ending.id, ending.state) == (busy.id, "ending")
    assert "suspended" in ending.end_reason


def test_other_rules_apply_to_renewals_and_offers_from_then_on(clock: SetClock) -> None:
    ledger = ledger_of(WHOLE, clock)
    lease = held(ledger)
    ledger.rules = replace(ledger.rules, capacity=Capacity(HALF), duration_s=100)
    assert ledger.offer(BOB, uuid4(), [TRAIN], Resources(cpu=0.1)) is None
    assert ledger.renew(lease.id, ALICE) == clock.now + 100


def test_a_scheduler_gets_no_lease_beyond_its_share(clock: SetClock) -> None:
    ledger = ledger_of(WHOLE, clock, share=HALF)
    assert ledger.offer(ALICE, uuid4(), [TRAIN], Resources(cpu=1, gpu=4))
    assert ledger.offer(ALICE, uuid4(), [TRAIN], Resources(gpu=0.1)) is None
    assert ledger.offer(ALICE, uuid4(), [TRAIN], Resources(cpu=1))
    assert ledger.offer(BOB, uuid4(), [TRAIN], Resources(gpu=4))
