"""The operator's decisions about a HyphaJob, from its observations."""

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.limits import MAX_ENDED, MAX_ENDED_PER_SCHEDULER
from hypha_messages.types import peer_id_from_ed25519
from hypha_operator.jobs.children import network_policy
from hypha_operator.jobs.decision import Decision, Missing, decide, missing, retention_left, surplus
from hypha_operator.jobs.observed import ObservedJob
from hypha_operator.jobs.phase import classify, status_of
from hypha_operator.machinery.drift import marked
from hypha_operator.pods.state import Finding
from hypha_operator.settings import Settings
from hypha_resources.job import HyphaJobSpec
from support.job_pods import START, condition, job, pod, running, terminated, waiting
from support.operator_objects import LEASE, ROOM, hypha_job, worker_manifest, worker_spec

OTHER = peer_id_from_ed25519(bytes(range(32)))
SETTINGS = Settings("worker:1", "bridge:1", "trainer:1", "parameter-server:1")
RUNNING = pod(bridge=running(2), executor=running(), conditions=(condition("PodScheduled"), condition("Ready")))
ENDED = pod("Succeeded", bridge=terminated(0), executor=terminated(0))
STARTING = pod("Pending", bridge=waiting("PodInitializing"), executor=waiting("PodInitializing"))
HYPHA_JOB = hypha_job()
SPEC = HyphaJobSpec.model_validate(HYPHA_JOB["spec"])
POLICY = marked(network_policy(HYPHA_JOB, SPEC, worker_spec()))
REFUSED = Finding(JobReason.QUOTA_EXCEEDED, "exceeded quota: small")
INVALID = Finding(JobReason.INVALID_TEMPLATE, "the API server refuses the Job")
NEW = ObservedJob(HYPHA_JOB, SPEC, START + timedelta(seconds=60), worker_manifest(), lease_left_s=25.0)
PENDING = replace(NEW, job=job(), network_policy=POLICY)
ACTIVE = replace(PENDING, pods=(RUNNING,))


def specified(observed: ObservedJob, **changes: Any) -> ObservedJob:
    manifest = hypha_job(**changes)
    return replace(observed, hypha_job=manifest, spec=HyphaJobSpec.model_validate(manifest["spec"]))


def recorded(observed: ObservedJob) -> ObservedJob:
    """The same HyphaJob after its status was written."""
    status = status_of(observed, classify(observed))
    return replace(observed, hypha_job=HYPHA_JOB | {"status": status})


def later(observed: ObservedJob, seconds: float) -> ObservedJob:
    return replace(observed, now=observed.now + timedelta(seconds=seconds))


def at_age(observed: ObservedJob, seconds: float) -> ObservedJob:
    """The same job when its Job and its pod have this age."""
    return replace(observed, now=START + timedelta(seconds=seconds))


