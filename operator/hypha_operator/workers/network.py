"""Build the objects that make a controller reachable, and derive its external addresses."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final, Literal

from hypha_contracts.kinds import NETWORK_POLICY, POD_DISRUPTION_BUDGET, SERVICE, Manifest
from hypha_contracts.names import (
    CONNECTOR_PORT,
    METRICS_PORT,
    STATUS_PAGE_PORT,
    connector_service_name,
    controller_name,
    controller_selector,
    job_account,
    job_selector,
    p2p_service_name,
    status_service_name,
)
from hypha_contracts.peer_ports import HostPort, PeerPort
from hypha_operator.machinery.manifests import child
from hypha_resources.worker import HyphaWorkerSpec

HOST_IP: Final = "HOST_IP"
"""A placeholder for the IP address of the pod's node. The node completes such addresses when it starts."""
_FAMILIES: Final = {"ip4": "IPv4", "ip6": "IPv6"}

_EVERY_POD: Final = 2**31 - 1


def p2p_ports(spec: HyphaWorkerSpec) -> list[PeerPort]:
    """Return the ports on which the node listens for peers, without duplicates."""
    return list(dict.fromkeys(map(PeerPort.of, spec.network.listen_addresses)))


def connector_service(hypha_worker: Manifest) -> Manifest:
    """Return the Service of the connector. A controller without gateways still serves its running jobs."""
    name = connector_service_name(hypha_worker["metadata"]["name"])
    return _inner_service(hypha_worker, name, _port("connector", CONNECTOR_PORT, "TCP"))


def status_service(hypha_worker: Manifest, worker_spec: HyphaWorkerSpec) -> Manifest | None:
    """Return the Service of the status page, if the spec lets anybody use it. The page says what a node lacks."""
    if not _page_readers(worker_spec):
        return None
    name = status_service_name(hypha_worker["metadata"]["name"])
    return _inner_service(hypha_worker, name, _port("status", STATUS_PAGE_PORT, "TCP"))


def _inner_service(hypha_worker: Manifest, name: str, port: dict[str, Any]) -> Manifest:
    """Return a Service for clients in the cluster. It includes controllers that are not ready."""
    spec = {
        "type": "ClusterIP",
        "selector": controller_selector(hypha_worker["metadata"]["name"]),
        "publishNotReadyAddresses": True,
        "ports": [port],
    }
    return child(hypha_worker, SERVICE, name, spec=spec)


def _page_readers(spec: HyphaWorkerSpec) -> list[dict[str, Any]]:
    page = spec.status_page
    return page.from_ if page is not None and page.enabled else []


def p2p_service(hypha_worker: Manifest, worker_spec: HyphaWorkerSpec) -> Manifest | None:
    """Return the Service for peers outside the cluster, if the spec asks for one.

    The port of `expose` leads to the first port of each transport, so that one number serves both.
    """
    expose = worker_spec.network.expose
    if expose is None or expose.type == "HostPort":
        return None
    ports = [_port(port.name, port.number, port.protocol) for port in p2p_ports(worker_spec)]
    if expose.port is not None:
        for port in {port["protocol"]: port for port in reversed(ports)}.values():
            port["nodePort" if expose.type == "NodePort" else "port"] = expose.port
    worker = hypha_worker["metadata"]["name"]
    optional = {
        "loadBalancerClass": expose.load_balancer_class,
        "loadBalancerSourceRanges": expose.source_ranges,
        "externalTrafficPolicy": expose.external_traffic_policy,
        **_address_families(worker_spec),
    }
    spec: dict[str, Any] = {
        "type": expose.type,
        "selector": controller_selector(worker),
        "publishNotReadyAddresses": True,
        "ports": ports,
        **{field: value for field, value in optional.items() if value},
    }
    service = child(hypha_worker, SERVICE, p2p_service_name(worker), spec=spec)
    if expose.annotations:
        service["metadata"]["annotations"] = expose.annotations
    return service


def _listen_families(spec: HyphaWorkerSpec) -> list[str]:
    """Return the protocols (ip4, ip6) of the addresses at which the node listens."""
    return list(dict.fromkeys(address.split("/")[1] for address in spec.network.listen_addresses))


def _address_families(spec: HyphaWorkerSpec) -> dict[str, Any]:
    """Return the address families of a Service whose every address leads to a listener of the node."""
    families, expose = _listen_families(spec), spec.network.expose
    policy = expose.ip_family_policy if expose else None
    if len(families) > 1 and policy is None:
        return {"ipFamilyPolicy": "PreferDualStack"}
    if policy in ("PreferDualStack", "RequireDualStack"):  # the cluster chooses which family comes first
        return {"ipFamilyPolicy": policy}
    return {"ipFamilyPolicy": policy, "ipFamilies": [_FAMILIES[families[0]]]}


