"""How the operator reaches the API server."""

import pytest
from kubernetes.aio.client import ApiClient

from hypha_contracts.kinds import SERVICE
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster, load_configuration
from support.api_server import ApiServer


@pytest.mark.anyio
async def test_the_api_server_is_asked_directly_although_the_environment_names_a_proxy(
    api_server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,127.0.0.0/8")
    async with ApiClient(await load_configuration()) as client:
        assert await Cluster(client, Clock(), lambda *_: None).get(SERVICE, "default", "kubernetes")
