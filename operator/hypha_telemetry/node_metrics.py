"""The metrics of the node. The node's code names them by these constants, so each name is written once."""

from typing import Final

from hypha_telemetry.metric import BYTES_PER_SECOND, LONG_SECONDS, SECONDS, Kind, Metric

_PEER: Final = {"peer": "peer id of one of the 20 with most bytes, or `other`"}
_SCHEDULER: Final = {"scheduler": "peer id of one of the first 20, or `other`"}
_EXECUTOR: Final = {"executor": "class/name"}
_OUTCOME: Final = {"outcome": "`finished`, `failed`"}
_CONTENT: Final = {"content": "`slice`, `push`"}
_DIRECTION: Final = {"network.io.direction": "`receive`, `transmit`"}
_TASK: Final = {"task": "id of the task"}

REQUESTS: Final = Metric(
    "hypha.worker.requests",
    Kind.COUNTER,
    "{request}",
    "Requests of schedulers by decision",
    {"decision": "`considered`, `refused`, `ignored`", "reason": "reason of a refusal, as in conditions.md"},
)
REQUESTS_WAITING: Final = Metric(
    "hypha.worker.requests.waiting", Kind.UP_DOWN_COUNTER, "{request}", "Requests that wait for free capacity"
)
OFFERS_SENT: Final = Metric("hypha.worker.offers.sent", Kind.COUNTER, "{offer}", "Offers that schedulers received")
OFFERS_ENDED: Final = Metric(
    "hypha.worker.offers.ended",
    Kind.COUNTER,
    "{offer}",
    "Offers by outcome",
    {"outcome": "`accepted`, `lapsed` (no renewal in time), `undelivered`"},
)
OFFER_LATENCY: Final = Metric(
    "hypha.worker.offer.latency",
    Kind.HISTOGRAM,
    "s",
    "Time from a request's arrival to the scheduler's receipt of the offer",
    buckets=SECONDS,
)
LEASES_ACTIVE: Final = Metric(
    "hypha.worker.leases.active",
    Kind.UP_DOWN_COUNTER,
    "{lease}",
    "Leases that reserve resources",
    {"state": "`offered`, `held`, `ending`"},
)
LEASE_RENEWALS: Final = Metric(
    "hypha.worker.lease.renewals",
    Kind.COUNTER,
    "{renewal}",
    "Renewals that schedulers asked for",
    {"outcome": "`renewed`, `refused`"},
)
LEASE_EXPIRATIONS: Final = Metric(
    "hypha.worker.lease.expirations",
    Kind.COUNTER,
    "{lease}",
    "Held leases that expired",
    {"job.state": "`running` (the node ends it), `none`"},
)
LEASED_TIME: Final = Metric(
    "hypha.worker.leased.time",
    Kind.COUNTER,
    "s",
    "Time of ended leases from their acceptance to their end",
    _SCHEDULER,
)
EARNED: Final = Metric(
    "hypha.worker.earned",
    Kind.COUNTER,
    "{credit}",
    "Price times seconds of ended leases, in the network's own unit; it is no payment",
    _SCHEDULER,
)
DISPATCHES: Final = Metric(
    "hypha.worker.dispatches",
    Kind.COUNTER,
    "{dispatch}",
    "Jobs that schedulers dispatched",
    {"outcome": "`started`, `refused`", "error.type": "why it was refused: `lease`, `launch`"},
)
JOBS_ACTIVE: Final = Metric(
    "hypha.worker.jobs.active",
    Kind.UP_DOWN_COUNTER,
    "{job}",
    "Jobs by the status of their executor",
    {**_EXECUTOR, "state": "`starting`, `running`, `ending` (its lease expired)"},
)
JOBS_STARTED: Final = Metric("hypha.worker.jobs.started", Kind.COUNTER, "{job}", "Jobs that were started", _EXECUTOR)
JOBS_ENDED: Final = Metric(
    "hypha.worker.jobs.ended", Kind.COUNTER, "{job}", "Jobs that ended", {**_EXECUTOR, **_OUTCOME}
)
JOB_DURATION: Final = Metric(
    "hypha.worker.job.duration",
    Kind.HISTOGRAM,
    "s",
    "How long jobs ran under this node",
    {**_EXECUTOR, **_OUTCOME},
    LONG_SECONDS,
)
JOB_REPORTS: Final = Metric(
    "hypha.worker.job.reports",
    Kind.COUNTER,
    "{report}",
    "Reports of ended jobs to their schedulers",
    {"outcome": "`delivered`, `refused`, `abandoned` (the scheduler did not answer in time)"},
)