CLAIMING = replace(
    specified(NEW, resources=LEASE | {"gpu": 48.0}),
    worker=worker_manifest(
        resources=ROOM | {"gpu": {"deviceClassName": "gpu.example.org", "count": 2, "memory": "48Gi"}}
    ),
)
UNBUILDABLE = worker_manifest(executor={"template": {"spec": {"hostNetwork": True}}})
CASES: dict[str, tuple[ObservedJob, dict[str, Any]]] = {
    "a new job gets its policy, then its Job": (
        NEW,
        {"children": ["NetworkPolicy"], "creates": True, "phase": "Pending", "reason": "PodPending"},
    ),
    "a new job that claims devices gets a claim template, too": (
        CLAIMING,
        {"children": ["NetworkPolicy", "ResourceClaimTemplate"], "creates": True, "reason": "PodPending"},
    ),
    "a policy that is there is not applied again": (
        replace(NEW, network_policy=POLICY),
        {"creates": True, "reason": "PodPending"},
    ),
    "a Job without a pod waits": (PENDING, {"reason": "PodPending", "next_s": 25.0}),
    "a wait that has just begun is not reported yet": (at_age(PENDING, 4), {"writes": False, "next_s": 1.0}),
    "a wait for a pod that has just been created is not reported yet": (
        at_age(replace(PENDING, pods=(STARTING,)), 0),
        {"writes": False, "next_s": 5.0},
    ),
    "a pod whose bridge runs is reported at once": (
        at_age(replace(PENDING, pods=(pod(bridge=running(), executor=waiting("PodInitializing")),)), 1),
        {"phase": "Starting", "reason": "PodStarts"},
    ),
    "a wait of five seconds is reported": (at_age(PENDING, 5), {"reason": "PodPending"}),
    "a wait that begins while the operator observes is not reported yet": (
        at_age(PENDING, -1),
        {"writes": False, "next_s": 6.0},
    ),
    "a wait is reported at once if the operator's clock is far behind": (at_age(PENDING, -5), {"reason": "PodPending"}),
    "a pod that runs at once is reported at once": (
        at_age(ACTIVE, 1),
        {"phase": "Running", "event": None},
    ),
    "a pod that runs after a reported wait gets an Event": (
        replace(ACTIVE, hypha_job=recorded(at_age(PENDING, 5)).hypha_job),
        {"phase": "Running", "event": ("Normal", "ExecutorRuns")},
    ),
    "an obstacle is reported at once": (
        at_age(replace(PENDING, refused=REFUSED), 1),
        {"reason": "QuotaExceeded", "event": ("Warning", "QuotaExceeded")},
    ),
    "the end of an obstacle is reported at once": (
        at_age(replace(recorded(replace(PENDING, refused=REFUSED)), refused=None), 1),
        {"phase": "Pending", "reason": "PodPending"},
    ),
    "a running job is left alone": (recorded(ACTIVE), {"writes": False, "next_s": 25.0}),
    "a running job is reported": (ACTIVE, {"phase": "Running"}),
    "an edited policy is restored": (
        recorded(replace(ACTIVE, network_policy=POLICY | {"spec": {"ingress": [{}]}})),
        {"children": ["NetworkPolicy"], "writes": False},
    ),
    "a running job outlives a template that became invalid": (
        recorded(replace(ACTIVE, worker=UNBUILDABLE)),
        {"writes": False},
    ),
    "a job whose template is invalid fails": (
        replace(NEW, worker=UNBUILDABLE),
        {"phase": "Failed", "reason": "InvalidTemplate", "event": ("Warning", "InvalidTemplate"), "next_s": 0.0},
    ),
    "a job whose Job the API server calls invalid fails": (
        replace(NEW, invalid=INVALID),
        {"phase": "Failed", "reason": "InvalidTemplate", "event": ("Warning", "InvalidTemplate")},
    ),
    "a refused pod blocks the job": (
        replace(PENDING, refused=REFUSED),
        {"reason": "QuotaExceeded", "event": ("Warning", "QuotaExceeded"), "next_s": 10.0},
    ),
    "a job that stays blocked is ended": (
        later(recorded(replace(PENDING, refused=REFUSED)), 61),
        {"ends": True, "phase": "Pending", "reason": "QuotaExceeded", "next_s": 10.0},
    ),
    "a cancelled job is ended": (
        specified(ACTIVE, cancel={"reason": "enough"}),
        {"ends": True, "phase": "Running", "reason": "Cancelled", "event": ("Normal", "Cancelled")},
    ),
    "a job that was cancelled before it started creates nothing": (
        specified(NEW, cancel={"reason": "enough"}),
        {"phase": "Failed", "reason": "Cancelled", "event": ("Normal", "Cancelled")},
    ),
    "a job whose Job is being deleted already waits for its pod": (
        specified(replace(ACTIVE, job=job(deleted=True)), cancel={"reason": "enough"}),
        {"phase": "Running", "reason": "Cancelled", "event": ("Normal", "Cancelled"), "next_s": 10.0},
    ),
    "a job without its worker is ended": (
        replace(ACTIVE, worker=None),
        {"ends": True, "reason": "WorkerGone", "event": ("Warning", "WorkerGone")},
    ),
    "a job without its lease is ended": (
        replace(ACTIVE, lease_lost=True),
        {"ends": True, "reason": "LeaseLost", "event": ("Warning", "LeaseLost")},
    ),
    "a job that ended well has succeeded": (
        replace(ACTIVE, pods=(ENDED,)),
        {"phase": "Succeeded", "reason": "Completed", "event": ("Normal", "Completed"), "next_s": 0.0},
    ),
}


