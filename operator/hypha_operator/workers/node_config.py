"""The node's configuration: what a HyphaWorker says, as the TOML that `hypha-worker run` reads."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from hypha_contracts.names import CONNECTOR_PORT, TOKEN_AUDIENCE
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
    """Return the file's text.

    Args:
        hypha_worker: the worker, for its name and uid.
        spec: what it says.
        external_addresses: where peers outside the cluster reach it.
        accept_offers: False while it is suspended or goes.
        peer_id: the only one that the node may have.
    """
    metadata = hypha_worker["metadata"]
    values: dict[str, Any] = {
        "cert_pem": f"{IDENTITY_DIR}/tls.crt",
        "key_pem": f"{IDENTITY_DIR}/tls.key",
        "trust_pem": f"{TRUST_DIR}/ca.crt",
        "crls_pem": f"{TRUST_DIR}/crl.pem",
        "gateway_addresses": spec.network.gateways,
        "listen_addresses": spec.network.listen_addresses,
        "external_addresses": external_addresses,
        "exclude_cidr": spec.network.exclude_cidr,
        "relay_circuit": spec.network.relay_circuit,
        "work_dir": WORK_DIR,
        **_telemetry(spec, metadata),
        "resources": {
            **spec.resources.capacity.model_dump(),
            "gpu_device": spec.resources.gpu.memory_gb if spec.resources.gpu else None,
        },
        "offer": spec.offer.model_dump(by_alias=False),
        "selection": spec.selection.model_dump(by_alias=False),
        "leases": {"duration_s": spec.leases.duration_seconds},
        "jobs": {
            "allow_private_addresses": spec.jobs.allow_private_addresses,
            "read_ahead": spec.jobs.read_ahead,
        },
        "kubernetes": {
            "namespace": metadata["namespace"],
            "worker": metadata["name"],
            "worker_uid": metadata["uid"],
            "connector_port": CONNECTOR_PORT,
            "audience": TOKEN_AUDIENCE,
            "ttl_seconds_after_finished": spec.jobs.ttl_seconds_after_finished,
            "accept_offers": accept_offers,
            "peer_id": peer_id,
        },
        "executors": [
            {"class": executor.class_, "name": executor.name, "runtime": "kubernetes"} for executor in spec.executors
        ],
    }
    return to_toml(values)


def _telemetry(spec: HyphaWorkerSpec, metadata: Mapping[str, Any]) -> dict[str, Any]:
    telemetry = spec.telemetry
    if telemetry is None:
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


def to_toml(values: Mapping[str, Any]) -> str:
    """Write a table as TOML: plain values, then tables, then lists of tables; None is left out."""
    plain, tables = [], []
    for key, value in values.items():
        if isinstance(value, dict):
            tables.append(f"\n[{_key(key)}]\n{_pairs(value)}")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            tables += [f"\n[[{_key(key)}]]\n{_pairs(item)}" for item in value]
        else:
            plain.append(_pairs({key: value}))
    return "".join(plain + tables)


def _pairs(table: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value).lower()


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _text(key)


def _text(text: str) -> str:
    """Quote as JSON does, which TOML reads too but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
