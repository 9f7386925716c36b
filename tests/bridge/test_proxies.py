"""Downloads through proxies, among them one that intercepts TLS, from hosts that only the proxy reaches."""

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest

from hypha_bridge.config import ConfigError
from hypha_bridge.server import BridgeServer
from hypha_bridge.trust import write_authorities
from hypha_contracts.bridge_config import BridgeConfig
from hypha_contracts.proxies import Proxies
from support.certs import Pki
from support.proxy import Proxy, open_proxy

pytestmark = pytest.mark.anyio

HOST, ADDRESS = "files.example.org", "93.184.215.14"
HUB = "hub.example.org"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore what a bridge sets for the hub's client in its own process."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Names beside those that the machine knows, with the address of each."""
    known = {HOST: ADDRESS}
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, port: Any, *arguments: Any, **options: Any) -> Any:
        return resolve(known.get(host, host), port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The devnet's hub, which serves files over plain HTTP."""
    root = tmp_path_factory.mktemp("hub")
    (root / "digits" / "small").mkdir(parents=True)
    (root / "digits" / "small" / "config.json").write_bytes(b"{}")
    command = [sys.executable, "-m", "hypha_devnet", "hub", "--root", root, "--events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@pytest.fixture
def proxy(hub: str, tmp_path: Path) -> Iterator[Proxy]:
    with open_proxy(hub, tmp_path / "pki", HOST, HUB) as proxy:
        yield proxy


@pytest.fixture
def config(config: BridgeConfig, proxy: Proxy, tmp_path: Path) -> BridgeConfig:
    return config.model_copy(
        update={
            "proxy": Proxies(http=proxy.url, https=proxy.url),
            "trust_pem": tmp_path / "pki" / "ca.crt",
            "hub_endpoint": f"https://{HUB}",
            "download_deadline_s": 1,
        }
    )


def uri(scheme: str = "https", host: str = HOST) -> dict[str, str]:
    return {"type": "uri", "value": f"{scheme}://{host}/digits/small/resolve/main/config.json"}


OF_HUB = {"type": "huggingface", "repository": "digits/small", "filenames": ["config.json"]}


async def test_a_file_arrives_through_a_proxy_that_intercepts_tls(
    bridge: httpx.AsyncClient, config: BridgeConfig, proxy: Proxy
) -> None:
    """The bridge asks the proxy for the address that it has checked, and verifies the name."""
    answer = await bridge.post("/resources/fetch", json=uri())
    assert answer.status_code == 200, answer.text
    assert (config.work_dir / "artifacts/config.json").read_bytes() == b"{}"
    assert proxy.asked == [f"{ADDRESS}:443"]


async def test_plain_http_goes_through_its_proxy_too(bridge: httpx.AsyncClient, proxy: Proxy) -> None:
    answer = await bridge.post("/resources/fetch", json=uri("http"))
    assert answer.status_code == 200, answer.text
    assert proxy.asked == [f"{ADDRESS}:80"]


async def test_the_hub_is_asked_through_the_proxy(
    bridge: httpx.AsyncClient, config: BridgeConfig, proxy: Proxy
) -> None:
    answer = await bridge.post("/resources/fetch", json=OF_HUB)
    assert answer.status_code == 200, answer.text
    assert (config.work_dir / "artifacts/config.json").read_bytes() == b"{}"
    assert set(proxy.asked) == {f"{HUB}:443"}


class TestWithoutTheAuthorityOfTheProxy:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"trust_pem": None, "download_deadline_s": 60})

    @pytest.mark.parametrize("reference", [uri(), OF_HUB], ids=["uri", "hub"])
    async def test_a_download_fails_at_once_and_names_the_remedy(
        self, bridge: httpx.AsyncClient, reference: dict[str, Any]
    ) -> None:
        answer = await bridge.post("/resources/fetch", json=reference)
        assert (answer.status_code, answer.json()["error"]) == (502, "source_failed")
        assert "is not trusted" in answer.json()["detail"]
        assert "jobs.trustBundle" in answer.json()["detail"]
        assert "trust_pem" in answer.json()["detail"]


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "127.0.0.1", "fd00:ec2::254"])
async def test_a_proxy_is_never_asked_for_a_private_address(
    bridge: httpx.AsyncClient, proxy: Proxy, names: dict[str, str], address: str
) -> None:
    names[HOST] = address
    literal = f"[{address}]" if ":" in address else address
    for host in (HOST, literal):
        for scheme in ("http", "https"):
            answer = await bridge.post("/resources/fetch", json=uri(scheme, host))
            assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    assert proxy.asked == []


