"""The reasons of a HyphaWorker's conditions and events and of refused requests, with their remedies."""

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """A reason for programs, with its documentation for people.

    Attributes:
        remedy: what to do, as full sentences in Markdown. Messages may quote it.
        look_at: where to find more information, in Markdown. `w` is the worker and `ns` its namespace.
        conditions: the types of the conditions that have this reason. Events about the same resource have it too.
    """

    remedy: str
    look_at: str
    conditions: str

    def __new__(cls, value: str, remedy: str, look_at: str = "", conditions: str = "Ready") -> Self:
        """Return a member that is equal to `value`."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.remedy, member.look_at, member.conditions = remedy, look_at, conditions
        return member


class WorkerReason(Reason):
    """The reasons of a HyphaWorker."""

    SERVING = "Serving", "All is well."
    SUSPENDED = "Suspended", "Unset `spec.suspend` to make offers again."
    STARTING = (
        "Starting",
        "Wait. If this persists, read the events of the pod.",
        "`kubectl get pods -n ns -l hypha.space/worker=w`",
    )
    DRAINING = (
        "Draining",
        "Wait while its jobs end and the node notifies their schedulers. The message gives the deadline.",
        "`kubectl get hyphajobs -n ns -l hypha.space/worker=w`",
    )
    APPLY_FAILED = (
        "ApplyFailed",
        "The operator tries again. If this persists, fix what the message names, such as an unreachable webhook.",
        "the message",
    )
    SECRET_MISSING = (
        "SecretMissing",
        "Create the Secrets that the message names. The pod then starts by itself.",
        "`kubectl get secret -n ns`",
    )
    CERTIFICATE_PENDING = "CertificatePending", "Fix the issuer.", "`kubectl describe certificate -n ns w-identity`"
    IMAGE_PULL = (
        "ImagePull",
        "Correct the name in `spec.controller.image` or the chart's `images`, or set `spec.imagePullSecrets`.",
        "the chart's `images`, `spec.controller.image`",
    )
    CONTAINER_REFUSED = (
        "ContainerRefused",
        "Usually a Secret lacks `tls.crt`, `tls.key` or `ca.crt`. Add it.",
        "the message",
    )
    CONTROLLER_CRASHING = (
        "ControllerCrashing",
        "Do what the last line of the log says.",
        "`kubectl logs -n ns deploy/w-controller --previous`",
    )
    UNSCHEDULABLE = (
        "Unschedulable",
        "Add nodes, or lower `spec.controller.resources`.",
        "`kubectl describe pod` of the controller",
    )
    POD_REFUSED = (
        "PodRefused",
        "Raise the quota, or change `spec.controller.template` or an `expose` of type HostPort to suit admission.",
        "the message",
    )
    NOT_HEALTHY = (
        "NotHealthy",
        "The node runs but its probe fails. Its log says why.",
        "`kubectl logs -n ns deploy/w-controller`",
    )
    NO_GATEWAY = (
        "NoGateway",
        "Check `spec.network.gateways`, that TCP or UDP reaches them, and that they trust the authorities in `ca.crt`.",
        "`spec.network.gateways`, egress of the namespace",
        "Connected",
    )
    NO_RELAY = (
        "NoRelay",
        "If this persists, add a gateway that relays, or set `spec.network.expose` and `relayCircuit: false`.",
        "the gateways",
        "Connected",
    )
    CONNECTED = "Connected", "All is well.", "", "Connected"
    PUBLIC = "Public", "All is well.", "", "Reachable"
    PUNCHABLE = (
        "Punchable",
        "Set `spec.network.expose` to let peers behind NATs with random ports connect directly, too.",
        "docs/networking.md",
        "Reachable",
    )
    BULK_RELAY = (
        "BulkRelay",
        "Set `spec.network.expose` to spare the gateway the bulk data of jobs.",
        "docs/networking.md",
        "Reachable",
    )
    LIMITED_RELAY = (
        "LimitedRelay",
        "Use `spec.network.expose` with public hosts, or a gateway that relays bulk data. See docs/networking.md.",
        "docs/networking.md, `spec.network`",
        "Reachable",
    )
    UNREACHABLE = (
        "Unreachable",
        "Set `spec.network.expose` or `externalAddresses`, or `relayCircuit: true` with a gateway that relays.",
        "docs/networking.md, `spec.network`",
        "Reachable",
    )
    NOT_OBSERVED = (
        "NotObserved",
        "Wait until a gateway is connected and identifies itself.",
        "the condition `Connected`",
        "Reachable",
    )
    NOT_REPORTED = (
        "NotReported",
        "The controller has not reported yet. `Ready` says why.",
        "the controller's pod",
        "Connected, Reachable, IdentityValid, RequestsAnswered",
    )
    VALID = "Valid", "All is well.", "", "IdentityValid"
    IDENTITY_REFUSED = (
        "IdentityRefused",
        "Provide an Ed25519 key in PKCS#8 and its certificate, issued by an authority in `ca.crt` and not revoked.",
        "`kubectl get secret -n ns w-identity` and the message",
        "IdentityValid, Stalled",
    )
    PEER_ID_CHANGED = (
        "PeerIdChanged",
        "Put the old key back, or set `spec.identity.allowPeerIdChange` to become another peer.",
        "recent changes of the Secret",
        "IdentityValid, Stalled",
    )
    CERTIFICATE_EXPIRED = (
        "CertificateExpired",
        "Put a new certificate for the same key into the Secret. The node needs no restart.",
        "the Secret",
        "IdentityValid, Stalled",
    )
    CERTIFICATE_EXPIRES_SOON = (
        "CertificateExpiresSoon",
        "Put a new certificate for the same key into the Secret before then. The node needs no restart.",
        "the Secret",
        "IdentityValid",
    )
    ANSWERED = (
        "Answered",
        "If no jobs arrive nevertheless, lower the price, or wait until other leases free capacity.",
        "`status.node.allocated`, `spec.offer`",
        "RequestsAnswered",
    )
    NO_REQUESTS = (
        "NoRequests",
        "Wait. Check that the schedulers are in the network of `spec.network.gateways`.",
        "the schedulers",
        "RequestsAnswered",
    )
    BID_BELOW_FLOOR = (
        "BidBelowFloor",
        "Lower `spec.offer.floor` (100 by default) and `price`, or have schedulers bid more.",
        "`status.node.requests`",
        "RequestsAnswered",
    )
    EXECUTOR_UNSUPPORTED = (
        "ExecutorUnsupported",
        "Add the executor to `spec.executors`, or have schedulers request one that is listed there.",
        "`spec.executors`",
        "RequestsAnswered",
    )
    NO_EXECUTOR = (
        "NoExecutor",
        "Have schedulers name an executor of `spec.executors`.",
        "`spec.executors`",
        "RequestsAnswered",
    )
    MORE_THAN_CAPACITY = (
        "MoreThanCapacity",
        "Raise `spec.resources` if the cluster has more, or have schedulers request less.",
        "`status.capacity`",
        "RequestsAnswered",
    )
    MORE_THAN_PER_JOB = (
        "MoreThanPerJob",
        "Have schedulers request less, or raise `spec.resources.perJob` or add larger nodes to `spec.resources.nodes`.",
        "`spec.resources`, `status.offering.perJob`",
        "RequestsAnswered",
    )
    MORE_THAN_SHARE = (
        "MoreThanShare",
        "Raise `spec.schedulers.maxShare`, or have schedulers request less.",
        "`spec.schedulers.maxShare`",
        "RequestsAnswered",
    )
    SCHEDULER_BLOCKED = (
        "SchedulerBlocked",
        "Remove the scheduler from `spec.schedulers.block` if it may have jobs here.",
        "`spec.schedulers.block`",
        "RequestsAnswered",
    )
    SCHEDULER_NOT_ALLOWED = (
        "SchedulerNotAllowed",
        "Add the scheduler to `spec.schedulers.allow`, or empty that list.",
        "`spec.schedulers.allow`",
        "RequestsAnswered",
    )
    NO_BULK_DATA = (
        "NoBulkData",
        "Do what `Reachable` says, or set `spec.offer.aggregateNeedsReach: false` if all trainers reach this worker.",
        "the condition `Reachable`",
        "RequestsAnswered",
    )
    REQUEST_EXPIRED = (
        "RequestExpired",
        "Correct the clocks of the schedulers and of the cluster's nodes.",
        "the clocks of schedulers and nodes",
        "RequestsAnswered",
    )
    INVALID_SPEC = (
        "InvalidSpec",
        "Correct the field. If it is correct, upgrade the chart: its definitions differ from the operator's.",
        "the message, which names the field",
        "Ready, Stalled",
    )
    INVALID_TEMPLATE = (
        "InvalidTemplate",
        "Remove what the message names.",
        "`spec.controller.template`",
        "Ready, Stalled",
    )
    REFUSED = (
        "Refused",
        "Correct the field of the spec that the value comes from.",
        "the message, which names the object and its field",
        "Ready, Stalled",
    )
    FORBIDDEN = (
        "Forbidden",
        "Upgrade the chart, because the operator's role lacks the permission that the message names.",
        "`kubectl auth can-i --list --as=system:serviceaccount:hypha-system:hypha-worker -n ns`",
        "Ready, Stalled",
    )
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        "Raise the ResourceQuota that the message names.",
        "`kubectl describe resourcequota -n ns`",
        "Ready, Stalled",
    )
    ADMISSION_REFUSED = (
        "AdmissionRefused",
        "Set what the policy asks for in `spec.commonLabels`, `spec.commonAnnotations` or `spec.controller`.",
        "the webhook or policy that the message names",
        "Ready, Stalled",
    )
    NAME_TAKEN = (
        "NameTaken",
        "Delete the object, or give the HyphaWorker another name.",
        "the object that the message names",
        "Ready, Stalled",
    )
    SERVED_BY_OTHER = (
        "ServedByOther",
        "Uninstall one of the two releases that serve the namespace. The other release sets the conditions.",
        "the message, which names the other release",
        "only an event",
    )
    CERT_MANAGER_MISSING = (
        "CertManagerMissing",
        "Install cert-manager, or name a Secret in `identity.secretName` in place of `identity.issuerRef`.",
        "`spec.identity`",
        "Ready, Stalled",
    )
    EXECUTORS_INVALID = (
        "ExecutorsInvalid",
        "Do what the message says. The worker makes offers again once the API server accepts the job of each executor.",
        "the condition `ExecutorsValid`, whose reasons are those of HyphaJobs",
        "Ready, Stalled",
    )
    JOBS_DO_NOT_START = (
        "JobsDoNotStart",
        "Do what the message says. The operator probes with growing pauses, and at once after a change of the spec.",
        "the condition `JobsStart`, whose reasons are those of HyphaJobs; `kubectl get jobs -n ns w-probe`",
        "Ready, Stalled",
    )
    VALIDATED = "Validated", "All is well.", "", "ExecutorsValid"
    NOT_VALIDATED = (
        "NotValidated",
        "Wait. If this persists, `Ready` says why the operator could not ask the API server.",
        "the condition `Ready`",
        "ExecutorsValid",
    )
    JOBS_START = "JobsStart", "All is well.", "", "JobsStart"
    NOT_TRIED = "NotTried", "Wait for the first job.", "", "JobsStart"
    SETTLED = "Settled", "Nothing is in progress.", "", "Reconciling"
    NOT_STALLED = "NotStalled", "No action is needed.", "", "Stalled"
