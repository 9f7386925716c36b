"""The services that a job can reach in the cluster, and whether they refuse its requests."""

import re
from typing import Final

from e2e.kube import Kube, KubeError, Object, eventually
from e2e.workers import Worker

_USUAL_PORTS: Final = (
    *range(1, 1025), 2379, 2380, 2381, 3000, 4001, 4318, 5000, 5432, 6379, 6443, 8000, 8080, 8081, 8181, 8443, 8888,
    9000, 9090, 9100, 9153, 9443, *range(10245, 10262), 15021, 30000, 30401, 50051,
)  # fmt: skip
_REFUSAL: Final = re.compile(r"closed|TLS: |HTTP/1\.[01] (400|401|403|404|405|421)\b")


def targets(kube: Kube) -> dict[str, list[int]]:
    """Return the ports to try at each address: a service's own ports, and all likely ports of pods and nodes."""
    ports, pods, services = set(_USUAL_PORTS), set[str](), dict[str, set[int]]()
    for pod in (pod for pod in kube.items("pods") if pod["status"]["phase"] == "Running"):
        pods |= {ip["ip"] for ip in pod["status"].get("podIPs", ())}
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())]:
            ports |= {port["containerPort"] for port in container.get("ports", ())}
    for service in kube.items("services"):
        own = {port["port"] for port in service["spec"].get("ports", ())}
        ports |= own | {port.get("nodePort", 0) for port in service["spec"].get("ports", ())} - {0}
        services |= {ip: own for ip in service["spec"].get("clusterIPs", ()) if ip != "None"}
    nodes = {
        entry["address"]
        for node in kube.items("nodes")
        for entry in node["status"]["addresses"]
        if entry["type"] in ("InternalIP", "ExternalIP")
    }
    everywhere = dict.fromkeys(pods | nodes, ports) | services
    return {address: sorted(found) for address, found in everywhere.items()}


def refuses(kube: Kube, where: str, answers: dict[str, str]) -> bool:
    """Return whether a port refuses a job by requiring a TLS certificate, an error answer, or closing the connection.

    These may answer: DNS (names, and metrics), and the metrics of operators and controllers.
    """
    opened = {what for what, answer in answers.items() if not _REFUSAL.match(answer)}
    return not opened or (where.rpartition(":")[0] in _serving_addresses(kube) and opened <= {"plain /metrics"})


def _serving_addresses(kube: Kube) -> set[str]:
    addresses: set[str] = set()
    components = ("operator", "controller")
    for selector in ("k8s-app=kube-dns", *(f"app.kubernetes.io/component={name}" for name in components)):
        addresses |= {pod["status"].get("podIP", "") for pod in kube.list_of("pods", None, selector)}
        addresses.update(*(item["spec"].get("clusterIPs", ()) for item in kube.list_of("services", None, selector)))
    return addresses


def needed(kube: Kube, worker: Worker) -> set[str]:
    """Return the addresses and ports that a job needs: DNS, and its worker's connector, as Services and behind them."""
    found = set()
    for namespace, name in (("kube-system", "kube-dns"), (worker.namespace, f"{worker.name}-connector")):
        service = kube.get("services", namespace, name)
        if service is not None:
            ports = [port["port"] for port in service["spec"]["ports"]]
            found |= {f"{ip}:{port}" for ip in service["spec"]["clusterIPs"] for port in ports}
        for part in kube.list_of("endpointslices", namespace, f"kubernetes.io/service-name={name}"):
            ports = [port["port"] for port in part["ports"] if port["protocol"] == "TCP"]
            addresses = [address for endpoint in part["endpoints"] for address in endpoint["addresses"]]
            found |= {f"{address}:{port}" for address in addresses for port in ports}
    return found


def policies_enforced(kube: Kube, worker: Worker, image: str) -> bool:
    """Return whether a pod without permitted egress fails to reach the API server, so NetworkPolicies are enforced."""
    name, namespace = "policy-probe", worker.namespace
    labels = {"e2e": name}
    policy = {"podSelector": {"matchLabels": labels}, "policyTypes": ["Egress"]}
    kube.apply(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": policy,
        },
        _probe(name, namespace, labels, image),
    )
    try:
        phase = eventually("the probe has ended", lambda: _ended(kube, namespace, name), 60)
    finally:
        kube.delete("pods", namespace, name, 0)
        kube.delete("networkpolicies", namespace, name)
    return phase == "Failed"


def _ended(kube: Kube, namespace: str, name: str) -> str | None:
    try:
        pod = kube.get("pods", namespace, name)
    except KubeError:
        return None
    phase: str = (pod or {"status": {"phase": ""}})["status"]["phase"]
    return phase if phase in ("Succeeded", "Failed") else None


def _probe(name: str, namespace: str, labels: dict[str, str], image: str) -> Object:
    connect = "import os, socket; socket.create_connection((os.environ['KUBERNETES_SERVICE_HOST'], 443), 5)"
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {"name": "probe", "image": image, "command": ["python3", "-c", connect], "securityContext": security}
    pod_security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": pod_security,
            "containers": [container],
        },
    }
