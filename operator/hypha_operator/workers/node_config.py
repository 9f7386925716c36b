"""Write a HyphaWorker's specification as the TOML that `hypha-worker run` reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tomlkit

from hypha_contracts.names import CONNECTOR_PORT, TOKEN_AUDIENCE
from hypha_contracts.node_config import (
    ExecutorConfig,
    JobsConfig,
    KubernetesConfig,
    LeasesConfig,
    MinimumConfig,
    NodeConfig,
    OfferConfig,
    ResourcesConfig,
    SelectionConfig,
)
from hypha_operator.machinery.kinds import Manifest
from hypha_resources.worker import HyphaWorkerSpec

IDENTITY_DIR: Final = "/etc/hypha/identity"
TRUST_DIR: Final = "/etc/hypha/trust"
WORK_DIR: Final = "/var/lib/hypha"


def config_toml(
    hypha_worker: Manifest,
    spec: HyphaWorkerSpec,
    *,
    external_addresses: list[str],
    accept_offers: bool,
    peer_id: str | None,
) -> str:
    """Return the text of the node's configuration file.

    Args:
        hypha_worker: the worker, for its name and uid.
        spec: its specification.
        external_addresses: the addresses for peers outside the cluster.
        accept_offers: False while the worker is suspended or being deleted.
        peer_id: the only peer id that the node may have. None permits any peer id.
    """
    metadata = hypha_worker["metadata"]
    gpu, network = spec.resources.gpu, spec.network
    config = NodeConfig(
        cert_pem=Path(IDENTITY_DIR, "tls.crt"),
        key_pem=Path(IDENTITY_DIR, "tls.key"),
        trust_pem=Path(TRUST_DIR, "ca.crt"),
        crls_pem=Path(TRUST_DIR, "crl.pem"),
        gateway_addresses=network.gateways,
        listen_addresses=network.listen_addresses,
        external_addresses=external_addresses,
        **({} if network.exclude_cidr is None else {"exclude_cidr": network.exclude_cidr}),
        relay_circuit=network.relay_circuit,
        work_dir=Path(WORK_DIR),
        **_telemetry(spec, metadata),
        resources=ResourcesConfig(
            **spec.resources.capacity.model_dump(), **({"gpu_device": gpu.memory_gb} if gpu else {})
        ),
        offer=OfferConfig(
            **spec.offer.model_dump(by_alias=False, exclude={"minimum"}),
            minimum=MinimumConfig(**spec.offer.minimum.amounts),
        ),
        selection=SelectionConfig(**spec.selection.model_dump(by_alias=False)),
        leases=LeasesConfig(duration_s=spec.leases.duration_seconds),
        jobs=JobsConfig(
            allow_private_addresses=spec.jobs.allow_private_addresses,
            exclude_cidr=spec.jobs.exclude_cidr,
            read_ahead=spec.jobs.read_ahead,
        ),
        kubernetes=KubernetesConfig(
            namespace=metadata["namespace"],
            worker=metadata["name"],
            worker_uid=metadata["uid"],
            connector_port=CONNECTOR_PORT,
            audience=TOKEN_AUDIENCE,
            ttl_seconds_after_finished=spec.jobs.ttl_seconds_after_finished,
            accept_offers=accept_offers,
            peer_id=peer_id,
        ),
        executors=[
            ExecutorConfig(class_=executor.class_, name=executor.name, runtime="kubernetes")
            for executor in spec.executors
        ],
    )
    return tomlkit.dumps(config.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True))


def _telemetry(spec: HyphaWorkerSpec, metadata: Mapping[str, Any]) -> dict[str, Any]:
    if (telemetry := spec.telemetry) is None:
        return {}
    attributes = {
        "k8s.namespace.name": metadata["namespace"],
        "service.instance.id": f"{metadata['namespace']}/{metadata['name']}",
        **telemetry.attributes,
    }
    return {
        "telemetry_endpoint": telemetry.endpoint,
        "telemetry_protocol": telemetry.protocol,
        "telemetry_sampler": telemetry.sampler,
        "telemetry_sample_ratio": telemetry.sample_ratio,
        "telemetry_attributes": attributes,
    }
