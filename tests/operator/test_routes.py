"""The way to configured servers, as rules of a NetworkPolicy."""

import asyncio
import socket
from typing import Any

import pytest

from hypha_contracts.kinds import NETWORK_POLICY
from hypha_contracts.names import JOB_LABEL
from hypha_operator.machinery.routes import Routes, routes_to_service, service_of
from support.api_server import ApiServer
from support.job_world import open_job_world
from support.resources import install_definitions

pytestmark = pytest.mark.anyio

OF_STORAGE = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "storage"}}}


@pytest.mark.parametrize(
    ("host", "service"),
    [
        ("mirror", ("hypha", "mirror")),
        ("mirror.storage", ("storage", "mirror")),
        ("mirror.storage.svc", ("storage", "mirror")),
        ("mirror.storage.svc.cluster.local", ("storage", "mirror")),
        ("mirror.storage.svc.cluster.local.", ("storage", "mirror")),
        ("mirror.example.org", None),
        ("a.mirror.storage.svc", None),
        ("10.1.2.3", None),
        ("fd00::1", None),
    ],
)
async def test_a_host_is_a_service_as_the_search_domains_of_a_pod_make_it_one(
    host: str, service: tuple[str, str] | None
) -> None:
    assert service_of(host, "hypha") == service


async def test_a_service_is_reached_at_its_address_and_at_the_ports_of_its_pods() -> None:
    service = {
        "metadata": {"name": "mirror", "namespace": "storage"},
        "spec": {
            "clusterIPs": ["10.96.0.7"],
            "selector": {"app": "mirror"},
            "ports": [{"port": 80, "targetPort": "http"}, {"port": 443, "targetPort": 8443}],
        },
    }
    address, pods = routes_to_service(service, 443)
    assert address["to"][0] == {"ipBlock": {"cidr": "10.96.0.7/32"}}
    assert address["ports"] == [{"protocol": "TCP", "port": 443}]
    assert pods["to"] == [{**OF_STORAGE, "podSelector": {"matchLabels": {"app": "mirror"}}}]
    assert pods["ports"] == [{"protocol": "TCP", "port": 8443}]
    assert routes_to_service(service, 80)[1]["ports"] == [{"protocol": "TCP", "port": "http"}]


async def test_a_headless_service_without_selector_leads_nowhere() -> None:
    spec = {"clusterIPs": ["None"], "ports": [{"port": 443}]}
    assert routes_to_service({"metadata": {"namespace": "a"}, "spec": spec}, 443) == ()


def to_of(policy: dict[str, Any], port: int | str) -> list[Any]:
    return [
        to
        for rule in policy["spec"]["egress"]
        for to in rule.get("to", [])
        if {"protocol": "TCP", "port": port} in rule.get("ports", [])
    ]


async def test_a_hub_behind_a_service_and_a_proxy_at_a_private_address_are_let_through(
    control_plane: ApiServer,
) -> None:
    install_definitions(control_plane)
    storage = control_plane.namespace()
    ports = [{"port": 443, "targetPort": 8443}]
    service = {"metadata": {"name": "mirror"}, "spec": {"selector": {"app": "mirror"}, "ports": ports}}
    made = control_plane.post(f"/api/v1/namespaces/{storage}/services", service)
    jobs = {"hubEndpoint": f"https://mirror.{storage}.svc", "proxy": {"https": "http://10.7.7.7:3128"}}
    async with open_job_world(control_plane, jobs=jobs) as world:
        world.make_job()
        await world.step()
        [policy] = [item for item in world.items(NETWORK_POLICY) if JOB_LABEL in item["metadata"]["labels"]]
    assert {"ipBlock": {"cidr": f"{made['spec']['clusterIP']}/32"}} in to_of(policy, 443)
    namespace = {"matchLabels": {"kubernetes.io/metadata.name": storage}}
    pods = {"namespaceSelector": namespace, "podSelector": {"matchLabels": {"app": "mirror"}}}
    assert pods in to_of(policy, 8443)
    assert {"ipBlock": {"cidr": "10.7.7.7/32"}} in to_of(policy, 3128)


async def test_a_name_is_resolved_and_a_failure_keeps_the_last_answer(
    control_plane: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_definitions(control_plane)
    answers: list[Any] = [OSError("early"), ["10.3.2.1"], OSError("no name server"), ["10.3.2.2"]]

    async def getaddrinfo(_loop: Any, _host: str, _port: Any, **_: Any) -> list[Any]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answer]

    url = "https://mirror.example.org:8443"
    async with open_job_world(control_plane) as world:
        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
        routes = Routes(world.operating.cluster, world.clock)

        async def reached() -> list[Any]:
            rules, known = await routes.to([url], world.namespace)
            assert known
            return [to["ipBlock"]["cidr"] for rule in rules for to in rule["to"]]

        assert await routes.to([url], world.namespace) == ((), False)
        world.clock.ahead_s += 11
        first = await reached()
        assert first[0] == "10.3.2.1/32"
        assert await reached() == first, "it is not asked for again at once"
        world.clock.ahead_s += 61
        assert await reached() == first
        world.clock.ahead_s += 61
        assert (await reached())[0] == "10.3.2.2/32"
        assert answers == []
