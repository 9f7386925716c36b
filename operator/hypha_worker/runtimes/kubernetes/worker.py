"""Follows the HyphaWorker of a node by a watch, so that a change of it needs no new pod."""

import logging
from collections.abc import Callable
from typing import Any, Final

import trio
from pydantic import ValidationError

from hypha_contracts.kubernetes_errors import ApiError
from hypha_contracts.names import API_VERSION, WORKERS
from hypha_contracts.node_config import KubernetesConfig, NodeConfig
from hypha_messages.validation import describe
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_resources.node_tables import job_limits, market_tables
from hypha_resources.worker import HyphaWorkerSpec
from hypha_resources.worker_status import Offering
from hypha_worker.market.settings import NOTHING, Permit, differing
from hypha_worker.runtimes.kubernetes.api import KubernetesApi, Object

logger = logging.getLogger(__name__)
_rate_limited_log = RateLimitedLogger(logger)

_AGAIN_S: Final = 1.0


class HyphaWorkerWatch:
    """Follows one HyphaWorker.

    Args:
        api: the API server.
        config: the node's configuration as its file has it. What the HyphaWorker says takes precedence.
    """

    def __init__(self, api: KubernetesApi, cluster: KubernetesConfig, config: NodeConfig) -> None:
        self._api = api
        self._cluster = cluster
        self._followed = (config, NOTHING)
        self._path = f"/apis/{API_VERSION}/namespaces/{cluster.namespace}/{WORKERS}"

    async def run(self, apply: Callable[[NodeConfig, Permit], None]) -> None:
        """Call `apply` with the configuration and the permit whenever they have changed, until cancelled."""

        def record(kind: str, found: Object) -> None:
            if kind != "DELETED" and (followed := self._follow(found)) != self._followed:
                if keys := differing(self._followed[0], followed[0]):
                    logger.info("reloaded: %s", ", ".join(keys))
                self._followed = followed
                apply(*followed)

        selector = {"fieldSelector": f"metadata.name={self._cluster.worker}"}
        version: str | None = None
        while True:
            try:
                if version is None:
                    found = await self._api.get(f"{self._path}/{self._cluster.worker}")
                    record("MODIFIED", found)
                    version = str(found["metadata"]["resourceVersion"])
                version = await self._api.watch(self._path, selector, version, record)
            except ApiError as error:
                version = None
                _rate_limited_log.info("HyphaWorker", "reading the HyphaWorker again: %s", error)
                await trio.sleep(_AGAIN_S)

    def _follow(self, found: Object) -> tuple[NodeConfig, Permit]:
        """Return what a HyphaWorker says. What cannot be read of it stays as it was."""
        config, permit = self._followed
        if found["metadata"]["uid"] != self._cluster.worker_uid:
            return config, NOTHING  # a successor of the same name, which gets a node of its own
        try:
            permit = permit_of((found.get("status") or {}).get("offering"))
            config = configured(config, found)
        except ValidationError as error:
            problem = describe(error, "HyphaWorker")
            _rate_limited_log.warning("HyphaWorker", "a change of it cannot be read, and nothing changes: %s", problem)
        return config, permit


def configured(config: NodeConfig, found: Object) -> NodeConfig:
    """Return a node's configuration with what a HyphaWorker says. ValidationError if its specification is invalid."""
    spec = HyphaWorkerSpec.model_validate(found["spec"])
    update: dict[str, Any] = {**market_tables(spec), "jobs": config.jobs.model_copy(update=job_limits(spec))}
    if "deletionTimestamp" in found["metadata"]:
        update["suspend"] = True  # the operator ends its jobs
    return config.model_copy(update=update)


def permit_of(offering: Object | None) -> Permit:
    """Return what a node may sell by the status of its HyphaWorker. ValidationError."""
    if offering is None:
        return NOTHING
    found = Offering.model_validate(offering)
    return Permit(
        found.enabled,
        found.proven_at.timestamp() if found.proven_at else None,
        found.limit.resources if found.limit else None,
        found.per_job.resources if found.per_job else None,
    )