def decide_on(observed: ObservedJob) -> tuple[Missing, Decision]:
    """What the reconciler does if the API server creates nothing."""
    lacks = missing(observed, SETTINGS)
    return lacks, decide(replace(observed, invalid=lacks.invalid or observed.invalid))


def summary(lacks: Missing, decision: Decision) -> dict[str, Any]:
    status, event = decision.status or {}, decision.event
    return {
        "children": [child["kind"] for child in lacks.children],
        "creates": lacks.job is not None,
        "ends": decision.end_job is not None,
        "writes": decision.status is not None,
        "phase": status.get("phase"),
        "reason": status.get("reason"),
        "event": event and (event.type, event.reason),
        "next_s": decision.next_s,
    }


@pytest.mark.parametrize(("observed", "expected"), CASES.values(), ids=CASES)
def test_the_observed_state_determines_the_decision(observed: ObservedJob, expected: dict[str, Any]) -> None:
    nothing = {"children": [], "creates": False, "ends": False, "writes": True, "event": None}
    decided = summary(*decide_on(observed))
    assert {name: decided[name] for name in nothing | expected} == nothing | expected


def test_a_job_whose_worker_is_invalid_fails_with_a_message_of_one_line() -> None:
    worker = worker_manifest()
    worker["spec"]["jobs"] = {"readAhead": "many"}
    _, decision = decide_on(replace(NEW, worker=worker))
    status = decision.status or {}
    ready = next(found for found in status["conditions"] if found["type"] == "Ready")
    assert ready["message"].startswith("the HyphaWorker's spec.jobs.readAhead: ")
    assert "\n" not in ready["message"]
    assert "pydantic" not in ready["message"]


@pytest.mark.parametrize(("reported", "kept_s"), [(True, 600), (False, 600 + 86_400)])
def test_a_job_whose_end_was_not_reported_is_kept_a_day_longer(reported: bool, kept_s: float) -> None:
    conditions = [condition("Reported", reported)]
    status = {"phase": "Failed", "completionTime": START.isoformat(), "conditions": conditions}
    ended = hypha_job(status=status, ttlSecondsAfterFinished=600)
    assert retention_left(ended, START) == timedelta(seconds=kept_s)


def ended(number: int, scheduler: str = OTHER, *, reported: bool = True, phase: str = "Failed") -> dict[str, Any]:
    """A HyphaJob that ended in this second."""
    at = (START + timedelta(seconds=number)).isoformat()
    status = {"phase": phase, "completionTime": at, "conditions": [condition("Reported", reported)]}
    return hypha_job(task_id=UUID(int=number), scheduler=scheduler, status=status)


def test_a_scheduler_keeps_its_newest_ended_jobs_and_takes_no_room_of_others() -> None:
    flood = [ended(number) for number in range(MAX_ENDED_PER_SCHEDULER + 3)]
    honest = ended(0, HYPHA_JOB["spec"]["scheduler"])
    assert surplus([*flood, honest]) == [flood[2], flood[1], flood[0]]
    running = [ended(number, reported=False) for number in range(100)] + [
        ended(number, phase="Running") for number in range(100)
    ]
    assert surplus([*flood[3:], *running]) == []


def test_the_ended_jobs_of_many_schedulers_are_bounded() -> None:
    many = [ended(number, peer_id_from_ed25519(number.to_bytes(32))) for number in range(MAX_ENDED + 1)]
    assert surplus(many) == [many[0]]
