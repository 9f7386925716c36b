"""Every reason of a condition, an event or a refused request, with its remedy.

`python -m hypha_contracts.reasons docs/kubernetes.md` writes the tables of that page.
"""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Self


class Reason(StrEnum):
    """A reason for programs, with its documentation for people.

    Attributes:
        conditions: the types of the conditions that have this reason. Events about the same resource have it too.
        look_at: where to find more information, in Markdown. `w` is the worker and `ns` its namespace.
        remedy: what to do, as full sentences in Markdown. Messages may quote it.
    """

    conditions: str
    look_at: str
    remedy: str

    def __new__(cls, value: str, conditions: str, look_at: str, remedy: str) -> Self:
        """Return a member that is equal to `value`."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.conditions, member.look_at, member.remedy = conditions, look_at, remedy
        return member


class WorkerReason(Reason):
    """The reasons of a HyphaWorker."""

    SERVING = "Serving", "Ready", "", "All is well."
    SUSPENDED = "Suspended", "Ready", "", "Unset `spec.suspend` to make offers again."
    STARTING = (
        *("Starting", "Ready", "`kubectl get pods -n ns -l hypha.space/worker=w`"),
        "Wait. If this persists, read the events of the pod.",
    )
    DRAINING = (
        *("Draining", "Ready", "`kubectl get hyphajobs -n ns -l hypha.space/worker=w`"),
        "Wait while its jobs end and the node notifies their schedulers. The message gives the deadline.",
    )
    APPLY_FAILED = (
        *("ApplyFailed", "Ready", "the message"),
        "The operator tries again. If this persists, fix what the message names, such as an unreachable webhook.",
    )
    SECRET_MISSING = (
        *("SecretMissing", "Ready", "`kubectl get secret -n ns`"),
        "Create the Secrets that the message names. The pod then starts by itself.",
    )
    CERTIFICATE_PENDING = (
        *("CertificatePending", "Ready", "`kubectl describe certificate -n ns w-identity`"),
        "Fix the issuer.",
    )
    IMAGE_PULL = (
        *("ImagePull", "Ready", "the chart's `images`, `spec.controller.image`"),
        "Correct the name in `spec.controller.image` or the chart's `images`, or set `spec.imagePullSecrets`.",
    )
    CONTAINER_REFUSED = (
        *("ContainerRefused", "Ready", "the message"),
        "Usually a Secret lacks `tls.crt`, `tls.key` or `ca.crt`. Add it.",
    )
    CONTROLLER_CRASHING = (
        *("ControllerCrashing", "Ready", "`kubectl logs -n ns deploy/w-controller --previous`"),
        "Do what the last line of the log says.",
    )
    UNSCHEDULABLE = (
        *("Unschedulable", "Ready", "`kubectl describe pod` of the controller"),
        "Add nodes, or lower `spec.controller.resources`.",
    )
    POD_REFUSED = (
        *("PodRefused", "Ready", "the message"),
        "Raise the quota, or change `spec.controller.template` or an `expose` of type HostPort to suit admission.",
    )
    NOT_HEALTHY = (
        *("NotHealthy", "Ready", "`kubectl logs -n ns deploy/w-controller`"),
        "The node runs but its probe fails. Its log says why.",
    )
    NO_GATEWAY = (
        *("NoGateway", "Connected", "`spec.network.gateways`, egress of the namespace"),
        "Check `spec.network.gateways`, that TCP may reach them, and that they trust the authorities in `ca.crt`.",
    )
    NO_RELAY = (
        *("NoRelay", "Connected", "the gateways"),
        "If this persists, add a gateway that relays, or set `spec.network.expose` and `relayCircuit: false`.",
    )
    CONNECTED = "Connected", "Connected", "", "All is well."
    NOT_REPORTED = (
        *("NotReported", "Connected, IdentityValid, RequestsAnswered", "the controller's pod"),
        "The controller has not reported yet. `Ready` says why.",
    )
    VALID = "Valid", "IdentityValid", "", "All is well."
    IDENTITY_REFUSED = (
        *("IdentityRefused", "IdentityValid, Stalled", "`kubectl get secret -n ns w-identity` and the message"),
        "Provide an Ed25519 key in PKCS#8 and its certificate, issued by an authority in `ca.crt` and not revoked.",
    )
    PEER_ID_CHANGED = (
        *("PeerIdChanged", "IdentityValid, Stalled", "recent changes of the Secret"),
        "Put the old key back, or set `spec.identity.allowPeerIdChange` to become another peer.",
    )
    CERTIFICATE_EXPIRED = (
        *("CertificateExpired", "IdentityValid, Stalled", "the Secret"),
        "Put a new certificate for the same key into the Secret. The node needs no restart.",
    )
    CERTIFICATE_EXPIRES_SOON = (
        *("CertificateExpiresSoon", "IdentityValid", "the Secret"),
        "Put a new certificate for the same key into the Secret before then. The node needs no restart.",
    )
    ANSWERED = (
        *("Answered", "RequestsAnswered", "`status.node.allocated`, `spec.offer`"),
        "If no jobs arrive nevertheless, lower the price, or wait until other leases free capacity.",
    )
    NO_REQUESTS = (
        *("NoRequests", "RequestsAnswered", "the schedulers"),
        "Wait. Check that the schedulers are in the network of `spec.network.gateways`.",
    )
    BID_BELOW_FLOOR = (
        *("BidBelowFloor", "RequestsAnswered", "`status.node.requests`"),
        "Lower `spec.offer.floor` (100 by default) and `price`, or have schedulers bid more.",
    )
    EXECUTOR_UNSUPPORTED = (
        *("ExecutorUnsupported", "RequestsAnswered", "`spec.executors`"),
        "Add the executor to `spec.executors`, or have schedulers request one that is listed there.",
    )
    NO_EXECUTOR = (
        *("NoExecutor", "RequestsAnswered", "`spec.executors`"),
        "Have schedulers name an executor of `spec.executors`.",
    )
    MORE_THAN_CAPACITY = (
        *("MoreThanCapacity", "RequestsAnswered", "`status.capacity`"),
        "Raise `spec.resources` if the cluster has more, or have schedulers request less.",
    )
    REQUEST_EXPIRED = (
        *("RequestExpired", "RequestsAnswered", "the clocks of schedulers and nodes"),
        "Correct the clocks of the schedulers and of the cluster's nodes.",
    )
    INVALID_SPEC = (
        *("InvalidSpec", "Ready, Stalled", "the message, which names the field"),
        "Correct the field. If it is correct, upgrade the chart: its definitions differ from the operator's.",
    )
    INVALID_TEMPLATE = (
        *("InvalidTemplate", "Ready, Stalled", "`spec.controller.template`"),
        "Remove what the message names.",
    )
    REFUSED = (
        *("Refused", "Ready, Stalled", "the message, which names the object and its field"),
        "Correct the field of the spec that the value comes from.",
    )
    FORBIDDEN = (
        "Forbidden",
        "Ready, Stalled",
        "`kubectl auth can-i --list --as=system:serviceaccount:hypha-system:hypha-worker -n ns`",
        "Upgrade the chart if the operator's role lacks a permission, or raise the quota that the message names.",
    )
    NAME_TAKEN = (
        *("NameTaken", "Ready, Stalled", "the object that the message names"),
        "Delete the object, or give the HyphaWorker another name.",
    )
    ROLE_MISSING = (
        *("RoleMissing", "Ready, Stalled", "the chart's ClusterRole for token reviews"),
        "Upgrade the chart, or correct the operator's `HYPHA_TOKEN_REVIEWER_ROLE`.",
    )
    CERT_MANAGER_MISSING = (
        *("CertManagerMissing", "Ready, Stalled", "`spec.identity`"),
        "Install cert-manager, or name a Secret in `identity.secretName` in place of `identity.issuerRef`.",
    )
    SETTLED = "Settled", "Reconciling", "", "Nothing is in progress."
    NOT_STALLED = "NotStalled", "Stalled", "", "No action is needed."


class JobReason(Reason):
    """The reasons of a HyphaJob."""

    POD_PENDING = "PodPending", "Ready", "", "Wait: the job's pod waits for a node."
    POD_STARTS = "PodStarts", "Ready", "", "Wait: the node pulls images and starts the bridge."
    EXECUTOR_RUNS = "ExecutorRuns", "Ready", "", "All is well."
    DELIVERING_RESULTS = "DeliveringResults", "Ready", "", "Wait: the executor ended and the bridge sends results."
    COMPLETED = "Completed", "Ready", "", "All is well."
    QUEUED = (
        *("Queued", "Ready", "`kubectl get workloads -n ns`"),
        "Kueue has not admitted the job. Give the queue as much quota as the worker offers.",
    )
    ENDING = "Ending", "Reconciling", "the reason of `Ready`", "Wait: the operator ends the job's pod."
    ENDED = "Ended", "Reconciling", "the reason of `Ready`", "No part of the job runs any more."
    END_REPORTED = "EndReported", "Reported", "", "The controller has recorded the end of the job."
    CANCELLED = (
        *("Cancelled", "Ready", "the message"),
        "The scheduler ended the job or its lease, or somebody deleted the worker.",
    )
    EXECUTOR_FAILED = (
        *("ExecutorFailed", "Ready", "`status.lastLines`, `kubectl logs` of the pod, container `executor`"),
        "This is a fault of the job. The node notifies its scheduler.",
    )
    OUT_OF_MEMORY = (
        *("OutOfMemory", "Ready", "the lease's memory in `spec.resources`"),
        "Request more memory, or use less.",
    )
    STORAGE_EXCEEDED = (
        *("StorageExceeded", "Ready", "the lease's storage in `spec.resources`"),
        "Request more storage, or store less.",
    )
    RESULTS_UNDELIVERED = (
        *("ResultsUndelivered", "Ready", "`kubectl logs` of the pod, container `bridge`"),
        "Check that the peers are reachable. If the bridge ran out of time, raise `jobs.terminationGraceSeconds`.",
    )
    BRIDGE_FAILED = (
        *("BridgeFailed", "Ready", "`kubectl logs` of the pod, container `bridge`, `--previous`"),
        "Do what the last line of the log says.",
    )
    START_FAILED = (
        *("StartFailed", "Ready", "`kubectl describe pod`"),
        "Fix the volume, runtime class or command that the message names.",
    )
    IMAGE_PULL = (
        *("ImagePull", "Ready", "`executors.image`, the chart's `images`"),
        "Correct the image's name, or name credentials in `spec.imagePullSecrets`.",
    )
    UNSCHEDULABLE = (
        *("Unschedulable", "Ready", "`kubectl describe pod`, the free capacity of the nodes"),
        "Add nodes, offer less in `spec.resources`, or give an autoscaler time with `jobs.startPatienceSeconds`.",
    )
    QUOTA_EXCEEDED = (
        *("QuotaExceeded", "Ready", "`kubectl describe resourcequota -n ns`"),
        "Raise the ResourceQuota, or offer less in `spec.resources`.",
    )
    ADMISSION_REFUSED = (
        *("AdmissionRefused", "Ready", "the message"),
        "Change what a webhook or Pod Security refuses, usually in `executors.template`, or repair the webhook.",
    )
    INVALID_TEMPLATE = (
        *("InvalidTemplate", "Ready", "`executors.template`, or what the message names"),
        "Remove what the message names. Without DRA, set `resources.gpu.resourceName`, not `deviceClassName`.",
    )
    NAME_TAKEN = "NameTaken", "Ready", "the Job of the same name", "Delete that Job."
    EVICTED = (
        *("Evicted", "Ready", "the node"),
        "The node was drained, short of resources or shut down. The scheduler places the job again.",
    )
    NODE_LOST = (
        *("NodeLost", "Ready", "the node"),
        "The node is gone or does not answer. The scheduler places the job again.",
    )
    PREEMPTED = (
        *("Preempted", "Ready", "priorities, Kueue's queues"),
        "Raise `priorityClassName` in `executors.template`.",
    )
    LEASE_LOST = (
        *("LeaseLost", "Ready", "`kubectl logs -n ns deploy/w-controller`"),
        "The controller was away for longer than the lease. Look at the worker, or raise `leases.durationSeconds`.",
    )
    WORKER_GONE = "WorkerGone", "Ready", "", "Somebody deleted the job's HyphaWorker."
    JOB_DELETED = (
        *("JobDeleted", "Ready", "the audit log: which client deleted its Job or pod"),
        "To end a HyphaJob, set its `spec.cancel: {reason: ...}`.",
    )


def with_tables(page: str) -> str:
    """Return a page of documentation with the table of each resource's reasons between its markers."""
    for reasons in (WorkerReason, JobReason):
        begin, end = f"<!-- {reasons.__name__}: `make reasons` writes this table -->\n", "<!-- end -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the page has no table of {reasons.__name__}; add the lines {begin.strip()} and {end}")
        page = f"{before}{begin}{_table(reasons)}{end}{after}"
    return page


def _table(reasons: type[Reason]) -> str:
    rows = [f"| {row.conditions} | `{row}` | {row.look_at} | {row.remedy} |\n" for row in reasons]
    return "| condition | reason | look at | remedy |\n| --- | --- | --- | --- |\n" + "".join(rows)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_tables(path.read_text()))
