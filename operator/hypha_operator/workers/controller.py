"""Build the controller: the Deployment that runs the node, and the node's ConfigMap."""

from hashlib import sha256
from typing import Any, Final

from hypha_contracts import names
from hypha_contracts.kinds import CONFIG_MAP, DEPLOYMENT, Manifest
from hypha_contracts.node_config import NodeConfig
from hypha_operator.machinery.manifests import CONTAINER_SECURITY, child, lost_node_tolerations, pod_security
from hypha_operator.pods.addons import NO_MESH_ANNOTATIONS, NO_MESH_LABELS
from hypha_operator.pods.overlay import merge_pod_template
from hypha_operator.settings import Settings
from hypha_operator.workers.network import host_ports, p2p_ports
from hypha_operator.workers.node_config import (
    HEADERS_FILE,
    IDENTITY_DIR,
    TELEMETRY_DIR,
    TRUST_DIR,
    WORK_DIR,
    config_toml,
    fixed_part,
    node_config,
)
from hypha_resources.worker import HyphaWorkerSpec

_CONFIG_DIR: Final = "/etc/hypha/config"
_CONFIG_KEY: Final = "worker.toml"
_GRACE_S: Final = 20
_LOST_NODE_S: Final = 10
"""How long the pod stays on a node that does not answer. Its successor must start before the jobs' leases expire."""
_RESOURCES: Final = {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}


def config_map(hypha_worker: Manifest, spec: HyphaWorkerSpec, addresses: list[str], *, peer_id: str | None) -> Manifest:
    """Return the ConfigMap with the node's configuration."""
    text = config_toml(_config(hypha_worker, spec, addresses, peer_id))
    return child(
        hypha_worker, CONFIG_MAP, names.controller_name(hypha_worker["metadata"]["name"]), data={_CONFIG_KEY: text}
    )


def _config(hypha_worker: Manifest, spec: HyphaWorkerSpec, addresses: list[str], peer_id: str | None) -> NodeConfig:
    return node_config(
        hypha_worker,
        spec,
        addresses=addresses,
        peer_id=None if spec.identity.allow_peer_id_change else peer_id,
    )


def deployment(hypha_worker: Manifest, spec: HyphaWorkerSpec, addresses: list[str], settings: Settings) -> Manifest:
    """Return the controller's Deployment.

    Only a change of what a running node cannot change itself replaces the pod.

    Raises:
        OverlayError: the worker's template for the controller is not acceptable.
    """
    worker = hypha_worker["metadata"]["name"]
    fixed = fixed_part(_config(hypha_worker, spec, addresses, None)) + str(spec.identity.allow_peer_id_change)
    template = {
        "metadata": {
            "labels": {**NO_MESH_LABELS, **names.controller_labels(worker)},
            "annotations": {
                **NO_MESH_ANNOTATIONS,
                names.CONFIG_ANNOTATION: sha256(fixed.encode()).hexdigest()[:16],
            },
        },
        "spec": _pod_spec(worker, spec, addresses, settings),
    }
    content = {
        "replicas": 1,
        "revisionHistoryLimit": 3,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": names.controller_selector(worker)},
        "template": _with_host_port(merge_pod_template(template, spec.controller.template), spec),
    }
    return child(hypha_worker, DEPLOYMENT, names.controller_name(worker), spec=content)


def _with_host_port(template: dict[str, Any], spec: HyphaWorkerSpec) -> dict[str, Any]:
    """Add the host port that the spec asks for. Templates cannot set host ports, so it is added after merging."""
    expose = spec.network.expose
    if expose is not None and expose.type == "HostPort":
        container = next(item for item in template["spec"]["containers"] if item["name"] == names.CONTROLLER)
        exposed = {port.name for port in p2p_ports(spec)}
        for port in container["ports"]:
            if port["name"] in exposed:
                port["hostPort"] = expose.port or port["containerPort"]
    return template


