"""A worker that listens over TCP, over QUIC, or over both: its ports in every object, and its addresses."""

import tomllib
from typing import Any

import pytest

from hypha_contracts.kinds import Manifest
from hypha_contracts.peer_ports import HostPort, PeerPort
from hypha_operator.settings import Settings
from hypha_operator.workers.controller import deployment
from hypha_operator.workers.network import external_addresses, network_policy, p2p_service, with_host_ips
from hypha_operator.workers.node_config import config_toml, node_config
from hypha_resources.worker import HyphaWorkerSpec
from hypha_worker.config_file import load
from hypha_worker.node import network_config
from support.resources import GATEWAY, worker_manifest

SETTINGS = Settings("worker:1", "bridge:1", "trainer:1", "parameter-server:1")
TCP, UDP = "/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"
LISTENING = pytest.mark.parametrize(
    ("listen", "ports"),
    [
        ([TCP], [("p2p-4001", "TCP")]),
        ([UDP], [("p2p-4001-udp", "UDP")]),
        ([TCP, UDP], [("p2p-4001", "TCP"), ("p2p-4001-udp", "UDP")]),
    ],
    ids=["tcp", "udp", "both"],
)
ADDRESS = {"TCP": "/ip4/192.0.2.7/tcp/{}", "UDP": "/ip4/192.0.2.7/udp/{}/quic-v1"}


def worker(listen: list[str], **expose: Any) -> tuple[Manifest, HyphaWorkerSpec]:
    network = {"gateways": [GATEWAY], "listenAddresses": listen} | ({"expose": expose} if expose else {})
    manifest = worker_manifest("ns", network=network)
    manifest["metadata"]["uid"] = "uid-1"
    return manifest, HyphaWorkerSpec.model_validate(manifest["spec"])


def service_of(listen: list[str], **expose: Any) -> Manifest:
    service = p2p_service(*worker(listen, **expose))
    assert service is not None
    return service


def container_ports(listen: list[str], **expose: Any) -> list[Any]:
    built = worker(listen, **expose)
    controller = deployment(*built, external_addresses(built[1], None), SETTINGS)
    ports: list[Any] = controller["spec"]["template"]["spec"]["containers"][0]["ports"]
    return ports


@LISTENING
def test_a_node_port_has_one_number_for_every_transport(listen, ports):
    service = service_of(listen, type="NodePort", port=30401)
    expected = [
        {"name": name, "protocol": protocol, "port": 4001, "targetPort": 4001, "nodePort": 30401}
        for name, protocol in ports
    ]
    assert service["spec"]["ports"] == expected
    addresses = external_addresses(worker(listen, type="NodePort")[1], service)
    assert with_host_ips(addresses, ["192.0.2.7"]) == [ADDRESS[protocol].format(30401) for _, protocol in ports]


@LISTENING
def test_the_cluster_chooses_the_node_ports_without_a_port(listen, ports):
    service = service_of(listen, type="NodePort")
    assert [(port["name"], port["protocol"]) for port in service["spec"]["ports"]] == ports
    for number, port in enumerate(service["spec"]["ports"], 30500):
        assert "nodePort" not in port
        port["nodePort"] = number
    reached = [ADDRESS[protocol].format(number) for number, (_, protocol) in enumerate(ports, 30500)]
    addresses = external_addresses(worker(listen, type="NodePort")[1], service)
    assert with_host_ips(addresses, ["192.0.2.7"]) == reached