async def test_a_host_of_no_proxy_is_asked_directly(config: BridgeConfig, proxy: Proxy, hub: str) -> None:
    proxies = Proxies(http=proxy.url, https=proxy.url, no_proxy=["internal", "127.0.0.0/8"])
    assert proxies.of("https", "Mirror.Internal") is None
    assert proxies.of("https", "mirrorinternal") == proxy.url
    assert proxies.of("https", "127.0.0.9") is None
    assert proxies.of("https", "128.0.0.9") == proxy.url
    assert Proxies(https=proxy.url, no_proxy=["*"]).of("https", HOST) is None
    assert Proxies(https=proxy.url, no_proxy=[".example.org"]).of("https", HOST) is None
    assert Proxies(https=proxy.url).of("http", HOST) is None


class TestDirectly:
    @pytest.fixture
    def config(self, config: BridgeConfig, proxy: Proxy) -> BridgeConfig:
        proxies = Proxies(http=proxy.url, no_proxy=["127.0.0.0/8"])
        return config.model_copy(update={"proxy": proxies, "allow_private_addresses": True})

    async def test_a_network_of_no_proxy_is_not_asked_for_through_the_proxy(
        self, bridge: httpx.AsyncClient, proxy: Proxy, hub: str
    ) -> None:
        answer = await bridge.post("/resources/fetch", json=uri("http", hub.removeprefix("http://")))
        assert answer.status_code == 200, answer.text
        assert proxy.asked == []


async def test_a_proxy_that_refuses_is_named_with_the_remedy(bridge: httpx.AsyncClient, proxy: Proxy) -> None:
    proxy.status = 403
    answer = await bridge.post("/resources/fetch", json=uri())
    assert (answer.status_code, answer.json()["error"]) == (502, "source_failed")
    assert f"the proxy 127.0.0.1 refuses connections to {ADDRESS}:443 (HTTP 403)" in answer.json()["detail"]
    assert "noProxy" in answer.json()["detail"]


async def test_a_name_that_only_the_proxy_could_resolve_is_refused_with_the_reason(
    bridge: httpx.AsyncClient, proxy: Proxy
) -> None:
    answer = await bridge.post("/resources/fetch", json=uri(host="nowhere.invalid"))
    assert (answer.status_code, answer.json()["error"]) == (502, "source_failed")
    assert "which the bridge does even for a proxy" in answer.json()["detail"]
    assert proxy.asked == []


class TestOverTls:
    @pytest.fixture
    def proxy(self, hub: str, tmp_path: Path) -> Iterator[Proxy]:
        with open_proxy(hub, tmp_path / "pki", HOST, HUB, encrypted=True) as proxy:
            yield proxy

    async def test_a_file_arrives_through_a_proxy_that_speaks_tls_itself(
        self, bridge: httpx.AsyncClient, proxy: Proxy
    ) -> None:
        answer = await bridge.post("/resources/fetch", json=uri("http"))
        assert answer.status_code == 200, answer.text
        assert proxy.asked == [f"{ADDRESS}:80"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file"), ("Général", "holds no certificates"), ("", "holds no certificates")],
)
async def test_a_bundle_without_certificates_is_named_when_the_bridge_starts(
    config: BridgeConfig, tmp_path: Path, content: str | None, problem: str
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(ConfigError, match=f"trust_pem .*bundle.pem.*{problem}"):
        BridgeServer(config.model_copy(update={"trust_pem": bundle}))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_a_bundle_may_have_comments_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    bundle = tmp_path / "bundle.pem"
    first, second = (Pki().root.trust_pem.decode() for _ in range(2))
    bundle.write_text(f"{first}# Société Générale\n{second}", encoding=encoding)
    public = ssl.create_default_context(cafile=certifi.where()).cert_store_stats()["x509"]
    trusted = ssl.create_default_context(cafile=write_authorities(bundle, tmp_path))
    assert trusted.cert_store_stats()["x509"] == public + 2
