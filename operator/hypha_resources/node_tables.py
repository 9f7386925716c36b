"""The tables of the node's configuration that a running node takes over from its HyphaWorker."""

from typing import Any, Final

from hypha_contracts.market_config import (
    LeasesConfig,
    MinimumConfig,
    NodesConfig,
    OfferConfig,
    PerJobConfig,
    ResourcesConfig,
    SchedulersConfig,
    SelectionConfig,
)
from hypha_resources.worker import HyphaWorkerSpec, ResourcesSpec, amounts

_MARKET: Final = ("suspend", "suspend_deadline", "resources", "offer", "selection", "schedulers", "leases")
FOLLOWED: Final = (*_MARKET, "jobs")
"""The keys of `NodeConfig` whose values `market_tables` and `job_limits` return."""


def market_tables(spec: HyphaWorkerSpec) -> dict[str, Any]:
    """Return the fields of `NodeConfig` that say what the worker offers, except the jobs' limits."""
    return {
        "suspend": spec.suspend,
        "suspend_deadline": spec.suspend_deadline,
        "resources": _resources(spec.resources),
        "offer": OfferConfig(
            **spec.offer.model_dump(by_alias=False, exclude={"minimum"}),
            minimum=MinimumConfig(**spec.offer.minimum.amounts),
        ),
        "selection": SelectionConfig(**spec.selection.model_dump(by_alias=False)),
        "schedulers": SchedulersConfig(**spec.schedulers.model_dump(by_alias=False)),
        "leases": LeasesConfig(duration_s=spec.leases.duration_seconds),
    }


def job_limits(spec: HyphaWorkerSpec) -> dict[str, Any]:
    """Return the fields of the node's table `jobs`."""
    return {
        "max_duration_s": spec.jobs.max_duration_seconds,
        "keep_ended_s": spec.jobs.ttl_seconds_after_finished,
    }


def _resources(resources: ResourcesSpec) -> ResourcesConfig:
    device_gb = resources.gpu.memory_gb if resources.gpu else 0.0
    kinds = [NodesConfig(count=kind.count, **amounts(kind), gpu=kind.gpu * device_gb) for kind in resources.nodes]
    return ResourcesConfig(
        **resources.capacity.model_dump(),
        gpu_device=device_gb,
        per_job=_per_job(resources, device_gb),
        nodes=kinds,
    )


def _per_job(resources: ResourcesSpec, device_gb: float) -> PerJobConfig | None:
    if (most := resources.per_job) is None:
        return None
    return PerJobConfig(**amounts(most), gpu=None if most.gpu is None else most.gpu * device_gb)