def _port(name: str, port: int, protocol: str) -> dict[str, Any]:
    return {"name": name, "protocol": protocol, "port": port, "targetPort": port}


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
        ports = [port._replace(number=expose.port or port.number) for port in p2p_ports(spec)]
        return _of_hosts(expose.hosts, _listen_families(spec), ports)
    service_spec = (service or {}).get("spec", {})
    if expose.type == "NodePort":
        served = service_spec.get("ipFamilies") or ()
        families = [family for family, name in _FAMILIES.items() if name in served] or _listen_families(spec)
        return _of_hosts(expose.hosts, families, _served_ports(service_spec, "nodePort"))
    ingress = (service or {}).get("status", {}).get("loadBalancer", {}).get("ingress") or []
    served = _served_ports(service_spec, "port")
    return [
        f"{_host(entry.get('ip') or entry['hostname'])}/{port}"
        for entry in ingress
        for port in served
        if port not in _refused_ports(entry)
    ]


def _served_ports(service_spec: Manifest, field: Literal["port", "nodePort"]) -> list[PeerPort]:
    """Return the ports of a Service at its own addresses or those of nodes, as far as they are allocated."""
    ports = service_spec.get("ports", [])
    return [PeerPort(port["protocol"].lower(), port[field]) for port in ports if port.get(field)]


def _refused_ports(ingress: Manifest) -> list[PeerPort]:
    """Return the ports that a load balancer does not serve at one of its addresses, as some do not serve UDP."""
    ports = ingress.get("ports") or []
    return [PeerPort(port["protocol"].lower(), port["port"]) for port in ports if port.get("error")]


def _of_hosts(hosts: Sequence[str], families: Sequence[str], ports: Sequence[PeerPort]) -> list[str]:
    """Return the addresses of these hosts, or else of the node of the pod."""
    begins = [_host(host) for host in hosts] or [f"/{family}/{HOST_IP}" for family in families]
    return [f"{begin}/{port}" for begin in begins for port in ports]


def _host(host: str) -> str:
    try:
        return f"/ip{ip_address(host).version}/{host}"
    except ValueError:
        return f"/dns/{host}"


def network_policy(hypha_worker: Manifest, worker_spec: HyphaWorkerSpec, metrics_from: Sequence[Any]) -> Manifest:
    """Return the NetworkPolicy.

    Peers reach the peer-to-peer ports, the worker's jobs reach the connector, clients as in `metrics_from` the metrics,
    and those that the spec names the status page.
    """
    readers = _page_readers(worker_spec)
    worker = hypha_worker["metadata"]["name"]
    spec = {
        "podSelector": {"matchLabels": controller_selector(worker)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"protocol": port.protocol, "port": port.number} for port in p2p_ports(worker_spec)]},
            {
                "from": [{"podSelector": {"matchLabels": job_selector(worker)}}],
                "ports": [{"protocol": "TCP", "port": CONNECTOR_PORT}],
            },
            {"from": list(metrics_from), "ports": [{"protocol": "TCP", "port": METRICS_PORT}]},
            *([{"from": readers, "ports": [{"protocol": "TCP", "port": STATUS_PAGE_PORT}]}] if readers else []),
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


def job_disruption_budget(hypha_worker: Manifest, worker_spec: HyphaWorkerSpec) -> Manifest | None:
    """Return the PodDisruptionBudget that refuses every eviction of a running job, unless the spec allows them."""
    if worker_spec.jobs.disruption == "Allow":
        return None
    worker = hypha_worker["metadata"]["name"]
    # A budget for the pods of Jobs may count only pods, because a Job has no scale subresource.
    spec = {"minAvailable": _EVERY_POD, "selector": {"matchLabels": job_selector(worker)}}
    return child(hypha_worker, POD_DISRUPTION_BUDGET, job_account(worker), spec=spec)


def host_ports(addresses: Sequence[str]) -> list[HostPort]:
    """Return the ports of the addresses with `HOST_IP`."""
    return [HostPort.of(address) for address in addresses if HOST_IP in address]


def with_host_ips(addresses: Sequence[str], host_ips: Sequence[str]) -> list[str]:
    """Return the addresses with `HOST_IP` replaced by each address of the node that has the family."""
    known = [address for address in addresses if HOST_IP not in address]
    return known + [address for port in host_ports(addresses) for address in port.at(host_ips)]