def identity_secrets(worker: str, spec: HyphaWorkerSpec) -> tuple[str, str]:
    """Return the names of the Secret with the certificate and its key, and of the Secret with the authorities."""
    identity = spec.identity.secret_name or names.identity_secret(worker)
    return identity, spec.identity.trust_secret_name or identity


def _pod_spec(worker: str, spec: HyphaWorkerSpec, addresses: list[str], settings: Settings) -> dict[str, Any]:
    identity, trust = identity_secrets(worker, spec)
    return {
        "serviceAccountName": names.controller_name(worker),
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_S,
        "imagePullSecrets": [{"name": name} for name in spec.image_pull_secrets],
        "securityContext": pod_security(user_ids=settings.user_ids),
        "tolerations": lost_node_tolerations(_LOST_NODE_S),
        "containers": [_container(spec, addresses, settings)],
        "volumes": [
            {"name": "config", "configMap": {"name": names.controller_name(worker)}},
            {"name": "identity", "secret": {"secretName": identity, "defaultMode": 0o440}},
            {
                "name": "trust",
                "projected": {
                    "sources": [
                        {"secret": {"name": trust, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                        {"secret": {"name": trust, "items": [{"key": "crl.pem", "path": "crl.pem"}], "optional": True}},
                    ]
                },
            },
            *_headers_volume(spec),
            {"name": "work", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }


def _headers_volume(spec: HyphaWorkerSpec) -> list[dict[str, Any]]:
    """Return the volume with the headers for the collector, if the spec names a Secret."""
    if spec.telemetry is None or (secret := spec.telemetry.headers_secret) is None:
        return []
    items = [{"key": secret.key, "path": HEADERS_FILE}]
    return [{"name": "telemetry", "secret": {"secretName": secret.name, "items": items, "defaultMode": 0o440}}]


def _container(spec: HyphaWorkerSpec, addresses: list[str], settings: Settings) -> dict[str, Any]:
    ports: list[dict[str, Any]] = [
        {"name": "connector", "containerPort": names.CONNECTOR_PORT, "protocol": "TCP"},
        *({"name": port.name, "containerPort": port.number, "protocol": port.protocol} for port in p2p_ports(spec)),
        {"name": "metrics", "containerPort": names.METRICS_PORT, "protocol": "TCP"},
        {"name": "status", "containerPort": names.STATUS_PAGE_PORT, "protocol": "TCP"},
    ]
    return {
        "name": names.CONTROLLER,
        "image": spec.controller.image or settings.worker_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["hypha-worker", "run", "--config", f"{_CONFIG_DIR}/{_CONFIG_KEY}"],
        "env": _environment(addresses),
        "ports": ports,
        "startupProbe": _probe("/healthz", period_s=1, failures=60),
        "livenessProbe": _probe("/healthz", period_s=10, failures=6),
        "readinessProbe": _probe("/readyz", period_s=5, failures=2),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": spec.controller.resources or _RESOURCES,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "config", "mountPath": _CONFIG_DIR, "readOnly": True},
            {"name": "identity", "mountPath": IDENTITY_DIR, "readOnly": True},
            {"name": "trust", "mountPath": TRUST_DIR, "readOnly": True},
            *(
                {"name": volume["name"], "mountPath": TELEMETRY_DIR, "readOnly": True}
                for volume in _headers_volume(spec)
            ),
            {"name": "work", "mountPath": WORK_DIR},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of this pod alone
        ],
    }


def _environment(addresses: list[str]) -> list[dict[str, Any]]:
    """Return the settings that depend on the pod or its node. They take precedence over the configuration file."""
    environment = [_from_pod("HYPHA_KUBERNETES__POD_NAME", "metadata.name")]
    if host_ports(addresses):
        environment.append(_from_pod("HYPHA_KUBERNETES__HOST_IPS", "status.hostIPs"))
    return environment


def _from_pod(variable: str, path: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def _probe(path: str, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": names.CONNECTOR_PORT, "scheme": "HTTPS"},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
