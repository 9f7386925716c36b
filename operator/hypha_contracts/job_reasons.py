"""The reasons of a HyphaJob's conditions and events, with their remedies."""

from typing import Final

from hypha_contracts.reasons import Reason


class JobReason(Reason):
    """The reasons of a HyphaJob."""

    POD_PENDING = "PodPending", "Wait: the job's pod waits for a node."
    POD_STARTS = "PodStarts", "Wait: the node pulls images and starts the bridge."
    EXECUTOR_RUNS = "ExecutorRuns", "All is well."
    DELIVERING_RESULTS = "DeliveringResults", "Wait: the executor ended and the bridge sends results."
    COMPLETED = "Completed", "All is well."
    QUEUED = (
        "Queued",
        "Give the queue as much quota as the worker offers, or raise `jobs.queueTimeoutSeconds`.",
        "`kubectl describe workloads -n ns`",
    )
    REPLACING = (
        "Replacing",
        "Wait: the cluster took the pod before the executor had started, so the operator creates another one.",
        "the reason of `Ready`",
        "Reconciling",
    )
    ENDING = "Ending", "Wait: the operator ends the job's pod.", "the reason of `Ready`", "Reconciling"
    ENDED = "Ended", "No part of the job runs any more.", "the reason of `Ready`", "Reconciling"
    END_REPORTED = "EndReported", "The controller has recorded the end of the job.", "", "Reported"
    CANCELLED = "Cancelled", "The scheduler ended the job or its lease, or somebody deleted the worker.", "the message"
    EXECUTOR_FAILED = (
        "ExecutorFailed",
        "This is a fault of the job. The node notifies its scheduler.",
        "`status.lastLines`, `kubectl logs` of the pod, container `executor`",
    )
    OUT_OF_MEMORY = "OutOfMemory", "Request more memory, or use less.", "the lease's memory in `spec.resources`"
    STORAGE_EXCEEDED = (
        "StorageExceeded",
        "Request more storage, or store less.",
        "the lease's storage in `spec.resources`",
    )
    RESULTS_UNDELIVERED = (
        "ResultsUndelivered",
        "Check that the peers are reachable. If the bridge ran out of time, raise `jobs.terminationGraceSeconds`.",
        "`kubectl logs` of the pod, container `bridge`",
    )
    BRIDGE_FAILED = (
        "BridgeFailed",
        "Do what the last line of the log says.",
        "`kubectl logs` of the pod, container `bridge`, `--previous`",
    )
    START_FAILED = (
        "StartFailed",
        "Fix the volume, runtime class or command that the message names.",
        "`kubectl describe pod`",
    )
    IMAGE_PULL = (
        "ImagePull",
        "Correct the image's name, or name credentials in `spec.imagePullSecrets`.",
        "`executors.image`, the chart's `images`",
    )
    UNSCHEDULABLE = (
        "Unschedulable",
        "Add nodes, offer less in `spec.resources`, or give an autoscaler time with `jobs.startPatienceSeconds`.",
        "`kubectl describe pod`, the free capacity of the nodes",
    )
    DEVICES_MISSING = (
        "DevicesMissing",
        "Install the device plugin or the DRA driver, or correct `spec.resources.gpu`.",
        "`kubectl describe nodes`: `Allocatable`",
        "JobsStart of the worker",
    )
    QUEUE_TIMEOUT = (
        "QueueTimeout",
        "Give the queue as much quota as the worker offers, offer less, or raise `jobs.queueTimeoutSeconds`.",
        "`kubectl describe workloads -n ns`",
    )
    START_TIMEOUT = (
        "StartTimeout",
        "Use smaller images or a registry nearby, pull the images beforehand, or raise `jobs.startTimeoutSeconds`.",
        "`kubectl describe pod`: since when its images are pulled",
    )
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        "Raise the ResourceQuota, or offer less in `spec.resources`.",
        "`kubectl describe resourcequota -n ns`",
    )
    ADMISSION_REFUSED = (
        "AdmissionRefused",
        "Change what a policy or webhook refuses, in `executors.template` or `commonLabels`, or repair the webhook.",
        "the message",
    )
    INVALID_TEMPLATE = (
        "InvalidTemplate",
        "Remove what the message names. Without DRA, set `resources.gpu.resourceName`, not `deviceClassName`.",
        "`executors.template`, or what the message names",
    )
    NAME_TAKEN = "NameTaken", "Delete that Job.", "the Job of the same name"
    EVICTED = (
        "Evicted",
        "The node was drained, short of resources or shut down. The scheduler places the job again.",
        "the node",
    )
    NODE_LOST = "NodeLost", "The node is gone or does not answer. The scheduler places the job again.", "the node"
    PREEMPTED = "Preempted", "Raise `priorityClassName` in `executors.template`.", "priorities, Kueue's queues"
    LEASE_LOST = (
        "LeaseLost",
        "The controller was away for longer than the lease. Look at the worker, or raise `leases.durationSeconds`.",
        "`kubectl logs -n ns deploy/w-controller`",
    )
    WORKER_GONE = "WorkerGone", "Somebody deleted the job's HyphaWorker."
    JOB_DELETED = (
        "JobDeleted",
        "To end a HyphaJob, set its `spec.cancel: {reason: ...}`.",
        "the audit log: which client deleted its Job or pod",
    )


CLUSTER_REASONS: Final = frozenset(
    {
        JobReason.IMAGE_PULL,
        JobReason.UNSCHEDULABLE,
        JobReason.DEVICES_MISSING,
        JobReason.QUEUE_TIMEOUT,
        JobReason.QUOTA_EXCEEDED,
        JobReason.ADMISSION_REFUSED,
        JobReason.INVALID_TEMPLATE,
        JobReason.START_FAILED,
        JobReason.START_TIMEOUT,
        JobReason.BRIDGE_FAILED,
        JobReason.EVICTED,
        JobReason.NODE_LOST,
        JobReason.PREEMPTED,
    }
)
"""Reasons of a HyphaJob that failed because of the cluster, if its executor had not started (no `status.startTime`)."""
