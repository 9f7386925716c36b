"""The phase and conditions of a HyphaJob, derived from its Job and its pod."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from hypha_contracts.job_reasons import JobReason
from hypha_operator.jobs.observed import ObservedJob
from hypha_operator.jobs.phase import FIELDS, State, classify, status_of
from hypha_operator.machinery.conditions import differs
from hypha_operator.pods.state import Finding
from hypha_resources.job import HyphaJobSpec, HyphaJobStatus
from support.hostile_text import HOSTILE
from support.job_pods import NODE, START, at, condition, container, job, pod, running, terminated, waiting
from support.operator_objects import hypha_job, worker_manifest

TRACE = "Traceback (most recent call last):\n  File ...\n\nValueError: bad slice\n"
SCHEDULED = condition("PodScheduled")


def observe(
    *pods: dict[str, Any],
    the_job: dict[str, Any] | str | None = "active",
    after_s: float = 60,
    status: dict[str, Any] | None = None,
    invalid: Finding | None = None,
    refused: Finding | None = None,
    lease_lost: bool = False,
    jobs: dict[str, Any] | None = None,
    **spec: Any,
) -> ObservedJob:
    manifest = hypha_job(status=status or {}, **spec)
    found = job() if isinstance(the_job, str) else the_job
    now = START + timedelta(seconds=after_s)
    return ObservedJob(
        manifest,
        HyphaJobSpec.model_validate(manifest["spec"]),
        now,
        worker_manifest(jobs=jobs or {}),
        found,
        pods,
        lease_lost=lease_lost,
        invalid=invalid,
        refused=refused,
    )


def then(observed: ObservedJob, state: State, *pods: dict[str, Any], after_s: float, **more: Any) -> ObservedJob:
    """Return the next observation, with the status that the previous one led to."""
    return observe(*pods, after_s=after_s, status=status_of(observed, state), **more)


def conditions(observed: ObservedJob, state: State) -> dict[str, str]:
    return {found["type"]: found["status"] for found in status_of(observed, state)["conditions"]}


RUNNING = pod(bridge=running(2), executor=running(), conditions=(SCHEDULED, condition("Ready")))


def test_a_new_job_is_pending_and_its_conditions_never_show_it_as_done() -> None:
    observed = observe(the_job=None)
    state = classify(observed)
    assert (state.phase, state.finding.reason) == ("Pending", "PodPending")
    assert conditions(observed, state) == {"Ready": "False", "Reconciling": "True", "Stalled": "False"}


def test_a_scheduled_pod_is_starting_and_one_whose_executor_runs_is_running() -> None:
    starting = pod("Pending", bridge=waiting("PodInitializing"), executor=waiting("PodInitializing"))
    assert classify(observe(starting)).phase == "Starting"
    observed = observe(RUNNING)
    state = classify(observed)
    assert (state.phase, state.finding.reason) == ("Running", "ExecutorRuns")
    assert conditions(observed, state) == {"Ready": "True", "Reconciling": "False", "Stalled": "False"}
    status = status_of(observed, state)
    assert (status["podName"], status["nodeName"], status["startTime"]) == ("hypha-1-abcde", NODE, at(5))
    assert status["podUid"] == RUNNING["metadata"]["uid"]
    HyphaJobStatus.model_validate(status)


def test_a_job_whose_executor_ended_is_delivering_results_while_its_bridge_runs() -> None:
    state = classify(observe(pod(bridge=running(), executor=terminated(0))))
    assert (state.phase, state.finding.reason, state.terminal) == ("Running", "DeliveringResults", False)


MESH = {"name": "istio-proxy", "image": "mesh:1", "imageID": "", "ready": True, "restartCount": 0, "state": running()}


def meshed(executor: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """Return a pod into which a mesh has injected a container that never ends by itself."""
    manifest = pod(executor=executor, **rest)
    manifest["status"]["containerStatuses"].append(MESH)
    return manifest


def test_a_container_that_a_mesh_injects_does_not_keep_the_job_from_ending() -> None:
    assert classify(observe(meshed(running(), bridge=running()))).finding.reason == "ExecutorRuns"
    first = observe(meshed(terminated(0), bridge=running()))
    state = classify(first)
    assert (state.phase, state.finding.reason, state.ending) == ("Running", "DeliveringResults", True)
    assert "istio-proxy" in state.finding.message
    delivering = then(first, state, meshed(terminated(0), bridge=running(), deleted=200), after_s=40)
    state = classify(delivering)
    assert (state.phase, state.finding.reason, state.ending) == ("Running", "DeliveringResults", True)
    delivered = then(delivering, state, meshed(terminated(0), bridge=terminated(0), deleted=200), after_s=45)
    state = classify(delivered)
    assert (state.phase, state.finding.reason, state.ending) == ("Running", "Completed", True)
    gone = then(delivered, state, after_s=50, the_job=None)
    assert (classify(gone).phase, classify(gone).finding.reason) == ("Succeeded", "Completed")


def test_results_that_a_bridge_could_not_deliver_beside_a_mesh_are_reported() -> None:
    first = observe(meshed(terminated(0), bridge=running()))
    failed = then(first, classify(first), meshed(terminated(0), bridge=terminated(1), deleted=200), after_s=45)
    state = classify(failed)
    assert state.finding.reason == "ResultsUndelivered"
    gone = then(failed, state, after_s=50, the_job=None)
    assert (classify(gone).phase, classify(gone).finding.reason) == ("Failed", "ResultsUndelivered")
    unseen = then(first, classify(first), after_s=300, the_job=None)
    assert (classify(unseen).phase, classify(unseen).finding.reason) == ("Failed", "ResultsUndelivered")
    assert "unobserved" in classify(unseen).finding.message


def test_a_job_whose_executor_failed_beside_a_mesh_ends() -> None:
    first = observe(meshed(terminated(1), bridge=running()))
    state = classify(first)
    assert (state.phase, state.finding.reason, state.ending) == ("Running", "ExecutorFailed", True)
    gone = then(first, state, after_s=50, the_job=None)
    assert (classify(gone).phase, classify(gone).finding.reason) == ("Failed", "ExecutorFailed")


def test_a_queued_job_waits_until_its_queue_timeout_and_then_fails() -> None:
    suspended = job(condition("Suspended", seconds=1), suspend=True)
    waits = classify(observe(the_job=suspended, after_s=300))
    assert (waits.phase, waits.finding.reason, waits.stalled, waits.ending) == ("Pending", "Queued", False, False)
    last = observe(the_job=suspended, after_s=301)
    state = classify(last)
    assert (state.phase, state.finding.reason, state.ending) == ("Pending", "QueueTimeout", True)
    assert "not admitted the job within 300 s. Give the queue as much quota" in state.finding.message
    over = then(last, state, the_job=None, after_s=302)
    assert (classify(over).phase, classify(over).finding.reason) == ("Failed", "QueueTimeout")


def test_the_worker_sets_the_time_in_a_queue() -> None:
    observed = observe(the_job=job(suspend=True), after_s=11, jobs={"queueTimeoutSeconds": 10})
    assert (observed.queue_timeout.total_seconds(), classify(observed).ending) == (10, True)


def test_the_status_of_a_trainer_says_which_claim_holds_its_model() -> None:
    said = "The trained model is in /output/7b0f."
    log = "executor +5.0s the trained model is in /output/7b0f\nexecutor +5.1s training finished after 3 rounds\n"
    ended = pod("Succeeded", bridge=terminated(0), executor=terminated(0, message=log))
    assert said not in classify(observe(ended)).finding.message, "it has no claim"
    ended["metadata"]["labels"] = {"hypha.space/job": "hypha-1"}
    ended["spec"]["volumes"] = [{"name": "output", "persistentVolumeClaim": {"claimName": "models"}}]
    state = classify(observe(ended))
    assert state.phase == "Succeeded"
    assert f"{said} That is below hypha-1 in the PersistentVolumeClaim models." in state.finding.message


def test_a_job_whose_executor_and_bridge_succeeded_has_succeeded() -> None:
    observed = observe(pod("Succeeded", bridge=terminated(0), executor=terminated(0)))
    state = classify(observed)
    assert (state.phase, state.finding.reason) == ("Succeeded", "Completed")
    assert conditions(observed, state) == {
        "Complete": "True",
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
    }
    status = status_of(observed, state)
    assert (status["completionTime"], status["duration"]) == (at(60), "55s")


DISRUPTED = {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": at(20)}
PREEMPTED = "default-scheduler: preempting to accommodate a higher priority pod"
LOW = (
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi."
    " Container executor was using 900Mi, request is 16G, has larger consumption of memory. "
)
ENDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "killed for memory": (
        pod("Failed", bridge=terminated(0), executor=terminated(137, "OOMKilled")),
        "OutOfMemory",
        r"more than its lease's 16 GB of memory. Request more",
    ),
    "wrote more than its storage": (
        pod(
            "Failed",
            executor=terminated(137),
            reason="Evicted",
            message='Usage of EmptyDir volume "job" exceeds the limit "100G". ',
        ),
        "StorageExceeded",
        r"more than its lease's 100 GB: Usage of EmptyDir volume .* Request more storage",
    ),
    "wrote more than its container may": (
        pod(
            "Failed",
            reason="Evicted",
            message='Container executor exceeded its local ephemeral storage limit "1G". ',
        ),
        "StorageExceeded",
        "exceeded its local ephemeral storage limit",
    ),
    "evicted by a node under pressure": (
        pod(
            "Failed",
            executor=terminated(137),
            reason="Evicted",
            message=LOW,
            conditions=(DISRUPTED | {"reason": "TerminationByKubelet", "message": LOW},),
        ),
        "Evicted",
        rf"short of resources.*node {NODE}.*low on resource: memory",
    ),
    "its node was shut down": (
        pod(
            "Failed",
            executor=terminated(143),
            reason="Terminated",
            message="Pod was terminated in response to imminent node shutdown.",
            conditions=(DISRUPTED | {"reason": "TerminationByKubelet"},),
        ),
        "Evicted",
        "imminent node shutdown",
    ),
    "preempted": (
        pod(
            "Failed",
            executor=terminated(143),
            conditions=(DISRUPTED | {"reason": "PreemptionByScheduler", "message": PREEMPTED},),
            deleted=30,
        ),
        "Preempted",
        "higher priority.*priorityClassName",
    ),
    "drained": (
        pod(
            "Failed",
            executor=terminated(143),
            conditions=(DISRUPTED | {"reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"},),
            deleted=30,
        ),
        "Evicted",
        "its node was drained",
    ),
    "its node was removed": (
        pod(
            "Failed",
            executor=running(),
            conditions=(DISRUPTED | {"reason": "DeletionByPodGC", "message": "PodGC: node no longer exists"},),
            deleted=30,
        ),
        "NodeLost",
        "its node is gone.*node no longer exists",
    ),
    "the executor failed": (
        pod("Failed", bridge=terminated(0), executor=terminated(2, message=TRACE)),
        "ExecutorFailed",
        r"exit code 2: ValueError: bad slice\. See kubectl logs -n gpu hypha-1-abcde -c executor",
    ),
    "the executor was killed": (
        pod("Failed", bridge=terminated(0), executor=terminated(139)),
        "ExecutorFailed",
        "signal 11",
    ),
    "the executor's program is missing": (
        pod(
            "Failed",
            bridge=terminated(0),
            executor=terminated(128, "StartError", 'exec: "train": executable file not found in $PATH'),
        ),
        "StartFailed",
        "executable file not found",
    ),
    "results were not delivered": (
        pod("Succeeded", bridge=terminated(1, message="2 files were not sent\n"), executor=terminated(0)),
        "ResultsUndelivered",
        r"exit code 1.*results may be lost: 2 files were not sent\. .*terminationGraceSeconds",
    ),
    "the bridge ran out of time": (
        pod("Succeeded", bridge=terminated(137), executor=terminated(0)),
        "ResultsUndelivered",
        "signal 9",
    ),
    "somebody deleted the pod": (
        pod("Failed", bridge=terminated(0), executor=terminated(143), deleted=40),
        "JobDeleted",
        "deleted the job's pod hypha-1-abcde",
    ),
}


@pytest.mark.parametrize(("ended", "reason", "message"), ENDS.values(), ids=ENDS)
def test_the_status_of_an_ended_pod_gives_the_reason_of_the_failure(
    ended: dict[str, Any], reason: str, message: str
) -> None:
    observed = observe(ended)
    state = classify(observed)
    assert (state.phase, state.finding.reason) == ("Failed", reason)
    status = status_of(observed, state)
    ready = next(found for found in status["conditions"] if found["type"] == "Ready")
    assert ready["reason"] == reason
    assert re.search(message, ready["message"]), ready["message"]
    assert conditions(observed, state) == {
        "Failed": "True",
        "Ready": "False",
        "Reconciling": "False",
        "Stalled": "True",
    }
    HyphaJobStatus.model_validate(status)


def test_the_executor_s_last_lines_are_kept_when_it_failed() -> None:
    observed = observe(pod("Failed", bridge=terminated(0), executor=terminated(1, message=TRACE)))
    assert status_of(observed, classify(observed))["lastLines"] == [
        "Traceback (most recent call last):",
        "  File ...",
        "ValueError: bad slice",
    ]


def test_the_executor_s_last_lines_are_kept_when_it_succeeded() -> None:
    observed = observe(pod("Succeeded", bridge=terminated(0), executor=terminated(0, message="round 7\nthe end\n")))
    assert status_of(observed, classify(observed))["lastLines"] == ["round 7", "the end"]


def test_a_job_with_a_failed_executor_has_not_ended_before_its_bridge() -> None:
    observed = observe(pod(bridge=running(), executor=terminated(1, message=TRACE)))
    state = classify(observed)
    assert (state.phase, state.finding.reason, state.terminal, state.ending) == (
        "Running",
        "ExecutorFailed",
        False,
        False,
    )
    assert conditions(observed, state)["Ready"] == "False"


LOST_TRACK = terminated(137, "ContainerStatusUnknown") | {}
LOST_TRACK["terminated"] = {"exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": None}
EVICTED_BY_API = DISRUPTED | {"reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting"}
TAKEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "its node had no room": (
        pod("Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu, requested: 4000"),
        "Unschedulable",
        rf"node {NODE} did not run the pod: OutOfcpu: Node didn't have enough",
    ),
    "the device plugin restarted": (
        pod("Failed", reason="UnexpectedAdmissionError", message="Allocate failed: nvidia.com/gpu"),
        "Unschedulable",
        "UnexpectedAdmissionError: Allocate failed",
    ),
    "its node ran out of disk while it pulled": (
        pod(
            "Failed",
            bridge=running(),
            executor=LOST_TRACK,
            reason="Evicted",
            message="The node was low on resource: ephemeral-storage.",
            conditions=(DISRUPTED | {"reason": "TerminationByKubelet"},),
        ),
        "Evicted",
        "short of resources",
    ),
    "its node is drained": (
        pod("Pending", bridge=running(), executor=waiting("PodInitializing"), conditions=(EVICTED_BY_API,), deleted=90),
        "Evicted",
        "its node was drained",
    ),
    "it is preempted": (
        pod("Pending", conditions=(DISRUPTED | {"reason": "PreemptionByScheduler", "message": PREEMPTED},), deleted=90),
        "Preempted",
        "higher priority",
    ),
    "its node is lost": (
        pod(
            "Pending",
            executor=waiting("PodInitializing"),
            conditions=(DISRUPTED | {"reason": "DeletionByTaintManager"}, condition("Ready", False, seconds=1)),
            deleted=90,
        ),
        "NodeLost",
        "does not answer",
    ),
    "somebody deletes it": (pod("Pending", deleted=90), "JobDeleted", "another client deleted the job's pod"),
}
taken = pytest.mark.parametrize(("its_pod", "reason", "message"), TAKEN.values(), ids=TAKEN)


@taken
def test_before_its_executor_has_started_a_job_gets_another_pod_when(
    its_pod: dict[str, Any], reason: str, message: str
) -> None:
    observed = observe(its_pod, status={"startingSince": at(0)})
    state = classify(observed)
    assert (state.phase, state.finding.reason, state.ending) == ("Pending", reason, False)
    assert state.replaced_in == timedelta()
    assert re.search(message, state.finding.message), state.finding.message
    assert "creates another pod" in state.finding.message
    assert conditions(observed, state) == {"Ready": "False", "Reconciling": "True", "Stalled": "False"}
    status = status_of(observed, state)
    assert "startTime" not in status
    assert next(c["reason"] for c in status["conditions"] if c["type"] == "Reconciling") == "Replacing"


@taken
def test_once_its_executor_has_started_a_job_fails_when(its_pod: dict[str, Any], reason: str, message: str) -> None:
    observed = observe(its_pod, status={"startingSince": at(0), "startTime": at(5)})
    state = classify(observed)
    assert (state.ending or state.terminal, state.finding.reason) == (True, reason)
    assert state.replaced_in is None


@taken
def test_after_the_start_timeout_a_job_fails_when(its_pod: dict[str, Any], reason: str, message: str) -> None:
    state = classify(observe(its_pod, after_s=1801, status={"startingSince": at(0)}))
    assert (state.ending or state.terminal, state.finding.reason) == (True, reason)


def test_a_cancelled_job_gets_no_other_pod() -> None:
    its_pod, _, _ = TAKEN["its node is drained"]
    state = classify(observe(its_pod, cancel={"reason": "enough"}))
    assert (state.replaced_in, state.finding.reason) == (None, "Cancelled")


def test_a_pod_that_is_gone_before_its_end_was_observed_may_have_started() -> None:
    found = condition("Failed", reason="PodFailurePolicy", message="Pod x has condition DisruptionTarget")
    state = classify(observe(the_job=job(found), status={"podUid": "x", "startingSince": at(0)}))
    assert (state.phase, state.finding.reason) == ("Failed", "Evicted")


@pytest.mark.parametrize(("after_s", "left_s"), [(1, 9), (9, 1), (10, 0), (11, 0)])
def test_a_node_that_rejects_each_pod_at_once_is_not_tried_without_pause(after_s: float, left_s: float) -> None:
    rejected, _, _ = TAKEN["the device plugin restarted"]
    state = classify(observe(rejected, after_s=after_s, status={"startingSince": at(0)}))
    assert state.replaced_in == timedelta(seconds=left_s)


def test_the_pauses_between_rejected_pods_grow() -> None:
    rejected, _, _ = TAKEN["the device plugin restarted"]
    state = classify(observe(rejected, after_s=11, status={"startingSince": at(-400)}))
    assert state.replaced_in
    assert state.replaced_in > timedelta(seconds=90)


def test_the_successor_of_a_taken_pod_is_just_another_pod() -> None:
    gone = observe(the_job=None, status={"podUid": "x", "podName": "p", "startingSince": at(0)})
    state = classify(gone)
    assert (state.phase, state.finding.reason, state.ending) == ("Pending", "PodPending", False)


def test_a_job_whose_image_is_pulled_for_hours_ends() -> None:
    slow = pod("Pending", bridge=running(), executor=waiting("PodInitializing"), conditions=(SCHEDULED,))
    started = {"startingSince": at(0)}
    assert not classify(observe(slow, after_s=1799, status=started)).ending
    state = classify(observe(slow, after_s=1800, status=started))
    assert (state.ending, state.finding.reason) == (True, "StartTimeout")
    assert "jobs.startTimeoutSeconds" in state.finding.message


def test_a_job_runs_for_longer_than_it_may_take_to_start() -> None:
    observed = observe(RUNNING, after_s=1e6, status={"startingSince": at(0)})
    assert classify(observed).finding.reason == "ExecutorRuns"
    behind = observe(after_s=1e6, status={"startingSince": at(0), "startTime": at(5), "podUid": "x"})
    assert not classify(behind).ending, "the watch of pods is behind"


def test_the_time_in_a_queue_does_not_count_as_time_to_start() -> None:
    queued = observe(the_job=job(suspend=True), status={"startingSince": at(0)})
    assert "startingSince" not in status_of(queued, classify(queued))
    new = observe(the_job=None)
    assert status_of(new, classify(new))["startingSince"] == at(60)


def a_job(created: float, *conditions: dict[str, Any], suspend: bool = False) -> dict[str, Any]:
    """Return a Job of a queue that was created at this time."""
    manifest = job(*conditions, suspend=suspend)
    manifest["metadata"]["creationTimestamp"] = at(created)
    return manifest


def test_a_queued_job_whose_pods_the_cluster_keeps_taking_ends_after_the_start_timeout() -> None:
    rejected, _, _ = TAKEN["the device plugin restarted"]
    now_s, starting_s, status, pauses = 0.0, 0.0, dict[str, Any](), list[float]()
    while True:
        queued = observe(the_job=a_job(now_s, suspend=True), after_s=now_s, status=status)
        assert classify(queued).finding.reason == "Queued"
        assert "again" not in classify(queued).finding.message, "it is another Job"
        status, now_s = status_of(queued, classify(queued)), now_s + 100
        resumed = a_job(now_s - 100, condition("Suspended", False, seconds=now_s))
        taken = observe(rejected, the_job=resumed, after_s=now_s, status=status)
        state = classify(taken)
        if state.terminal:
            break
        assert state.replaced_in
        pauses.append(state.replaced_in.total_seconds())
        status, now_s, starting_s = status_of(taken, state), now_s + pauses[-1], starting_s + pauses[-1]
    assert (state.phase, state.finding.reason) == ("Failed", "Unschedulable")
    assert 1800 <= starting_s < 1800 * 4 / 3
    assert len(pauses) < 30
    assert pauses == sorted(pauses)


def test_the_time_that_a_replacement_waits_in_a_queue_does_not_count_as_time_to_start() -> None:
    waits = observe(the_job=a_job(30, suspend=True), after_s=31, status={"startingSince": at(0), "podUid": "x"})
    status = status_of(waits, classify(waits))
    assert (status["reason"], status["startingSince"]) == ("Queued", at(0))
    limit = {"startTimeoutSeconds": 60}
    for seconds, seen in ((200, condition("Suspended")), (210, condition("Suspended", False, seconds=200))):
        admitted = observe(the_job=a_job(30, seen), after_s=seconds, status=status, jobs=limit)
        assert classify(admitted).finding.reason == "PodPending"
        assert status_of(admitted, classify(admitted))["startingSince"] == at(170), "30 s before its admission"
    admitted = then(admitted, classify(admitted), after_s=229, the_job=a_job(30, seen), jobs=limit)
    assert not classify(admitted).ending
    late = then(admitted, classify(admitted), after_s=230, the_job=a_job(30, seen), jobs=limit)
    assert classify(late).finding.reason == "StartTimeout"


def test_a_job_that_its_queue_suspends_again_starts_afresh() -> None:
    status = {"startingSince": at(50), "podUid": "x", "reason": "PodPending"}
    suspended = observe(the_job=a_job(0, suspend=True), after_s=60, status=status)
    assert "suspended the job's Job again" in classify(suspended).finding.message
    assert "startingSince" not in status_of(suspended, classify(suspended))


def test_a_queued_job_that_was_refused_at_first_is_no_replacement() -> None:
    queued = observe(the_job=a_job(50, suspend=True), status={"startingSince": at(0), "reason": "QuotaExceeded"})
    assert "startingSince" not in status_of(queued, classify(queued))


def test_a_program_that_does_not_exist_has_not_started() -> None:
    missing, _, _ = ENDS["the executor's program is missing"]
    observed = observe(missing)
    assert "startTime" not in status_of(observed, classify(observed))


@pytest.mark.parametrize(
    ("found", "phase", "reason"),
    [
        (condition("Complete", reason="CompletionsReached"), "Succeeded", "Completed"),
        (
            condition(
                "Failed",
                reason="PodFailurePolicy",
                message="Pod gpu/hypha-1-abcde has condition DisruptionTarget matching FailJob rule at index 0",
            ),
            "Failed",
            "Evicted",
        ),
        (
            condition(
                "Failed",
                reason="PodFailurePolicy",
                message="Container executor for pod gpu/x failed with exit code 1 matching FailJob rule at index 1",
            ),
            "Failed",
            "ExecutorFailed",
        ),
        (condition("Failed", reason="BackoffLimitExceeded", message="Job has reached"), "Failed", "ExecutorFailed"),
    ],
)
def test_the_job_gives_the_end_of_a_pod_that_is_gone(found: dict[str, Any], phase: str, reason: str) -> None:
    state = classify(observe(the_job=job(found), status={"podUid": "x"}))
    assert (state.phase, state.finding.reason) == (phase, reason)


BACK_OFF = 'Back-off pulling image "trainer:1": ErrImagePull: not found'
CRASHED = terminated(1, message="hypha-bridge: /etc/hypha/job/job.json: not found")
OBSTACLES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unschedulable": (
        pod(
            "Pending",
            node=None,
            conditions=(
                condition(
                    "PodScheduled",
                    False,
                    reason="Unschedulable",
                    message="0/3 nodes are available: 3 Insufficient cpu.",
                ),
            ),
        ),
        "Unschedulable",
        r"no node has room .* 3 Insufficient cpu\. Add nodes",
    ),
    "image missing": (
        pod("Pending", bridge=running(), executor=waiting("ImagePullBackOff", BACK_OFF)),
        "ImagePull",
        "cannot pull image trainer:1 of container executor: Back-off.*imagePullSecrets",
    ),
    "image of the bridge missing": (
        pod("Pending", bridge=waiting("ErrImagePull", "not found"), executor=waiting("PodInitializing")),
        "ImagePull",
        "image bridge:1 of container bridge",
    ),
    "wrong image name": (
        pod("Pending", bridge=running(), executor=waiting("InvalidImageName", "invalid reference format")),
        "ImagePull",
        "invalid reference format",
    ),
    "reference to a missing Secret": (
        pod("Pending", bridge=running(), executor=waiting("CreateContainerConfigError", 'secret "x" not found')),
        "StartFailed",
        'secret "x" not found',
    ),
    "the bridge crashes": (
        pod(
            "Pending",
            bridge=container("bridge", waiting("CrashLoopBackOff"), restartCount=3, lastState=CRASHED),
            executor=waiting("PodInitializing"),
        ),
        "BridgeFailed",
        "exit code 1 again and again: hypha-bridge: .* not found. See kubectl logs .* -c bridge --previous",
    ),
    "the bridge needs too much memory": (
        pod(
            "Pending",
            bridge=container(
                "bridge", waiting("CrashLoopBackOff"), restartCount=1, lastState=terminated(137, "OOMKilled")
            ),
            executor=waiting("PodInitializing"),
        ),
        "BridgeFailed",
        "exceeds its memory limit",
    ),
    "no volumes": (
        pod(
            "Pending",
            bridge=waiting("PodInitializing"),
            executor=waiting("PodInitializing"),
            conditions=(SCHEDULED, condition("PodReadyToStartContainers", False), condition("Initialized", False)),
        ),
        "StartFailed",
        "cannot set up the pod's volumes or network. See kubectl describe pod -n gpu hypha-1-abcde",
    ),
}


@pytest.mark.parametrize(("stuck", "reason", "message"), OBSTACLES.values(), ids=OBSTACLES)
def test_an_obstacle_is_reported_at_once_and_ends_the_job_after_a_minute(
    stuck: dict[str, Any], reason: str, message: str
) -> None:
    first = observe(stuck, after_s=61)
    state = classify(first)
    assert (state.stalled, state.ending, state.finding.reason) == (True, False, reason)
    assert re.search(message, state.finding.message), state.finding.message
    assert conditions(first, state) == {"Ready": "False", "Reconciling": "True", "Stalled": "True"}

    later = then(first, state, stuck, after_s=120)
    assert classify(later).stalled, "not yet a minute"
    ending = then(later, classify(later), stuck, after_s=121)
    state = classify(ending)
    assert (state.ending, state.terminal, state.finding.reason) == (True, False, reason)

    gone = then(ending, state, after_s=125, the_job=None)
    assert (classify(gone).phase, classify(gone).finding.reason) == ("Failed", reason)


def test_an_obstacle_that_disappears_is_cleared() -> None:
    stuck = pod("Pending", bridge=running(), executor=waiting("ErrImagePull", "timeout"))
    first = observe(stuck, after_s=10)
    better = then(first, classify(first), RUNNING, after_s=50)
    again = then(better, classify(better), stuck, after_s=100)
    assert classify(better).finding.reason == "ExecutorRuns"
    assert classify(again).stalled


def restarted(state: dict[str, Any], end: dict[str, Any]) -> dict[str, Any]:
    """Return the status of a bridge that ended so and was restarted once."""
    return container("bridge", state, restartCount=1, lastState=end)


CRASHED_EARLY = terminated(1, seconds=3)
KILLED = terminated(137, "OOMKilled", seconds=40)


@pytest.mark.parametrize("state", [running(4), terminated(0)])
def test_a_bridge_that_crashed_before_the_executor_started_has_lost_nothing(state: dict[str, Any]) -> None:
    runs = pod(bridge=restarted(state, CRASHED_EARLY), executor=running(5))
    assert classify(observe(runs)).finding.reason == "ExecutorRuns"
    ended = pod(bridge=restarted(state, CRASHED_EARLY), executor=terminated(0))
    assert classify(observe(ended)).finding.reason == "DeliveringResults"
    over = pod("Succeeded", bridge=restarted(terminated(0), CRASHED_EARLY), executor=terminated(0))
    assert classify(observe(over)).finding.reason == "Completed"


@pytest.mark.parametrize(
    ("bridge", "message"),
    [
        (restarted(running(41), KILLED), "exceeded its memory limit after .* Raise the memory in jobs.bridgeResources"),
        (restarted(waiting("CrashLoopBackOff"), KILLED), "exceeded its memory limit after the executor had started"),
        (restarted(running(31), CRASHED), "ended with exit code 1 after .*: hypha-bridge: .* not found. Do what the"),
        (restarted(running(6), terminated(1, seconds=5)), "ended with exit code 1"),
        (restarted(running(41), {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}), "signal 9"),
    ],
    ids=["out of memory", "waits", "crashed", "in the executor's first second", "lost"],
)
def test_a_job_whose_bridge_is_restarted_under_its_executor_ends_and_fails(
    bridge: dict[str, Any], message: str
) -> None:
    first = observe(pod(bridge=bridge, executor=running(5)))
    state = classify(first)
    assert (state.phase, state.ending, state.finding.reason) == ("Running", True, "BridgeFailed")
    assert re.search(message, state.finding.message), state.finding.message
    assert "kubectl logs -n gpu hypha-1-abcde -c bridge --previous" in state.finding.message

    over = pod("Succeeded", bridge=bridge | {"state": terminated(0)}, executor=terminated(0), deleted=200)
    last = then(first, state, over, after_s=90, the_job=None)
    assert (classify(last).phase, classify(last).finding) == ("Failed", state.finding)


@pytest.mark.parametrize(("phase", "exit_code"), [("Succeeded", 0), ("Failed", 3)])
def test_a_restart_of_the_bridge_explains_the_end_of_a_job_that_the_operator_did_not_observe(
    phase: str, exit_code: int
) -> None:
    over = pod(phase, bridge=restarted(terminated(0, seconds=60), KILLED), executor=terminated(exit_code, seconds=50))
    state = classify(observe(over))
    assert (state.phase, state.finding.reason) == ("Failed", "BridgeFailed")


def test_a_bridge_that_is_restarted_while_it_delivers_results_beside_a_mesh_fails_the_job() -> None:
    first = observe(meshed(terminated(0), bridge=running()))
    bridge = restarted(terminated(0, seconds=60), KILLED)
    failed = then(first, classify(first), meshed(terminated(0), bridge=bridge, deleted=200), after_s=65)
    assert classify(failed).finding.reason == "BridgeFailed"


def test_a_slow_image_pull_is_no_obstacle() -> None:
    slow = pod(
        "Pending",
        bridge=running(),
        executor=waiting("PodInitializing"),
        conditions=(SCHEDULED, condition("PodReadyToStartContainers"), condition("Initialized")),
    )
    assert not classify(observe(slow, after_s=3600)).stalled


def test_a_refused_pod_is_an_obstacle() -> None:
    refused = Finding(JobReason.QUOTA_EXCEEDED, "exceeded quota")
    first = observe(refused=refused)
    assert classify(first).stalled
    last = then(first, classify(first), after_s=121, refused=refused)
    assert classify(last).ending


def test_a_cancelled_job_ends_once_none_of_its_containers_runs() -> None:
    cancelled = {"reason": "the scheduler said so"}
    first = observe(RUNNING, cancel=cancelled)
    state = classify(first)
    assert (state.phase, state.ending) == ("Running", True)
    assert (state.finding.reason, state.finding.message) == ("Cancelled", cancelled["reason"])

    dying = pod(bridge=running(), executor=terminated(143), deleted=200)
    second = then(first, state, dying, after_s=70, cancel=cancelled, the_job=job(deleted=True))
    assert not classify(second).terminal
    over = pod("Failed", bridge=terminated(0), executor=terminated(143), deleted=200)
    third = then(second, classify(second), over, after_s=80, cancel=cancelled, the_job=job(deleted=True))
    state = classify(third)
    assert (state.phase, state.finding.reason) == ("Failed", "Cancelled")


def test_a_job_whose_job_is_being_deleted_is_not_over_before_its_pod_is_observed() -> None:
    observed = observe(the_job=job(deleted=True), cancel={"reason": "x"})
    assert not classify(observed).terminal
    assert classify(observe(the_job=None, cancel={"reason": "x"})).terminal


def test_a_job_that_had_ended_well_when_it_was_cancelled_has_succeeded() -> None:
    ended = pod("Succeeded", bridge=terminated(0), executor=terminated(0))
    assert classify(observe(ended, cancel={"reason": "too late"})).phase == "Succeeded"


def test_a_recorded_stop_reason_holds_though_the_pod_succeeds() -> None:
    first = observe(RUNNING, lease_lost=True)
    state = classify(first)
    over = pod("Succeeded", bridge=terminated(0), executor=terminated(0), deleted=90)
    last = then(first, state, over, after_s=90, the_job=None)
    assert classify(last).finding == state.finding
    assert state.finding.reason == "LeaseLost"
    assert classify(last).terminal


def test_a_disruption_is_recorded_before_its_pod_disappears() -> None:
    condition_ = DISRUPTED | {"reason": "PreemptionByScheduler", "message": PREEMPTED}
    going = pod(bridge=running(), executor=running(), conditions=(condition_,), deleted=200)
    first = observe(going)
    state = classify(first)
    assert (state.ending, state.finding.reason) == (True, "Preempted")
    gone = then(first, state, after_s=210, the_job=None)
    assert (classify(gone).phase, classify(gone).finding.reason) == ("Failed", "Preempted")


TAINTED = DISRUPTED | {"reason": "DeletionByTaintManager", "message": "Taint manager: deleting due to NoExecute taint"}


def test_a_job_on_a_silent_node_ends_as_soon_as_its_pod_is_being_deleted() -> None:
    lost = pod(
        bridge=running(),
        executor=running(),
        conditions=(TAINTED, condition("Ready", False, seconds=20)),
        deleted=230,
        grace_s=150,
    )
    state = classify(observe(lost, after_s=81))
    assert (state.phase, state.finding.reason) == ("Failed", "NodeLost")


def test_a_job_evicted_by_a_taint_from_a_live_node_may_end_normally() -> None:
    leaving = pod(
        bridge=running(), executor=running(), conditions=(TAINTED, condition("Ready")), deleted=230, grace_s=150
    )
    first = observe(leaving, after_s=81)
    state = classify(first)
    assert (state.terminal, state.ending, state.finding.reason) == (False, True, "NodeLost")
    late = then(first, state, leaving, after_s=289, the_job=job(deleted=True))
    assert not classify(late).terminal
    lost = then(first, state, leaving, after_s=291, the_job=job(deleted=True))
    assert classify(lost).terminal, "a minute after it was due nobody answers for it any more"


@pytest.mark.parametrize("the_job", [None, job(deleted=True)], ids=["gone", "going"])
def test_a_job_whose_job_was_deleted_ends(the_job: dict[str, Any] | None) -> None:
    first = observe(RUNNING, status={"podUid": "x"}, the_job=the_job)
    state = classify(first)
    assert (state.ending, state.finding.reason) == (True, "JobDeleted")
    last = then(first, state, the_job=None, after_s=70)
    assert (classify(last).phase, classify(last).finding.reason) == ("Failed", "JobDeleted")


@pytest.mark.parametrize("executor", [running(), terminated(137), None], ids=["runs", "ended", "gone with its pod"])
def test_a_job_that_its_queue_suspends_after_its_executor_started_ends_as_preempted(
    executor: dict[str, Any] | None,
) -> None:
    pods = [pod(bridge=running(), executor=executor, deleted=90)] if executor else []
    status = {"podUid": "x"} | ({} if executor else {"startTime": at(5)})
    state = classify(observe(*pods, status=status, the_job=job(suspend=True)))
    assert (state.ending, state.finding.reason) == (True, "Preempted")


PULLING = {"bridge": running(2), "executor": waiting("PodInitializing"), "conditions": (SCHEDULED,)}


@pytest.mark.parametrize(
    "leaving",
    [pod("Pending", **PULLING, deleted=90), pod("Failed", **PULLING, deleted=90), None],
    ids=["ending", "ended", "gone"],
)
def test_a_job_that_its_queue_suspends_before_its_executor_started_waits_in_the_queue_again(
    leaving: dict[str, Any] | None,
) -> None:
    first = observe(pod("Pending", **PULLING), after_s=50)
    suspended = job(condition("Suspended", seconds=60), suspend=True)
    pods = [leaving] if leaving else []
    again = then(first, classify(first), *pods, after_s=340, the_job=suspended)
    state = classify(again)
    assert (state.phase, state.finding.reason, state.ending) == ("Pending", "Queued", False)
    assert "suspended the job's Job again before its executor started" in state.finding.message
    assert classify(then(again, state, *pods, after_s=360, the_job=suspended)).ending, "300 s after it was suspended"


def test_a_job_that_is_invalid_before_anything_was_created_fails_at_once() -> None:
    observed = observe(the_job=None, invalid=Finding(JobReason.INVALID_TEMPLATE, "template.spec.hostNetwork: ..."))
    assert (classify(observed).phase, classify(observed).finding.reason) == ("Failed", "InvalidTemplate")


def test_an_unchanged_status_is_not_written_again() -> None:
    first = observe(RUNNING)
    status = status_of(first, classify(first))
    reported = {"type": "Reported", "status": "True", "reason": "EndReported", "lastTransitionTime": at(1)}
    known = status | {"progress": {"round": 1}, "conditions": [*status["conditions"], reported]}
    renewed = observe(RUNNING, status=known)
    renewed.hypha_job["metadata"]["generation"] = 7
    assert not differs(renewed.hypha_job, status_of(renewed, classify(renewed)), FIELDS)
    ended = observe(pod("Succeeded", bridge=terminated(0), executor=terminated(0)), status=known)
    assert differs(ended.hypha_job, status_of(ended, classify(ended)), FIELDS)


HOSTILE_TEXT = "".join(HOSTILE)


@pytest.mark.parametrize(
    "observed",
    [
        pytest.param(lambda text: observe(pod(executor=terminated(1, message=text))), id="output"),
        pytest.param(lambda text: observe(pod(executor=waiting("ImagePullBackOff", text))), id="image"),
        pytest.param(lambda text: observe(pod("Failed", reason="Evicted", message=text)), id="eviction"),
        pytest.param(lambda text: observe(pod("Failed", reason=text, message=text)), id="rejection"),
        pytest.param(
            lambda text: observe(pod("Pending", conditions=(condition("PodScheduled", False, message=text),))),
            id="scheduling",
        ),
        pytest.param(lambda text: observe(refused=Finding(JobReason.ADMISSION_REFUSED, text)), id="admission"),
        pytest.param(lambda text: observe(invalid=Finding(JobReason.INVALID_TEMPLATE, text)), id="template"),
        pytest.param(lambda text: observe(the_job=job(condition("Failed", message=text))), id="job"),
        pytest.param(
            lambda text: observe(the_job=None, cancel={"reason": text[:1024].encode(errors="replace").decode()}),
            id="cancellation",
        ),
    ],
)
def test_text_of_others_in_a_status_is_escaped_and_bounded(observed: Callable[[str], ObservedJob]) -> None:
    for text in (f"evil{HOSTILE_TEXT}end", "x" * 1_000_000, "\u6771" * 1_000_000, "x\n" * 500_000):
        found = observed(text)
        status = json.dumps(status_of(found, classify(found)), ensure_ascii=False)
        assert status.isprintable()
        assert len(status.encode()) < 64 * 1024


def test_the_status_has_the_stages_of_the_start_that_are_over() -> None:
    prepared = condition("PodReadyToStartContainers", seconds=2)
    scheduled = condition("PodScheduled", seconds=1)
    pulling = pod("Pending", bridge=running(4), executor=waiting("PodInitializing"), conditions=(scheduled, prepared))
    observed = observe(pulling)
    stages = status_of(observed, classify(observed))["stages"]
    assert [(stage["name"], stage["startTime"], stage["endTime"]) for stage in stages] == [
        ("pod scheduled", at(0), at(1)),
        ("pod prepared", at(1), at(2)),
        ("bridge image pulled", at(2), at(4)),
    ]
    done = observe(pod(bridge=running(4), executor=running(9), conditions=(scheduled, prepared)))
    status = status_of(done, classify(done))
    assert status["stages"] == [*stages, {"name": "image pulled", "startTime": at(4), "endTime": at(9)}]
    assert "stages" in FIELDS
    HyphaJobStatus.model_validate(status)
    gone = observe(status=status)
    assert status_of(gone, classify(gone))["stages"] == status["stages"]
