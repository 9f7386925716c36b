"""Build the objects that make a controller reachable, and derive its external addresses."""

from ipaddress import ip_address
from typing import Any, Final

from hypha_contracts.names import (
    CONNECTOR_PORT,
    connector_service_name,
    controller_name,
    controller_selector,
    job_selector,
    p2p_service_name,
)
from hypha_operator.machinery.kinds import NETWORK_POLICY, POD_DISRUPTION_BUDGET, SERVICE, Manifest
from hypha_operator.machinery.manifests import child
from hypha_resources.worker import HyphaWorkerSpec

HOST_IP: Final = "$(HOST_IP)"
"""A placeholder for the IP address of the pod's node. The kubelet replaces it in the pod's environment."""


def p2p_ports(spec: HyphaWorkerSpec) -> list[int]:
    """Return the ports on which the node listens for peers, without duplicates."""
    return list(dict.fromkeys(int(address.rpartition("/")[2]) for address in spec.network.listen_addresses))


def connector_service(hypha_worker: Manifest) -> Manifest:
    """Return the Service of the connector.

    It includes controllers that are not ready, because a controller without gateways still serves its running jobs.
    """
    worker = hypha_worker["metadata"]["name"]
    spec = {
        "type": "ClusterIP",
        "selector": controller_selector(worker),
        "publishNotReadyAddresses": True,
        "ports": [_port("connector", CONNECTOR_PORT)],
    }
    return child(hypha_worker, SERVICE, connector_service_name(worker), spec=spec)


def p2p_service(hypha_worker: Manifest, worker_spec: HyphaWorkerSpec) -> Manifest | None:
    """Return the Service for peers outside the cluster, if the spec asks for one."""
    expose = worker_spec.network.expose
    if expose is None or expose.type == "HostPort":
        return None
    ports = [_port(f"p2p-{port}", port) for port in p2p_ports(worker_spec)]
    if expose.port is not None:
        ports[0]["nodePort" if expose.type == "NodePort" else "port"] = expose.port
    worker = hypha_worker["metadata"]["name"]
    spec: dict[str, Any] = {
        "type": expose.type,
        "selector": controller_selector(worker),
        "publishNotReadyAddresses": True,
        "ports": ports,
    }
    if expose.load_balancer_class:
        spec["loadBalancerClass"] = expose.load_balancer_class
    service = child(hypha_worker, SERVICE, p2p_service_name(worker), spec=spec)
    if expose.annotations:
        service["metadata"]["annotations"] = expose.annotations
    return service


def _port(name: str, port: int) -> dict[str, Any]:
    return {"name": name, "protocol": "TCP", "port": port, "targetPort": port}


def external_addresses(spec: HyphaWorkerSpec, service: Manifest | None) -> list[str]:
    """Return the known addresses for peers outside the cluster. They may contain `HOST_IP`.

    Args:
        spec: the worker's specification, whose external addresses take precedence.
        service: the current Service for peers, if it exists.
    """
    network, expose = spec.network, spec.network.expose
    if network.external_addresses or expose is None:
        return network.external_addresses
    if expose.type == "HostPort":
        return [_of_host(spec, expose.port or p2p_ports(spec)[0])]
    ports = (service or {}).get("spec", {}).get("ports", [])
    if expose.type == "NodePort":
        return [_of_host(spec, port["nodePort"]) for port in ports if port.get("nodePort")]
    ingress = (service or {}).get("status", {}).get("loadBalancer", {}).get("ingress") or []
    return [f"{_host(entry)}/tcp/{port['port']}" for entry in ingress for port in ports]


def _of_host(spec: HyphaWorkerSpec, port: int) -> str:
    version = "ip4" if any(address.startswith("/ip4/") for address in spec.network.listen_addresses) else "ip6"
    return f"/{version}/{HOST_IP}/tcp/{port}"


def _host(ingress: dict[str, str]) -> str:
    if address := ingress.get("ip"):
        return f"/ip{ip_address(address).version}/{address}"
    return f"/dns/{ingress['hostname']}"


def network_policy(hypha_worker: Manifest, worker_spec: HyphaWorkerSpec) -> Manifest:
    """Return the NetworkPolicy: peers reach the peer-to-peer ports, and the worker's jobs reach the connector."""
    worker = hypha_worker["metadata"]["name"]
    spec = {
        "podSelector": {"matchLabels": controller_selector(worker)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"protocol": "TCP", "port": port} for port in p2p_ports(worker_spec)]},
            {
                "from": [{"podSelector": {"matchLabels": job_selector(worker)}}],
                "ports": [{"protocol": "TCP", "port": CONNECTOR_PORT}],
            },
        ],
    }
    return child(hypha_worker, NETWORK_POLICY, controller_name(worker), spec=spec)


def disruption_budget(hypha_worker: Manifest) -> Manifest:
    """Return the PodDisruptionBudget. It allows every eviction of the controller, because the jobs outlive it."""
    worker = hypha_worker["metadata"]["name"]
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": controller_selector(worker)},
    }
    return child(hypha_worker, POD_DISRUPTION_BUDGET, controller_name(worker), spec=spec)


def with_host_ip(addresses: list[str], host_ip: str | None) -> list[str]:
    """Return the addresses with `HOST_IP` replaced, without those that need a host IP that is not known yet."""
    known = [address for address in addresses if host_ip or HOST_IP not in address]
    return [address.replace(HOST_IP, host_ip or "") for address in known]