CAPACITY: Final = {
    name: Metric(f"hypha.worker.{name}.capacity", Kind.UP_DOWN_COUNTER, unit, f"{what} that the worker offers")
    for name, unit, what in (
        ("cpu", "{cpu}", "Cores"),
        ("memory", "By", "Memory"),
        ("storage", "By", "Storage"),
        ("gpu", "By", "GPU memory"),
    )
}
"""By resource, what the worker offers."""
RESERVED: Final = {
    name: Metric(
        f"hypha.worker.{name}.reserved",
        Kind.UP_DOWN_COUNTER,
        metric.unit,
        metric.description.replace("the worker offers", "leases reserve"),
    )
    for name, metric in CAPACITY.items()
}
"""By resource, what leases reserve."""

JOB_CPU: Final = Metric(
    "hypha.job.cpu.time",
    Kind.COUNTER,
    "s",
    "CPU time of a job's processes; in pods, of its executor's container",
    {**_TASK, "cpu.mode": "`user`, `system`"},
)
JOB_MEMORY: Final = Metric(
    "hypha.job.memory.usage",
    Kind.UP_DOWN_COUNTER,
    "By",
    "Resident memory of a job's processes; in pods, all memory of its executor's container",
    _TASK,
)
JOB_DISK: Final = Metric(
    "hypha.job.disk.io",
    Kind.COUNTER,
    "By",
    "Bytes that a job's processes read from and wrote to disks; in pods, its executor's container",
    {**_TASK, "disk.io.direction": "`read`, `write`"},
)
JOB_PROCESSES: Final = Metric(
    "hypha.job.processes", Kind.UP_DOWN_COUNTER, "{process}", "Processes of a job (process runtime)", _TASK
)

BATCHES: Final = Metric(
    "hypha.job.batches", Kind.COUNTER, "{batch}", "Batches that a job reported while this node ran", _TASK
)
SAMPLES: Final = Metric(
    "hypha.job.samples", Kind.COUNTER, "{sample}", "Samples of the batches that a job reported", _TASK
)
ROUND: Final = Metric("hypha.job.round", Kind.GAUGE, "{round}", "Latest round of which a job reported metrics", _TASK)
LOSS: Final = Metric("hypha.job.loss", Kind.GAUGE, "1", "Latest loss that a job reported", _TASK)
OUTER_STEP: Final = Metric(
    "hypha.job.outer_step.duration",
    Kind.HISTOGRAM,
    "s",
    "Time from the start of a job, or from its previous update, to its next update",
    _EXECUTOR,
    LONG_SECONDS,
)
OUTER_STEP_WAIT: Final = Metric(
    "hypha.job.outer_step.wait",
    Kind.HISTOGRAM,
    "s",
    "Part of an outer step in which a job trains nothing, because it exchanges its update",
    _EXECUTOR,
    SECONDS,
)

SLICES: Final = Metric(
    "hypha.worker.slices",
    Kind.COUNTER,
    "{slice}",
    "Slices that jobs asked for, by the data node that provides them",
    {**_PEER, "outcome": "`delivered`, `failed`"},
)
TRANSFERRED: Final = Metric(
    "hypha.worker.transfer",
    Kind.COUNTER,
    "By",
    "Bytes of completed slices and pushes of jobs",
    {**_PEER, **_CONTENT, **_DIRECTION},
)
TRANSFER_RATE: Final = Metric(
    "hypha.worker.transfer.rate",
    Kind.HISTOGRAM,
    "By/s",
    "Mean rate of each completed slice or push",
    {**_CONTENT, **_DIRECTION},
    BYTES_PER_SECOND,
)
TRANSFERS_ACTIVE: Final = Metric(
    "hypha.worker.transfers.active",
    Kind.UP_DOWN_COUNTER,
    "{transfer}",
    "Slices and pushes of jobs under way. Slices are read ahead of the executor",
    {**_CONTENT, **_DIRECTION},
)
PUSHES_WAITING: Final = Metric(
    "hypha.worker.pushes.waiting", Kind.UP_DOWN_COUNTER, "{push}", "Pushes of peers that wait for their job"
)

