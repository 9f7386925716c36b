from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from hypha_contracts.limits import MAX_SPEC_BYTES
from hypha_messages.api import DispatchJob, DispatchJobOutcome, RenewLease, RenewLeaseOutcome, RequestData
from hypha_messages.job import JobSpec
from hypha_worker.job import AdoptedJob, Job
from hypha_worker.market.lease_service import LeaseService
from hypha_worker.market.ledger import Lease, LedgerState
from hypha_worker.market.ledger_file import LedgerFile
from hypha_worker.market.starts import StartRecord
from hypha_worker.telemetry import Telemetry
from support.jobs import SCHEDULER, train_spec
from support.worker import ALICE, BOB, HALF, TRAIN, WHOLE, Jobs, Market, ledger_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write files in place: the clock would jump while a thread is at work."""

    async def run_sync(function: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


class Setting:
    """A lease service whose schedulers and jobs are in memory; its ledger's file is real."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "leases.json"
        self.market = Market()
        self.jobs = Jobs()
        self.ledger = ledger_of(WHOLE, trio.current_time)
        self.starts = StartRecord()
        self.file = LedgerFile(self.path)
        self.capacity_freed = trio.Event()
        self.service = LeaseService(
            self.market,
            self.ledger,
            self.file,
            self.jobs,
            Telemetry(),
            starts=self.starts,
            on_offer_accepted=lambda _scheduler: None,
            on_offer_lapsed=lambda _scheduler: None,
            on_capacity_freed=lambda: self.capacity_freed.set(),  # noqa: PLW0108 - a test replaces the event
        )

    def offer(self, scheduler: str = ALICE) -> Lease:
        lease = self.ledger.offer(scheduler, uuid4(), [TRAIN], HALF)
        assert lease is not None
        return lease

    async def renew(self, lease: Lease, scheduler: str = ALICE) -> RenewLeaseOutcome:
        answer = await self.service.answer(scheduler, RenewLease(id=lease.id))
        assert isinstance(answer, RenewLeaseOutcome)
        return answer

    async def dispatch(self, task_id: UUID, scheduler: str = ALICE, spec: JobSpec | None = None) -> DispatchJobOutcome:
        answer = await self.service.answer(scheduler, DispatchJob(id=task_id, spec=spec or train_spec()))
        assert isinstance(answer, DispatchJobOutcome)
        return answer

    def on_disk(self) -> list[Lease]:
        return list(LedgerState.model_validate_json(self.path.read_bytes()).leases) if self.path.exists() else []


@asynccontextmanager
async def service(directory: Path) -> AsyncIterator[Setting]:
    setting = Setting(directory)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(setting.service.run)
        yield setting
        nursery.cancel_scope.cancel()


