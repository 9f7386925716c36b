"""Write a HyphaWorker's specification as the TOML that `hypha-worker run` reads."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import tomlkit

from hypha_contracts.kinds import Manifest
from hypha_contracts.names import CONNECTOR_PORT, METRICS_PORT, STATUS_PAGE_PORT, TOKEN_AUDIENCE, status_service_name
from hypha_contracts.node_config import ExecutorConfig, JobsConfig, KubernetesConfig, NodeConfig
from hypha_operator.workers.network import HOST_IP, host_ports
from hypha_resources.node_tables import FOLLOWED, job_limits, market_tables
from hypha_resources.worker import HyphaWorkerSpec

IDENTITY_DIR: Final = "/etc/hypha/identity"
TRUST_DIR: Final = "/etc/hypha/trust"
TELEMETRY_DIR: Final = "/etc/hypha/telemetry"
HEADERS_FILE: Final = "headers"
WORK_DIR: Final = "/var/lib/hypha"


def config_toml(config: NodeConfig) -> str:
    """Return the text of the node's configuration file."""
    return _toml(config.model_dump_json(by_alias=True, exclude_unset=True, exclude_none=True))


@lru_cache(maxsize=1024)
def _toml(content: str) -> str:
    """Return a JSON object as TOML. The operator asks at every reconcile of a worker, and the object seldom changes."""
    return tomlkit.dumps(json.loads(content))


def fixed_part(config: NodeConfig) -> str:
    """Return the part of a configuration that a running node cannot change, as text.

    The node follows the other part in its HyphaWorker. A running node has the required peer id already.
    """
    followed: dict[str, Any] = dict.fromkeys(FOLLOWED, True) | {"kubernetes": {"peer_id"}}
    return config.model_dump_json(by_alias=True, exclude_unset=True, exclude_none=True, exclude=followed)


def node_config(
    hypha_worker: Manifest, spec: HyphaWorkerSpec, *, addresses: list[str], peer_id: str | None
) -> NodeConfig:
    """Return the node's configuration.

    Args:
        hypha_worker: the worker, for its name and uid.
        spec: its specification.
        addresses: the addresses for peers outside the cluster, as `external_addresses` returns them.
        peer_id: the only peer id that the node may have. None permits any peer id.
    """
    metadata = hypha_worker["metadata"]
    network = spec.network
    return NodeConfig(
        cert_pem=Path(IDENTITY_DIR, "tls.crt"),
        key_pem=Path(IDENTITY_DIR, "tls.key"),
        trust_pem=Path(TRUST_DIR, "ca.crt"),
        crls_pem=Path(TRUST_DIR, "crl.pem"),
        gateway_addresses=network.gateways,
        listen_addresses=network.listen_addresses,
        external_addresses=[address for address in addresses if HOST_IP not in address],
        **({} if network.exclude_cidr is None else {"exclude_cidr": network.exclude_cidr}),
        relay_circuit=network.relay_circuit,
        work_dir=Path(WORK_DIR),
        **_telemetry(spec, metadata),
        **_status_page(spec, metadata),
        **market_tables(spec),
        jobs=JobsConfig(**job_limits(spec)),
        kubernetes=KubernetesConfig(
            namespace=metadata["namespace"],
            worker=metadata["name"],
            worker_uid=metadata["uid"],
            connector_port=CONNECTOR_PORT,
            audience=TOKEN_AUDIENCE,
            peer_id=peer_id,
            host_ports=host_ports(addresses),
            common_labels=spec.common_labels,
            common_annotations=spec.common_annotations,
        ),
        executors=[
            ExecutorConfig(class_=executor.class_, name=executor.name, runtime="kubernetes")
            for executor in spec.executors
        ],
    )


def _status_page(spec: HyphaWorkerSpec, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of the status page. Without a Service, only port-forwards lead to it."""
    if (page := spec.status_page) is None or not page.enabled:
        return {}
    if not page.from_:
        return {"status_page": {"listen": str(STATUS_PAGE_PORT), "hosts": page.hosts}}
    service, namespace = status_service_name(metadata["name"]), metadata["namespace"]
    names = [service, f"{service}.{namespace}", f"{service}.{namespace}.svc"]
    return {"status_page": {"listen": f":{STATUS_PAGE_PORT}", "hosts": [*names, *page.hosts]}}


def _telemetry(spec: HyphaWorkerSpec, metadata: Mapping[str, Any]) -> dict[str, Any]:
    prometheus = {"telemetry_prometheus": f":{METRICS_PORT}"}
    if (telemetry := spec.telemetry) is None:
        return prometheus
    attributes = {
        "k8s.namespace.name": metadata["namespace"],
        "service.instance.id": f"{metadata['namespace']}/{metadata['name']}",
        **telemetry.attributes,
    }
    headers = {"telemetry_headers_file": Path(TELEMETRY_DIR, HEADERS_FILE)} if telemetry.headers_secret else {}
    return {
        **prometheus,
        **headers,
        "telemetry_endpoint": telemetry.endpoint,
        "telemetry_protocol": telemetry.protocol,
        "telemetry_sampler": telemetry.sampler,
        "telemetry_sample_ratio": telemetry.sample_ratio,
        "telemetry_attributes": attributes,
    }
