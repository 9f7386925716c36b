"""Whether the jobs of a worker start, and when the operator probes."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.reasons import WorkerReason
from hypha_operator.machinery.conditions import exact_timestamp, merged
from hypha_operator.offers.starts import (
    JobStart,
    ObservedStarts,
    Probe,
    Round,
    StartsDecision,
    decide_starts,
    probe_of,
)
from hypha_operator.pods.state import Finding
from hypha_resources.job import Amounts
from hypha_resources.worker_jobs import Jobs
from support.job_pods import START, at, condition, job, pod, running, terminated, waiting
from support.operator_objects import hypha_job

TRAIN, AGGREGATE = "train/diloco-transformer", "aggregate/parameter-server"
IMAGE = Finding(JobReason.IMAGE_PULL, "the node cannot pull image nothing:0.")
QUEUE = Finding(JobReason.QUEUE_TIMEOUT, "the queue has not admitted it.")
MISSING = Finding(JobReason.DEVICES_MISSING, "no node has nvidia.com/gpu.")


def seconds(after: float) -> Any:
    return START + timedelta(seconds=after)


def started(after: float, executor: str = TRAIN) -> JobStart:
    return JobStart(executor, Amounts(), started=seconds(after))


def failed(after: float, executor: str = TRAIN, finding: Finding = IMAGE) -> JobStart:
    return JobStart(executor, Amounts(), failed=seconds(after), finding=finding)


def observed(*jobs: JobStart, after: float = 100, **changes: Any) -> ObservedStarts:
    return ObservedStarts(
        now=seconds(after),
        generation=1,
        executors=(TRAIN, AGGREGATE),
        jobs=jobs,
        before={},
        round=Round(1, due=START),
        **changes,
    )


def then(before: ObservedStarts, decision: StartsDecision, after: float, **changes: Any) -> ObservedStarts:
    """Return the next observation, with the status and the memory that the previous one led to."""
    known = {"status": {"conditions": [dict(before.before)] if before.before else []}}
    (written,) = merged(known, [decision.condition], 1, before.now)
    proven = datetime.fromisoformat(exact_timestamp(decision.proven)) if decision.proven else None
    kept = {"before": written, "proven": proven, "round": decision.round, "now": seconds(after), "probe": None}
    return replace(before, **kept | changes)


def verdict(decision: StartsDecision) -> tuple[bool | None, str]:
    return decision.condition.status, decision.condition.reason


def probe(**state: Any) -> Probe:
    return Probe(**{"uid": "1", "executor": TRAIN, "generation": 1} | state)


def blocked(*, after: float = 100) -> tuple[ObservedStarts, StartsDecision]:
    """A worker that makes no offers, because two of its jobs could not pull their image."""
    observation = observed(failed(50), failed(60), after=after)
    return observation, decide_starts(observation)


def test_a_worker_without_jobs_may_sell_and_is_not_probed() -> None:
    decision = decide_starts(observed())
    assert verdict(decision) == (None, "NotTried")
    assert (decision.proven, decision.begin_probe) == (None, None)


def test_the_first_job_that_starts_is_the_proof() -> None:
    decision = decide_starts(observed(started(40)))
    assert verdict(decision) == (True, "JobsStart")
    assert decision.proven == seconds(40)


def test_a_proof_is_not_renewed_by_each_job() -> None:
    decision = decide_starts(observed(started(40), started(90), proven=seconds(40)))
    assert decision.proven == seconds(40)


def test_what_blocks_the_first_job_is_named_before_the_job_fails() -> None:
    pending = JobStart(TRAIN, Amounts(), finding=IMAGE)
    decision = decide_starts(observed(pending))
    assert verdict(decision) == (None, "ImagePull")
    assert IMAGE.message in decision.condition.message
    assert decision.begin_probe is None


def test_after_one_failed_start_the_operator_probes_and_the_worker_still_sells() -> None:
    decision = decide_starts(observed(failed(50)))
    assert verdict(decision) == (None, "ImagePull")
    assert decision.begin_probe == TRAIN


def test_after_two_failed_starts_the_worker_makes_no_offers() -> None:
    _, decision = blocked()
    assert verdict(decision) == (False, "ImagePull")
    assert "2 jobs of train/diloco-transformer did not start" in decision.condition.message
    assert IMAGE.message in decision.condition.message
    assert decision.begin_probe == TRAIN


def test_a_failed_job_and_a_failed_probe_are_two_failed_starts() -> None:
    first = observed(failed(50))
    second = then(first, decide_starts(first), 161, probe=probe(finding=QUEUE, over=True))
    decision = decide_starts(second)
    assert verdict(decision) == (False, "QueueTimeout")
    assert decision.end_probe


def test_a_start_in_between_voids_a_failed_start() -> None:
    decision = decide_starts(observed(failed(50), started(60), proven=seconds(40)))
    assert verdict(decision) == (True, "JobsStart")
    assert decision.proven == seconds(60), "newer than the failure, so that the node counts from there"


def test_a_start_of_another_executor_voids_nothing() -> None:
    decision = decide_starts(observed(failed(50), failed(60), started(70, AGGREGATE)))
    assert verdict(decision) == (False, "ImagePull")


def test_a_probe_names_what_blocks_it_at_once() -> None:
    first, decision = blocked()
    stuck = then(first, decision, 110, probe=probe(finding=QUEUE))
    decision = decide_starts(stuck)
    assert verdict(decision) == (False, "QueueTimeout")
    assert not decision.end_probe
    assert decision.next_s <= 5


def test_a_probe_that_starts_ends_the_trouble() -> None:
    first, decision = blocked()
    second = then(first, decision, 110, probe=probe(started=True))
    decision = decide_starts(second)
    assert verdict(decision) == (True, "JobsStart")
    assert (decision.proven, decision.end_probe) == (seconds(110), True)
    later = then(second, decision, 500, probe=probe(started=True))
    assert decide_starts(later).proven == seconds(110), "the probe is still being deleted"


def test_the_pauses_between_probes_grow_and_are_bounded() -> None:
    observation, decision = blocked()
    pauses, now = [], 100.0
    for number in range(9):
        over = probe(uid=str(number), finding=IMAGE, over=True)
        observation = then(observation, decision, now, probe=over)
        decision = decide_starts(observation)
        assert decision.end_probe
        repeated = decide_starts(then(observation, decision, now, probe=over))
        assert repeated.round == decision.round, "a probe that is still being deleted counts once"
        observation = then(observation, decision, now)
        decision = decide_starts(observation)
        assert decision.begin_probe is None
        pauses.append(decision.next_s)
        now += decision.next_s
        observation = then(observation, decision, now)
        decision = decide_starts(observation)
        assert decision.begin_probe == TRAIN
    assert pauses == [15, 30, 60, 120, 240, 480, 600, 600, 600]


def test_the_reason_stays_known_while_nothing_is_probed() -> None:
    first, decision = blocked()
    second = then(first, decision, 110, probe=probe(finding=QUEUE, over=True))
    decision = decide_starts(second)
    pausing = decide_starts(then(second, decision, 111))
    assert verdict(pausing) == (False, "QueueTimeout")
    assert pausing.condition.message == decision.condition.message


def test_a_change_of_the_spec_is_probed_at_once() -> None:
    first, decision = blocked()
    second = then(first, decision, 110, probe=probe(finding=IMAGE, over=True))
    decision = decide_starts(second)
    stale = then(second, decision, 112, generation=2, probe=probe(uid="2", finding=IMAGE))
    decision = decide_starts(stale)
    assert decision.end_probe
    assert verdict(decision)[0] is False
    decision = decide_starts(then(stale, decision, 113))
    assert decision.begin_probe == TRAIN


def test_each_executor_that_failed_has_to_pass() -> None:
    first = observed(failed(50), failed(60, AGGREGATE))
    decision = decide_starts(first)
    assert (verdict(decision)[0], decision.begin_probe) == (False, TRAIN)
    second = then(first, decision, 110, probe=probe(started=True))
    decision = decide_starts(second)
    assert (verdict(decision)[0], decision.end_probe) == (False, True)
    third = then(second, decision, 112)
    decision = decide_starts(third)
    assert decision.begin_probe == AGGREGATE
    fourth = then(third, decision, 115, probe=probe(uid="2", executor=AGGREGATE, started=True))
    assert verdict(decide_starts(fourth)) == (True, "JobsStart")


def test_a_worker_stays_blocked_though_its_failed_jobs_were_deleted() -> None:
    first, decision = blocked()
    forgotten = then(first, decision, 4000, jobs=(), round=Round(1, due=seconds(4000)))
    decision = decide_starts(forgotten)
    assert verdict(decision) == (False, "ImagePull")
    assert decision.begin_probe == TRAIN


def test_a_failed_start_stays_known_though_its_job_was_deleted() -> None:
    """The node counts it until a probe has started."""
    first = observed(failed(50))
    second = then(first, decide_starts(first), 110, jobs=(), probe=probe())
    decision = decide_starts(second)
    assert verdict(decision) == (None, "ImagePull")
    assert not decision.end_probe
    third = then(second, decision, 120, probe=probe(finding=IMAGE, over=True))
    assert verdict(decide_starts(third)) == (False, "ImagePull")
    shown = decide_starts(then(second, decision, 120, probe=probe(started=True)))
    assert (verdict(shown), shown.proven) == ((True, "JobsStart"), seconds(120))
    assert verdict(decide_starts(then(second, decision, 120, jobs=(started(115),)))) == (True, "JobsStart")


def test_the_executor_of_a_probe_is_known_until_the_probe_ends() -> None:
    first, decision = blocked()
    assert decision.probed == TRAIN
    stuck = then(first, decision, 110, probe=probe())
    decision = decide_starts(stuck)
    assert decision.probed == TRAIN
    assert decide_starts(then(stuck, decision, 120, probe=probe(started=True))).probed is None


def test_a_job_that_starts_under_an_earlier_lease_ends_the_trouble() -> None:
    first, decision = blocked()
    decision = decide_starts(then(first, decision, 130, jobs=(*first.jobs, started(120))))
    assert verdict(decision) == (True, "JobsStart")


def test_missing_devices_block_without_any_failed_job_and_are_probed_once_they_are_there() -> None:
    first = observed(missing=MISSING)
    decision = decide_starts(first)
    assert verdict(decision) == (False, "DevicesMissing")
    assert decision.begin_probe is None
    assert decision.next_s <= 20
    mended = then(first, decision, 130, missing=None)
    decision = decide_starts(mended)
    assert decision.begin_probe == TRAIN
    assert verdict(decision)[0] is False


@pytest.mark.parametrize("changes", [{"may_probe": False}, {"missing": MISSING}])
def test_a_worker_that_could_not_sell_anyway_is_not_probed(changes: dict[str, Any]) -> None:
    first, decision = blocked()
    assert decide_starts(then(first, decision, 110, **changes)).begin_probe is None
    assert decide_starts(then(first, decision, 110, **changes, probe=probe())).end_probe


def test_other_executors_have_to_be_proven_anew() -> None:
    proven = observed(started(40), failed(30), proven=seconds(40), changed=seconds(90))
    decision = decide_starts(proven)
    assert verdict(decision) == (None, "NotTried")
    assert decision.proven is None
    again = then(proven, decision, 130, jobs=(*proven.jobs, started(120)))
    assert decide_starts(again).proven == seconds(120)


CASES: dict[str, tuple[dict[str, Any], bool | None, bool | None, str | None]] = {
    "started": ({"phase": "Running", "startTime": at(5), "reason": "ExecutorRuns"}, True, None, None),
    "failed after its start": ({"phase": "Failed", "startTime": at(5), "reason": "Evicted"}, True, None, None),
    "could not pull": ({"phase": "Failed", "reason": "ImagePull", "completionTime": at(70)}, None, True, "ImagePull"),
    "cancelled before": ({"phase": "Failed", "reason": "Cancelled", "completionTime": at(70)}, None, None, None),
    "blocked": ({"phase": "Starting", "reason": "ImagePull", "stalled": True}, None, None, "ImagePull"),
    "queued": ({"phase": "Pending", "reason": "Queued"}, None, None, "Queued"),
    "starting": ({"phase": "Starting", "reason": "PodStarts"}, None, None, None),
    "of a newer version": ({"phase": "Failed", "reason": "Unheard", "completionTime": at(70)}, None, None, None),
}


@pytest.mark.parametrize(("status", "starts", "fails", "reason"), CASES.values(), ids=CASES)
def test_a_job_s_status_says_how_its_start_went(
    status: dict[str, Any], starts: bool | None, fails: bool | None, reason: str | None
) -> None:
    stalled = condition("Stalled", bool(status.pop("stalled", False)))
    ready = condition("Ready", False, message="why")
    start = JobStart.of(hypha_job(status=status | {"conditions": [stalled, ready]}))
    assert (start.started is not None, start.failed is not None) == (bool(starts), bool(fails))
    assert (start.finding.reason if start.finding else None) == reason
    assert start.executor == TRAIN


def probe_job(*conditions: dict[str, Any], suspend: bool = False) -> dict[str, Any]:
    made = job(*conditions, suspend=suspend)
    made["metadata"]["annotations"] = {"hypha.space/probed": TRAIN, "hypha.space/generation": "3"}
    return made


STUCK = pod("Pending", bridge=running(), executor=waiting("ErrImagePull", "not found"))
SLOW = pod("Pending", bridge=running(), executor=waiting("PodInitializing"))
HELP = pod("Failed", bridge=terminated(0), executor=terminated(2, message="unknown option --help"))
NO_PROGRAM = pod("Failed", bridge=terminated(0), executor=terminated(128, "StartError", "no such file"))
EVICTED = pod("Failed", reason="Evicted", message="low on memory")
REFUSED = Finding(JobReason.QUOTA_EXCEEDED, "exceeded quota")
PROBES: dict[str, tuple[dict[str, Any] | None, dict[str, Any], float, tuple[bool, bool, str | None]]] = {
    "runs": (pod(bridge=running(), executor=running()), {}, 10, (True, False, None)),
    "has ended at once": (pod("Succeeded", executor=terminated(0)), {}, 10, (True, False, None)),
    "does not know --help": (HELP, {}, 10, (True, False, None)),
    "has no such program": (NO_PROGRAM, {}, 10, (False, True, "StartFailed")),
    "has no such image": (STUCK, {}, 10, (False, False, "ImagePull")),
    "has had no such image for a minute": (STUCK, {}, 61, (False, True, "ImagePull")),
    "pulls for minutes": (SLOW, {}, 600, (False, False, None)),
    "pulls for half an hour": (SLOW, {}, 1801, (False, True, "StartTimeout")),
    "was evicted": (EVICTED, {}, 10, (False, True, "Evicted")),
    "was refused": (None, {"refused": REFUSED}, 11, (False, False, "QuotaExceeded")),
    "was refused for a minute": (None, {"refused": REFUSED}, 61, (False, True, "QuotaExceeded")),
    "was queued": (None, {"suspend": True}, 30, (False, False, None)),
    "was queued for a minute": (None, {"suspend": True}, 61, (False, False, "QueueTimeout")),
    "was queued for too long": (None, {"suspend": True}, 1e6, (False, True, "QueueTimeout")),
}


@pytest.mark.parametrize(("its_pod", "more", "after", "expected"), PROBES.values(), ids=PROBES)
def test_a_probe_that(
    its_pod: dict[str, Any] | None, more: dict[str, Any], after: float, expected: tuple[bool, bool, str | None]
) -> None:
    made = probe_job(suspend=more.get("suspend", False))
    found = probe_of(made, its_pod, more.get("refused"), Jobs(), seconds(after))
    assert (found.executor, found.generation) == (TRAIN, 3)
    assert (found.started, found.over, found.finding.reason if found.finding else None) == expected


def test_a_proof_within_the_second_of_a_change_stays_valid() -> None:
    before, decision = blocked()
    changed = then(before, decision, 100.2, changed=seconds(100.2), jobs=(), executors=(TRAIN,))
    proven = then(changed, decide_starts(changed), 100.9, probe=probe(started=True))
    shown = decide_starts(proven)
    assert verdict(shown) == (True, WorkerReason.JOBS_START)
    assert verdict(decide_starts(then(proven, shown, 102))) == (True, WorkerReason.JOBS_START)