async def test_a_renewal_is_on_the_disk_before_it_is_answered(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        lease = setting.offer()
        answer = await setting.renew(lease)
        assert answer.timeout is not None
        assert answer.timeout.timestamp == pytest.approx(trio.current_time() + 10, abs=1)
        assert [kept.id for kept in setting.on_disk()] == [lease.id]


async def test_another_scheduler_cannot_renew_the_lease(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        lease = setting.offer()
        assert (await setting.renew(lease, BOB)).failed
        assert not (await setting.renew(lease, ALICE)).failed


async def test_a_dispatched_job_runs_under_its_lease_and_is_on_the_disk(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        lease, task_id = setting.offer(), uuid4()
        await setting.renew(lease)
        answer = await setting.dispatch(task_id)
        assert answer.id == task_id
        assert setting.jobs.running[task_id].id == lease.id
        assert [kept.task_id for kept in setting.on_disk()] == [task_id]


async def test_a_dispatch_without_a_lease_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with service(tmp_path) as setting:
        setting.offer(ALICE)
        assert (await setting.dispatch(uuid4(), BOB)).failed
        assert "no live lease" in caplog.text
        assert not setting.jobs.running


async def test_an_offer_that_lapses_is_logged_with_its_scheduler(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with service(tmp_path) as setting:
        lease = setting.offer()
        await setting.capacity_freed.wait()
        assert f"{ALICE}: did not accept the offer of lease {lease.id} in time" in caplog.text


async def test_a_repeated_dispatch_starts_the_task_once_even_after_its_end(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.offer()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(setting.dispatch, task_id)
        assert not (await setting.dispatch(task_id)).failed
        setting.jobs.finish(task_id)
        await trio.sleep(0.1)
        assert not (await setting.dispatch(task_id)).failed
        assert not setting.jobs.running


async def test_a_slow_start_does_not_delay_other_tasks(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        slow, quick = uuid4(), uuid4()
        setting.jobs.start_s[slow] = 8
        for _ in range(2):
            await setting.renew(setting.offer())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(setting.dispatch, slow)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(1):
                assert not (await setting.dispatch(quick)).failed
            assert slow not in setting.jobs.running
        assert setting.jobs.running.keys() == {slow, quick}
        assert len({lease.id for lease in setting.jobs.running.values()}) == 2


@pytest.mark.parametrize("broken", [False, True])
async def test_a_dispatch_repeated_during_the_start_gets_the_same_answer(tmp_path: Path, *, broken: bool) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.jobs.broken, setting.jobs.start_s[task_id] = broken, 5
        await setting.renew(setting.offer())
        answers = []

        async def dispatch() -> None:
            answers.append(await setting.dispatch(task_id))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(dispatch)
                await trio.sleep(1)
        assert answers == [answers[0]] * 3
        assert answers[0].failed == broken
        assert setting.jobs.starts == [task_id]


async def test_offers_count_by_their_outcome(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        accepted, _ = setting.offer(), setting.offer(BOB)
        await setting.renew(accepted)
        await setting.capacity_freed.wait()
        assert setting.ledger.offers_ended == {"accepted": 1, "lapsed": 1}


async def test_a_lease_that_lapses_during_the_start_ends_the_job_after_the_start(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.jobs.start_s[task_id] = 3
        setting.offer()
        await setting.dispatch(task_id)
        await trio.sleep(1)
        assert not setting.jobs.running
        assert setting.ledger.free() == WHOLE


async def test_a_lease_that_lapses_during_a_failing_start_is_released(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.jobs.broken, setting.jobs.start_s[task_id] = True, 3
        setting.offer()
        assert (await setting.dispatch(task_id)).failed
        setting.capacity_freed = trio.Event()
        with trio.fail_after(1):
            await setting.capacity_freed.wait()
        assert setting.ledger.free() == WHOLE


async def test_a_scheduler_keeps_its_lease_when_the_job_cannot_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(tmp_path) as setting:
        setting.offer()
        setting.jobs.broken = True
        assert (await setting.dispatch(uuid4())).failed
        assert "no such program" in caplog.text
        setting.jobs.broken = False
        assert not (await setting.dispatch(uuid4())).failed


async def test_a_renewal_extends_the_job(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        lease, task_id = setting.offer(), uuid4()
        await setting.dispatch(task_id)
        answer = await setting.renew(lease)
        assert answer.timeout is not None
        assert setting.jobs.deadlines[task_id] == pytest.approx(answer.timeout.timestamp)


async def test_an_expired_lease_ends_its_job_and_the_scheduler_gets_a_report(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        lease, task_id = setting.offer(), uuid4()
        await setting.renew(lease)
        await setting.dispatch(task_id)
        await trio.sleep(11)
        assert not setting.jobs.running
        assert [report.status.type for report in setting.market.statuses[ALICE]] == ["Failed"]
        assert setting.ledger.free() == WHOLE
        assert setting.on_disk() == []


async def test_a_finished_job_releases_its_lease_and_notifies_the_arbiter(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.offer()
        await setting.dispatch(task_id)
        setting.jobs.finish(task_id)
        with trio.fail_after(1):
            await setting.capacity_freed.wait()
        assert setting.ledger.free() == WHOLE
        await trio.sleep(0.1)
        (report,) = setting.market.statuses[ALICE]
        assert (report.task_id, report.status.type) == (task_id, "Finished")


async def test_an_end_is_reported_until_the_scheduler_can_be_reached(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.offer()
        await setting.dispatch(task_id)
        setting.market.unreachable.add(ALICE)
        setting.jobs.finish(task_id)
        await trio.sleep(20)
        assert not setting.market.statuses[ALICE]
        setting.market.unreachable.clear()
        await trio.sleep(20)
        assert len(setting.market.statuses[ALICE]) == 1


async def test_reports_to_a_silent_scheduler_end_after_report_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.offer()
        await setting.dispatch(task_id)
        setting.market.unreachable.add(ALICE)
        setting.jobs.finish(task_id)
        await trio.sleep(200)
        assert "did not take the report" in caplog.text
        assert setting.ledger.unreported == ()
        assert setting.on_disk() == []


async def test_a_scheduler_that_refuses_a_report_gets_no_second_one(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.offer()
        await setting.dispatch(task_id)
        setting.market.refusing.add(ALICE)
        setting.jobs.finish(task_id)
        await trio.sleep(0.2)
        assert setting.ledger.unreported == ()


async def test_a_stopping_node_ends_its_jobs_and_reports_the_ends(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        setting.offer()
        task_id = uuid4()
        await setting.dispatch(task_id)
        setting.offer(BOB)
        await setting.service.end_all("shutting down", 5)
        assert not setting.jobs.running
        assert not setting.ledger.leases
        assert [report.task_id for report in setting.market.statuses[ALICE]] == [task_id]


async def test_a_stopping_node_does_not_wait_long_for_a_dead_scheduler(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        setting.offer()
        await setting.dispatch(uuid4())
        setting.market.unreachable.add(ALICE)
        before = trio.current_time()
        await setting.service.end_all("shutting down", 5)
        assert trio.current_time() - before < 6
        assert not setting.jobs.running


async def test_requests_that_workers_do_not_serve_are_refused(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        assert await setting.service.answer(ALICE, RequestData(dataset="digits")) is None


async def restart(setting: Setting, *adopted: AdoptedJob) -> Setting:
    """A second node on the first one's files, as it is after it has adopted what runs."""
    again = Setting(setting.path.parent)
    if (saved := await again.file.load()) is not None:
        again.ledger.restore(saved)
    await again.service.resume(adopted)
    return again


async def test_after_a_restart_the_job_and_its_lease_go_on(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        lease, task_id = setting.offer(), uuid4()
        await setting.renew(lease)
        await setting.dispatch(task_id)
    job = Job(task_id, lease.id, ALICE, train_spec(), HALF, trio.current_time() + 10)
    again = await restart(setting, AdoptedJob(job, running=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.service.run)
        assert not (await again.renew(lease)).failed
        assert not (await again.dispatch(task_id)).failed
        assert not again.jobs.running, "the job was started a second time"
        nursery.cancel_scope.cancel()


async def test_a_jobs_own_record_may_grant_its_lease_more_time_than_the_ledger(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        lease, task_id = setting.offer(), uuid4()
        await setting.renew(lease)
        await setting.dispatch(task_id)
    await trio.sleep(60)
    job = Job(task_id, lease.id, ALICE, train_spec(), HALF, trio.current_time() + 10)
    again = await restart(setting, AdoptedJob(job, running=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.service.run)
        await trio.sleep(5)
        assert not (await again.renew(lease)).failed
        nursery.cancel_scope.cancel()


async def test_a_restarted_node_terminates_a_job_that_was_ending(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        lease, task_id = setting.offer(), uuid4()
        await setting.renew(lease)
        await setting.dispatch(task_id)
        setting.jobs.running.clear()  # which does not end
        await trio.sleep(20)
    job = Job(task_id, lease.id, ALICE, train_spec(), HALF, trio.current_time() - 10)
    again = await restart(setting, AdoptedJob(job, running=True))
    (again.jobs.running[task_id],) = again.ledger.leases
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.service.run)
        await trio.sleep(1)
        assert again.ledger.free() == WHOLE
        nursery.cancel_scope.cancel()


async def test_the_job_manager_is_notified_of_a_reported_end(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        lease, task_id = setting.offer(), uuid4()
        await setting.dispatch(task_id)
        setting.market.unreachable.add(ALICE)
        setting.jobs.finish(task_id)
        await trio.sleep(5)
        assert setting.jobs.reported == []
        setting.market.unreachable.clear()
        await trio.sleep(20)
        assert setting.jobs.reported == [task_id]
    job = Job(task_id, lease.id, ALICE, train_spec(), HALF, trio.current_time())
    again = await restart(setting, AdoptedJob(job, running=False))
    again.jobs.running[task_id] = lease
    again.jobs.finish(task_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.service.run)
        await trio.sleep(1)
        assert again.jobs.reported == [task_id]
        assert ALICE not in again.market.statuses
        nursery.cancel_scope.cancel()


async def test_a_lost_job_is_reported_as_unknown(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.offer()
        await setting.dispatch(task_id)
    again = await restart(setting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.service.run)
        await trio.sleep(0.1)
        assert [report.status.type for report in again.market.statuses[ALICE]] == ["Unknown"]
        assert again.ledger.free() == WHOLE
        nursery.cancel_scope.cancel()


async def test_the_next_node_reports_an_unreported_end(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        task_id = uuid4()
        setting.offer()
        await setting.dispatch(task_id)
        setting.market.unreachable.add(ALICE)
        setting.jobs.finish(task_id)
        await trio.sleep(0.2)
    again = await restart(setting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.service.run)
        await trio.sleep(0.1)
        assert [report.status.type for report in again.market.statuses[ALICE]] == ["Finished"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 2}', b'{"leases": [{}]}', b"\xff"])
async def test_a_damaged_file_is_moved_aside_and_jobs_keep_their_leases(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "leases.json").write_bytes(damage)
    job = Job(uuid4(), uuid4(), ALICE, train_spec(), HALF, trio.current_time() + 10)
    again = await restart(Setting(tmp_path), AdoptedJob(job, running=True))
    assert "leases.unreadable" in caplog.text
    assert [(lease.id, lease.task_id) for lease in again.ledger.leases] == [(job.lease_id, job.task_id)]
    assert again.ledger.renew(job.lease_id, ALICE) > 0


async def test_a_full_disk_is_logged_and_costs_no_lease(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "gone"
    async with service(directory) as setting:
        assert not (await setting.renew(setting.offer())).failed
        assert "cannot write" in caplog.text


async def test_concurrent_saves_share_writes_and_none_returns_early(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    seen: list[bool] = []

    async def hold(scheduler: str) -> None:
        lease = setting.ledger.offer(scheduler, uuid4(), [TRAIN], HALF)
        assert lease is not None
        setting.ledger.renew(lease.id, scheduler)
        await setting.file.save(setting.ledger.state())
        seen.append(lease.id in [kept.id for kept in setting.on_disk()])

    async with trio.open_nursery() as nursery:
        for who in (ALICE, BOB):
            nursery.start_soon(hold, who)
    assert seen == [True, True]


@pytest.mark.parametrize(("letter", "bytes_each"), [("a", 1), ("ä", 2), ("\0", 6)])
async def test_a_job_specification_that_is_too_large_is_refused_and_kept_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, letter: str, bytes_each: int
) -> None:
    def spec_of(size: int) -> JobSpec:
        data = {"type": "scheduler", "peer": SCHEDULER, "dataset": letter * size}
        return train_spec(data=data)

    async with service(tmp_path) as setting:
        setting.offer()
        frame = len(spec_of(0).model_dump_json())
        fits = (MAX_SPEC_BYTES - frame) // bytes_each
        assert (await setting.dispatch(uuid4(), spec=spec_of(fits + 1))).failed
        assert "its specification has" in caplog.text
        assert f"the limit is {MAX_SPEC_BYTES}" in caplog.text
        assert not setting.jobs.starts
        assert not setting.on_disk()
        assert not (await setting.dispatch(uuid4(), spec=spec_of(fits))).failed


async def test_a_job_that_exceeds_its_time_is_ended_and_its_scheduler_notified(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        setting.ledger.rules = replace(setting.ledger.rules, max_job_s=12)
        lease, task_id = setting.offer(), uuid4()
        await setting.renew(lease)
        await setting.dispatch(task_id)
        await trio.sleep(8)
        assert not (await setting.renew(lease)).failed
        await trio.sleep(8)
        assert not setting.jobs.running
        (report,) = setting.market.statuses[ALICE]
        assert (report.task_id, report.status.type) == (task_id, "Failed")
        assert "as long as a job of this worker may run" in setting.jobs.reasons[task_id]


async def test_the_deadline_of_a_suspension_ends_all_jobs_and_notifies_their_schedulers(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        tasks = []
        for scheduler in (ALICE, BOB):
            tasks.append(uuid4())
            lease = setting.offer(scheduler)
            await setting.dispatch(tasks[-1], scheduler)
            await setting.renew(lease, scheduler)
        setting.ledger.rules = replace(setting.ledger.rules, closes=trio.current_time() + 5)
        await trio.sleep(4)
        assert len(setting.jobs.running) == 2
        await trio.sleep(2)
        assert not setting.jobs.running
        reported = [report.task_id for scheduler in (ALICE, BOB) for report in setting.market.statuses[scheduler]]
        assert reported == tasks
        assert setting.ledger.free() == WHOLE


async def test_two_jobs_that_the_cluster_does_not_start_stop_the_offers_and_one_that_starts_allows_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(tmp_path) as setting:
        for _ in range(2):
            setting.offer()
            await setting.dispatch(task_id := uuid4())
            setting.jobs.fail(task_id, start_failed=1.0)
            await trio.sleep(1)
        assert setting.starts.max_unstarted == 0
        assert "no more offers until a job or a probe has started, because jobs do not start: no image" in caplog.text
        setting.offer()
        await setting.dispatch(task_id := uuid4())
        assert setting.ledger.unstarted == 1
        setting.jobs.begin(task_id)
        await trio.sleep(1)
        assert setting.starts.max_unstarted is None
        assert setting.ledger.unstarted == 0


async def test_a_job_that_fails_by_its_own_fault_stops_nothing(tmp_path: Path) -> None:
    async with service(tmp_path) as setting:
        setting.starts.on_proven(0.0)
        for _ in range(3):
            setting.offer()
            await setting.dispatch(task_id := uuid4())
            setting.jobs.fail(task_id)
            await trio.sleep(1)
        assert setting.starts.max_unstarted is None


async def test_a_job_of_a_lost_ledger_keeps_its_price_and_its_time(tmp_path: Path) -> None:
    task_id, now = uuid4(), trio.current_time()
    times = {"price": 7.0, "accepted": now - 20, "began": now - 10}
    job = Job(task_id, uuid4(), ALICE, train_spec(), HALF, now + 10, **times)
    setting = Setting(tmp_path)
    await setting.service.resume([AdoptedJob(job, running=True, started=False)])
    (lease,) = setting.ledger.leases
    assert (lease.price, lease.accepted, lease.dispatched, lease.started) == (7.0, now - 20, now - 10, False)
