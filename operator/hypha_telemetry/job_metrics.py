"""The metrics that jobs report about themselves. A job can use these names and attribute values, and no others.

Bridge, trainer and SDK write the names as text, because executors import nothing of ours but their SDK.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from hypha_telemetry.metric import Kind, Metric
from hypha_telemetry.node_metrics import JOB_CPU, JOB_DISK, JOB_MEMORY

_TASK: Final = {"task": "id of the task"}
_MAX_GPUS: Final = 16
_GPU_IDS: Final = {"hw.id": "number of the GPU, from 0"}

TRANSFER: Final = Metric(
    "hypha.job.transfer",
    Kind.COUNTER,
    "By",
    "Bytes that the job's bridge fetched, received and sent",
    {**_TASK, "source": "`hub`, `cache`, `http`, `peer`", "network.io.direction": "`receive`, `transmit`"},
)
SLICES_AHEAD: Final = Metric(
    "hypha.job.slices.ahead",
    Kind.UP_DOWN_COUNTER,
    "{slice}",
    "Slices fetched before the executor asked for them",
    _TASK,
)
WAITING: Final = Metric(
    "hypha.job.waiting.time",
    Kind.COUNTER,
    "s",
    "Time that the executor waited. The rate is the share of time spent waiting",
    {**_TASK, "for": "`data`, `network`, `update`, `pseudo-gradients`"},
)
TOKENS: Final = Metric(
    "hypha.job.tokens", Kind.COUNTER, "{token}", "Tokens, without padding, of the batches that a trainer trained", _TASK
)
LOSSES_NOT_FINITE: Final = Metric(
    "hypha.job.losses.not_finite", Kind.COUNTER, "{batch}", "Batches whose loss was NaN or infinite", _TASK
)
DROPPED: Final = Metric(
    "hypha.job.metrics.dropped",
    Kind.COUNTER,
    "{value}",
    "Values that the executor reported to the scheduler and that are not finite numbers, such as the loss of a model "
    "that diverged",
    _TASK,
)
RESTARTS: Final = Metric(
    "hypha.job.restarts", Kind.COUNTER, "{restart}", "Restarts of the executor after a crash", _TASK
)
PSEUDO_GRADIENTS: Final = Metric(
    "hypha.job.pseudo_gradients",
    Kind.COUNTER,
    "{file}",
    "Pseudo-gradients that the parameter server merged, or refused for a reason",
    {**_TASK, "outcome": "`merged`, `late`, `early`, `second`, `refused`"},
)
ROUND_DEADLINE: Final = Metric(
    "hypha.job.round.deadline",
    Kind.GAUGE,
    "s",
    "Time, since the epoch, after which a quorum closes the parameter server's round",
    _TASK,
)
ROUND_MISSING: Final = Metric(
    "hypha.job.round.missing",
    Kind.GAUGE,
    "{member}",
    "Members that have sent nothing for the parameter server's round",
    _TASK,
)
GPU_UTILIZATION: Final = Metric(
    "hw.gpu.utilization", Kind.GAUGE, "1", "Share of time in which the job's GPU was busy", {**_TASK, **_GPU_IDS}
)
GPU_MEMORY: Final = Metric(
    "hw.gpu.memory.usage", Kind.UP_DOWN_COUNTER, "By", "Memory of the job's GPU in use", {**_TASK, **_GPU_IDS}
)


class Reported(NamedTuple):
    """A metric that jobs report, and the values that each of its attributes may have."""

    metric: Metric
    allowed: Mapping[str, frozenset[str]] = {}

    def allows(self, attributes: Mapping[str, str]) -> bool:
        """Whether these are the metric's attributes, with allowed values."""
        return attributes.keys() == self.allowed.keys() and all(
            value in self.allowed[name] for name, value in attributes.items()
        )


_GPUS: Final = {"hw.id": frozenset(map(str, range(_MAX_GPUS)))}
PROGRESS: Final = (
    Reported(
        TRANSFER,
        {
            "source": frozenset(("hub", "cache", "http", "peer")),
            "network.io.direction": frozenset(("receive", "transmit")),
        },
    ),
    Reported(SLICES_AHEAD),
    Reported(WAITING, {"for": frozenset(("data", "network", "update", "pseudo-gradients"))}),
    Reported(TOKENS),
    Reported(LOSSES_NOT_FINITE),
    Reported(DROPPED),
    Reported(RESTARTS),
    Reported(PSEUDO_GRADIENTS, {"outcome": frozenset(("merged", "late", "early", "second", "refused"))}),
    Reported(ROUND_DEADLINE),
    Reported(ROUND_MISSING),
)
"""What jobs report in both runtimes."""
RESOURCES: Final = (
    Reported(JOB_CPU, {"cpu.mode": frozenset(("user", "system"))}),
    Reported(JOB_MEMORY),
    Reported(JOB_DISK, {"disk.io.direction": frozenset(("read", "write"))}),
    Reported(GPU_UTILIZATION, _GPUS),
    Reported(GPU_MEMORY, _GPUS),
)
"""What jobs report in pods. On a host, the node measures it itself."""

JOB_METRICS: Final = (
    *(TRANSFER, SLICES_AHEAD, WAITING, TOKENS, LOSSES_NOT_FINITE, DROPPED, RESTARTS),
    *(PSEUDO_GRADIENTS, ROUND_DEADLINE, ROUND_MISSING),
    *(GPU_UTILIZATION, GPU_MEMORY),
)