GATEWAYS: Final = Metric(
    "hypha.network.gateways", Kind.UP_DOWN_COUNTER, "{gateway}", "Gateways to which the node is connected"
)
RESERVATIONS: Final = Metric(
    "hypha.network.reservations",
    Kind.UP_DOWN_COUNTER,
    "{reservation}",
    "Gateways through which peers reach the node",
)
REACH: Final = Metric(
    "hypha.network.reach",
    Kind.GAUGE,
    "1",
    "1 for the way in which peers reach the node, else 0; 0 for all while no gateway observes the node",
    {"reach": "`public`, `punchable`, `bulk_relay`, `limited_relay`, `none`"},
)
PEERS: Final = Metric("hypha.network.peers", Kind.UP_DOWN_COUNTER, "{peer}", "Connected peers")
CONNECTIONS: Final = Metric(
    "hypha.network.connections",
    Kind.UP_DOWN_COUNTER,
    "{connection}",
    "Connections with peers",
    {"initiator": "`node`, `peer`", "path": "`direct`, `relayed`"},
)
SUBSCRIBERS: Final = Metric(
    "hypha.network.subscribers",
    Kind.UP_DOWN_COUNTER,
    "{peer}",
    "Connected peers that subscribe to the topic of requests, without which no request arrives",
)
HEALTHY: Final = Metric(
    "hypha.worker.healthy",
    Kind.GAUGE,
    "1",
    "1 if the node listens, has joined the network and has its reservation, else 0",
)
CERTIFICATE: Final = Metric(
    "hypha.worker.certificate.remaining", Kind.GAUGE, "s", "Time until the node's certificate expires"
)
ROUND_TRIP: Final = Metric(
    "hypha.network.round_trip",
    Kind.GAUGE,
    "s",
    "Latest round trip with a peer, measured every 30 s; of `other` the longest",
    _PEER,
)
INBOUND: Final = Metric(
    "hypha.bandwidth.inbound.bytes", Kind.COUNTER, "By", "Bytes received from peers, within TLS", _PEER
)
OUTBOUND: Final = Metric("hypha.bandwidth.outbound.bytes", Kind.COUNTER, "By", "Bytes sent to peers, within TLS", _PEER)
EVENT_LOOP_LAG: Final = Metric(
    "hypha.worker.event_loop.lag",
    Kind.HISTOGRAM,
    "s",
    "How late the event loop runs a task that is due, measured every second",
    buckets=SECONDS,
)

NODE_METRICS: Final = (
    *(REQUESTS, REQUESTS_WAITING, OFFERS_SENT, OFFERS_ENDED, OFFER_LATENCY),
    *(LEASES_ACTIVE, LEASE_RENEWALS, LEASE_EXPIRATIONS, LEASED_TIME, EARNED, *CAPACITY.values(), *RESERVED.values()),
    *(DISPATCHES, JOBS_ACTIVE, JOBS_STARTED, JOBS_ENDED, JOB_DURATION, JOB_REPORTS),
    *(JOB_CPU, JOB_MEMORY, JOB_DISK, JOB_PROCESSES),
    *(BATCHES, SAMPLES, ROUND, LOSS, OUTER_STEP, OUTER_STEP_WAIT),
    *(SLICES, TRANSFERRED, TRANSFER_RATE, TRANSFERS_ACTIVE, PUSHES_WAITING),
    *(
        HEALTHY,
        CERTIFICATE,
        GATEWAYS,
        RESERVATIONS,
        REACH,
        PEERS,
        CONNECTIONS,
        SUBSCRIBERS,
        ROUND_TRIP,
        INBOUND,
        OUTBOUND,
    ),
    EVENT_LOOP_LAG,
)
