"""Derive the stages of a job's start from its pod. The kubelet reports times in whole seconds. Performs no I/O."""

from itertools import pairwise
from typing import Any

from hypha_contracts.kinds import Manifest
from hypha_contracts.names import BRIDGE, EXECUTOR
from hypha_contracts.object_status import find_condition, is_true
from hypha_operator.pods.state import started_at


def stages_of(pod: Manifest) -> list[dict[str, Any]]:
    """Return the stages that are over, in their order.

    The kubelet does not report when it has pulled an image. So `image pulled` includes the start of the container.
    """
    times = [
        ("pod scheduled", pod["metadata"]["creationTimestamp"]),
        ("pod prepared", _transition(pod, "PodScheduled")),
        ("bridge image pulled", _transition(pod, "PodReadyToStartContainers")),
        ("image pulled", started_at(pod, BRIDGE)),
        ("", started_at(pod, EXECUTOR)),
    ]
    return [
        {"name": name, "startTime": start, "endTime": end}
        for (name, start), (_, end) in pairwise(times)
        if start and end
    ]


def _transition(pod: Manifest, type_: str) -> str | None:
    return find_condition(pod, type_)["lastTransitionTime"] if is_true(pod, type_) else None
