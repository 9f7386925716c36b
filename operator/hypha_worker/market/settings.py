"""What a node offers and grants, from its configuration and from what it may sell. A running node takes over changes.

Pure functions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel

from hypha_contracts.node_config import NodeConfig
from hypha_contracts.reach import Reach
from hypha_contracts.times import KEEP_ENDED_S
from hypha_messages.types import Resources
from hypha_worker.market.capacity import Capacity, NodeKind, least_of
from hypha_worker.market.evaluator import Policy, Preferences
from hypha_worker.market.rules import LedgerRules

_RELOADED: Final = frozenset({"suspend", "suspend_deadline", "resources", "offer", "selection", "schedulers", "leases"})
_RELOADED_OF_JOBS: Final = "max_duration_s"


@dataclass(frozen=True)
class Permit:
    """What a node may sell. In a cluster, the operator finds out.

    Attributes:
        enabled: False while jobs could not run.
        proven_at: when an executor of this worker was last known to start, in seconds since the epoch, or None.
        limit: the most that all leases may reserve, and `per_job` the most of one. None: as configured.
    """

    enabled: bool
    proven_at: float | None = None
    limit: Resources | None = None
    per_job: Resources | None = None


NOTHING: Final = Permit(enabled=False)
EVERYTHING: Final = Permit(enabled=True, proven_at=math.inf)
"""What the owner of a host configured."""


@dataclass(frozen=True)
class Settings:
    """What arbiter and ledger go by.

    Attributes:
        offers: whether the node makes offers.
        suspended: whether its owner has suspended it, so that it makes none.
        proven_at: as in the permit.
    """

    policy: Policy
    rules: LedgerRules
    offers: bool
    proven_at: float | None
    suspended: bool = False


def settings_of(config: NodeConfig, permit: Permit, reach: Reach | None = None) -> Settings:
    """Return the settings of a node that peers reach in this way."""
    leases, schedulers = config.leases, config.schedulers
    configured = _capacity(config)
    capacity = Capacity(
        least_of(configured.total, permit.limit),
        least_of(configured.per_job or configured.total, permit.per_job),
        configured.kinds,
    )
    policy = Policy(
        capacity=capacity,
        minimum=least_of(config.minimum, configured.largest),
        executors=frozenset(executor.descriptor for executor in config.executors),
        price=config.offer.price,
        floor=config.offer.floor,
        offer=config.offer.strategy,
        selection=config.selection.strategy,
        preferences=Preferences(config.selection.schedulers, config.selection.executors),
        gpu_device=config.resources.gpu_device,
        allowed=frozenset(schedulers.allow) or None,
        blocked=frozenset(schedulers.block),
        max_share=schedulers.max_share,
        aggregate_needs_reach=config.offer.aggregate_needs_reach,
        reach=reach,
    )
    deadline = config.suspend_deadline if config.suspend else None
    rules = LedgerRules(
        capacity=capacity,
        share=policy.share if schedulers.max_share < 1 else None,
        temporary_s=leases.temporary_ms / 1000,
        duration_s=leases.duration_s,
        ended_s=leases.ended_s,
        kept_s=min(config.jobs.keep_ended_s, KEEP_ENDED_S) if config.kubernetes else 0,
        prune_s=leases.prune_ms / 1000,
        max_live=leases.max_live,
        max_job_s=config.jobs.max_duration_s,
        closes=deadline.timestamp() if deadline else None,
    )
    return Settings(
        policy,
        rules,
        offers=permit.enabled and not config.suspend,
        proven_at=permit.proven_at,
        suspended=config.suspend,
    )


def _capacity(config: NodeConfig) -> Capacity:
    resources, total = config.resources, config.capacity
    most = {name: value for name, value in resources.per_job or () if value is not None}
    kinds = tuple(NodeKind(kind.count, kind.each) for kind in resources.nodes)
    return Capacity(total, least_of(total, total.model_copy(update=most)), kinds)


@dataclass(frozen=True)
class Reload:
    """The configuration that a running node goes on with, and the keys that differ from before.

    Attributes:
        changed: those that it has taken over.
        left_alone: those that need a restart.
    """

    config: NodeConfig
    changed: tuple[str, ...]
    left_alone: tuple[str, ...]


def reload(running: NodeConfig, read: NodeConfig) -> Reload:
    """Return what a running node takes over of a configuration that was read again."""
    found = differing(running, read)
    changed = tuple(key for key in found if _is_reloaded(key))
    update: dict[str, Any] = {name: getattr(read, name) for name in _RELOADED}
    update["resources"] = read.resources.model_copy(update={"gpu_device": running.resources.gpu_device})
    update["jobs"] = running.jobs.model_copy(update={_RELOADED_OF_JOBS: read.jobs.max_duration_s})
    return Reload(running.model_copy(update=update), changed, tuple(key for key in found if key not in changed))


def differing(before: NodeConfig, now: NodeConfig) -> list[str]:
    """Return the keys whose values differ, such as offer.price."""
    return [key for (key, old), (_, new) in zip(_keys(before), _keys(now), strict=True) if old != new]


def _keys(config: NodeConfig) -> Iterator[tuple[str, Any]]:
    for name in NodeConfig.model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from ((f"{name}.{key}", item) for key, item in value)
        else:
            yield name, value


def _is_reloaded(key: str) -> bool:
    """Whether a running node takes over a key. GPUs are given to jobs by the size of a device, so that stays."""
    name = key.partition(".")[0]
    return (name in _RELOADED and key != "resources.gpu_device") or key == f"jobs.{_RELOADED_OF_JOBS}"