@LISTENING
def test_a_load_balancer_has_one_number_for_every_transport(listen, ports):
    service = service_of(listen, type="LoadBalancer", port=443)
    expected = [{"name": name, "protocol": protocol, "port": 443, "targetPort": 4001} for name, protocol in ports]
    assert service["spec"]["ports"] == expected
    service["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}
    addresses = external_addresses(worker(listen, type="LoadBalancer")[1], service)
    assert addresses == [ADDRESS[protocol].format(443) for _, protocol in ports]


def test_ports_that_a_load_balancer_refuses_are_no_addresses():
    listen = [TCP, UDP]
    service = service_of(listen, type="LoadBalancer", port=443)
    refused = {"protocol": "UDP", "port": 443, "error": "MixedProtocolNotSupported"}
    served = {"protocol": "TCP", "port": 443}
    service["status"] = {"loadBalancer": {"ingress": [{"ip": "192.0.2.7", "ports": [refused, served]}]}}
    addresses = external_addresses(worker(listen, type="LoadBalancer")[1], service)
    assert addresses == ["/ip4/192.0.2.7/tcp/443"]


@LISTENING
def test_a_host_port_is_one_of_every_transport(listen, ports):
    assert p2p_service(*worker(listen, type="HostPort")) is None
    expected = [
        {"name": name, "containerPort": 4001, "protocol": protocol, "hostPort": 4100} for name, protocol in ports
    ]
    connector, *peers, metrics, status = container_ports(listen, type="HostPort", port=4100)
    assert peers == expected
    assert not {"hostPort"} & (connector.keys() | metrics.keys() | status.keys())


@LISTENING
def test_the_node_completes_its_host_ports(tmp_path, listen, ports):
    built = worker(listen, type="HostPort", port=4100)
    addresses = external_addresses(built[1], None)
    file = tmp_path / "worker.toml"
    file.write_text(config_toml(node_config(*built, addresses=addresses, peer_id=None)))
    config = network_config(load(file, {"HYPHA_KUBERNETES__HOST_IPS": "fd00::5,192.0.2.7"}).config)
    reached = [ADDRESS[protocol].format(4100) for _, protocol in ports]
    assert (list(config.listen_addresses), list(config.external_addresses)) == (listen, reached)
    assert with_host_ips(addresses, ["fd00::5", "192.0.2.7"]) == reached


@LISTENING
def test_the_policy_lets_peers_reach_every_transport(listen, ports):
    peers, *_ = network_policy(*worker(listen), ())["spec"]["ingress"]
    assert peers == {"ports": [{"protocol": protocol, "port": 4001} for _, protocol in ports]}


@LISTENING
def test_the_pod_names_a_port_of_every_transport(listen, ports):
    _, *peers, _, _ = container_ports(listen)
    assert [(port["name"], port["protocol"]) for port in peers] == ports


def test_both_address_families_share_a_host_port_of_each_transport():
    listen = [TCP, UDP, "/ip6/::/tcp/4001", "/ip6/::/udp/4001/quic-v1"]
    _, *peers, _, _ = container_ports(listen, type="HostPort")
    assert [(port["protocol"], port["hostPort"]) for port in peers] == [("TCP", 4001), ("UDP", 4001)]
    addresses = external_addresses(worker(listen, type="HostPort")[1], None)
    assert with_host_ips(addresses, ["192.0.2.7", "fd00::5"]) == [
        "/ip4/192.0.2.7/tcp/4001",
        "/ip4/192.0.2.7/udp/4001/quic-v1",
        "/ip6/fd00::5/tcp/4001",
        "/ip6/fd00::5/udp/4001/quic-v1",
    ]


def test_the_exposed_port_leads_to_the_first_port_of_each_transport():
    listen = [TCP, "/ip4/0.0.0.0/tcp/4002", "/ip4/0.0.0.0/udp/4003/quic-v1"]
    service = service_of(listen, type="NodePort", port=30401)
    found = [(port["name"], port["targetPort"], port.get("nodePort")) for port in service["spec"]["ports"]]
    assert found == [("p2p-4001", 4001, 30401), ("p2p-4002", 4002, None), ("p2p-4003-udp", 4003, 30401)]


def test_hosts_of_the_spec_are_addresses_of_every_transport():
    spec = worker([TCP, UDP], type="HostPort", hosts=["203.0.113.5", "node.example.org"])[1]
    assert external_addresses(spec, None) == [
        "/ip4/203.0.113.5/tcp/4001",
        "/ip4/203.0.113.5/udp/4001/quic-v1",
        "/dns/node.example.org/tcp/4001",
        "/dns/node.example.org/udp/4001/quic-v1",
    ]


def test_the_configuration_of_a_host_port_over_tcp_is_one_that_older_nodes_read():
    built = worker([TCP, UDP], type="HostPort")
    addresses = external_addresses(built[1], None)
    values = tomllib.loads(config_toml(node_config(*built, addresses=addresses, peer_id=None)))
    tcp, udp = values["kubernetes"]["host_ports"]
    assert tcp == {"protocol": "ip4", "port": 4001}
    assert udp == {"protocol": "ip4", "port": 4001, "transport": "udp"}


@pytest.mark.parametrize("address", [TCP, UDP, "/ip6/::/tcp/65535", "/ip6/::/udp/65535/quic-v1"])
def test_a_port_of_an_address_completes_the_same_address(address):
    host, port = address.split("/")[2], PeerPort.of(address)
    assert HostPort.of(address).at([host]) == [address]
    assert address.endswith(f"/{host}/{port}")
    assert len(port.name) <= 15, "Kubernetes allows no longer names of ports"
