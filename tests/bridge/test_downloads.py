"""Downloads over HTTP: they resume after a break, and an incomplete file never counts as complete."""

import gzip
import hashlib
import http.server
import os
import resource
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hypha_bridge.downloads import file_name
from hypha_bridge.errors import BridgeError
from hypha_contracts.bridge_config import BridgeConfig
from support.bridge_node import staged

pytestmark = pytest.mark.anyio

CONTENT = os.urandom(3_000_000)


class Site(http.server.ThreadingHTTPServer):
    """Serves CONTENT; tests set how often it breaks off and which features it supports."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.break_after: list[int] = []
        self.statuses: list[int] = []
        self.asked: list[str | None] = []
        self.lengths = True
        self.encoding: str | None = None

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that goes away is part of the tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        site = self.server
        site.asked.append(self.headers.get("Range"))
        if site.statuses:
            self.send_response(site.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path.startswith("/bomb/"):
            bomb = zlib.compressobj(wbits=31)
            body = b"".join(bomb.compress(bytes(1_000_000)) for _ in range(300)) + bomb.flush()
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/bomb"))
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/moved"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if site.ranges and "Range" in self.headers and self.headers.get("If-Range") == site.etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        data = site.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(site.content) - 1}/{len(site.content)}")
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.encoding:
            self.send_header("Content-Encoding", site.encoding)
        if site.lengths:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if site.break_after:
            data = data[: site.break_after.pop(0)]
            self.close_connection = True
        self.wfile.write(data)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
    yield site
    site.shutdown()
    site.server_close()


@pytest.fixture
def config(config: BridgeConfig) -> BridgeConfig:
    return config.model_copy(
        update={"allow_private_addresses": True, "storage_bytes": 10_000_000, "download_deadline_s": 3}
    )


async def fetch(bridge: httpx.AsyncClient, url: str) -> httpx.Response:
    return await bridge.post("/resources/fetch", json={"type": "uri", "value": url})


async def assert_whole(answer: httpx.Response, config: BridgeConfig, content: bytes = CONTENT) -> None:
    assert answer.status_code == 200, answer.text
    [file] = answer.json()
    assert file["size"] == len(content)
    assert file["checksum"] == "sha256:" + hashlib.sha256(content).hexdigest()
    assert file["metadata"]["source"] == "uri"
    assert (config.work_dir / file["path"]).read_bytes() == content


async def test_a_file_is_downloaded_under_the_last_name_of_its_address(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig
) -> None:
    answer = await fetch(bridge, f"{site.url}/models/model%20one.safetensors?signature=secret")
    await assert_whole(answer, config)
    assert answer.json()[0]["path"] == "artifacts/model one.safetensors"


async def test_a_redirect_is_followed(bridge: httpx.AsyncClient, site: Site, config: BridgeConfig) -> None:
    await assert_whole(await fetch(bridge, f"{site.url}/moved/x"), config)


async def test_redirects_end_after_ten(bridge: httpx.AsyncClient, site: Site, config: BridgeConfig) -> None:
    await assert_whole(await fetch(bridge, f"{site.url}{'/moved' * 10}/x"), config)
    answer = await fetch(bridge, f"{site.url}{'/moved' * 11}/x")
    assert (answer.status_code, answer.json()["error"]) == (502, "source_failed")
    assert "more than 10 redirects" in answer.json()["detail"]


async def test_the_body_of_a_redirect_is_not_decompressed_into_memory(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    site.content = b"x"
    await assert_whole(await fetch(bridge, f"{site.url}/moved/bomb/x"), config, b"x")
    assert site.asked == [None, None, None]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


async def test_a_download_that_breaks_off_resumes(bridge: httpx.AsyncClient, site: Site, config: BridgeConfig) -> None:
    site.break_after = [2_200_000, 500_000]
    await assert_whole(await fetch(bridge, f"{site.url}/x"), config)
    assert site.asked[0] is None
    offsets = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in site.asked[1:] if asked]
    assert len(offsets) == 2
    assert 0 < offsets[0] <= offsets[1] < len(CONTENT)


async def test_a_file_that_changed_meanwhile_is_downloaded_from_its_start(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.break_after = [2_200_000]
    changed = CONTENT[::-1]
    real = _Handler.do_GET

    def change_after_the_first(self: _Handler) -> None:
        if self.server.asked:
            self.server.content, self.server.etag = changed, '"v2"'
        real(self)

    monkeypatch.setattr(_Handler, "do_GET", change_after_the_first)
    await assert_whole(await fetch(bridge, f"{site.url}/x"), config, changed)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
async def test_without_a_strong_entity_tag_a_download_restarts_from_its_start(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig, etag: str | None
) -> None:
    site.etag = etag
    site.break_after = [2_200_000]
    await assert_whole(await fetch(bridge, f"{site.url}/x"), config)
    assert site.asked == [None, None]


async def test_a_download_from_a_busy_server_is_retried(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig
) -> None:
    site.statuses = [503, 429, 500]
    await assert_whole(await fetch(bridge, f"{site.url}/x"), config)


async def test_a_file_of_unknown_length_is_read_to_its_end(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig
) -> None:
    site.lengths = False
    await assert_whole(await fetch(bridge, f"{site.url}/x"), config)


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


TEXT = b"weights " * 300_000
COMPRESSED = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "x-gzip": ("X-GZip", gzip.compress(TEXT)),
    "several members": ("gzip", gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:])),
    "padding": ("gzip", gzip.compress(TEXT) + bytes(512)),
    "zlib": ("deflate", zlib.compress(TEXT)),
    "raw deflate": ("deflate", raw_deflate(TEXT)),
    "identity": ("identity", TEXT),
}


@pytest.mark.parametrize("form", COMPRESSED)
@pytest.mark.parametrize("lengths", [True, False])
async def test_a_file_that_the_server_compressed_unasked_is_decoded(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig, form: str, lengths: bool
) -> None:
    site.encoding, site.content = COMPRESSED[form]
    site.lengths = lengths
    await assert_whole(await fetch(bridge, f"{site.url}/x"), config, TEXT)


async def test_a_compressed_file_that_breaks_off_is_downloaded_from_its_start(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig
) -> None:
    site.encoding, site.content = "gzip", gzip.compress(CONTENT, 1)
    site.break_after = [2_200_000]
    await assert_whole(await fetch(bridge, f"{site.url}/x"), config)
    assert site.asked == [None, None]


async def test_a_compressed_file_without_its_end_is_never_complete(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig
) -> None:
    site.encoding, site.content, site.lengths = "gzip", gzip.compress(TEXT)[:-9], False
    answer = await fetch(bridge, f"{site.url}/x")
    assert (answer.status_code, answer.json()["error"]) == (502, "source_failed")
    assert "the compressed data breaks off" in answer.json()["detail"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "rot13"])
async def test_another_encoding_is_refused_by_name(bridge: httpx.AsyncClient, site: Site, encoding: str) -> None:
    site.encoding = encoding
    answer = await fetch(bridge, f"{site.url}/x")
    assert (answer.status_code, answer.json()["error"]) == (502, "source_failed")
    assert f"sends the file encoded ({encoding})" in answer.json()["detail"]


async def test_damaged_compressed_data_is_an_error(bridge: httpx.AsyncClient, site: Site) -> None:
    site.encoding = "gzip"
    answer = await fetch(bridge, f"{site.url}/x")
    assert (answer.status_code, answer.json()["error"]) == (502, "source_failed")
    assert "compressed data is damaged" in answer.json()["detail"]


@pytest.mark.parametrize("lengths", [True, False])
async def test_a_bomb_fills_neither_the_storage_nor_the_memory(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig, lengths: bool
) -> None:
    bomb = zlib.compressobj(wbits=31)
    site.encoding = "gzip"
    site.content = b"".join(bomb.compress(bytes(1_000_000)) for _ in range(300)) + bomb.flush()
    site.lengths = lengths
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = await fetch(bridge, f"{site.url}/x")
    assert (answer.status_code, answer.json()["error"]) == (507, "storage_exceeded")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert not (config.work_dir / "artifacts").exists()
    assert staged(config) == []


@pytest.mark.parametrize("status", [401, 404, 410])
async def test_a_download_that_the_server_refuses_is_an_error(
    bridge: httpx.AsyncClient, site: Site, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    site.statuses = [status]
    answer = await fetch(bridge, f"{site.url}/secret/x?signature=secret")
    assert (answer.status_code, answer.json()["error"]) == (502, "source_failed")
    assert str(status) in answer.json()["detail"]
    assert "secret" not in answer.json()["detail"] + caplog.text


async def test_the_log_does_not_show_the_name_of_a_file_that_may_be_a_token(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "hypha_bridge")
    await assert_whole(await fetch(bridge, f"{site.url}/secret"), config)
    assert "fetched" in caplog.text
    assert "secret" not in caplog.text


async def test_a_file_too_large_for_the_storage_is_refused_before_its_download(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig
) -> None:
    site.content = bytes(20_000_000)
    answer = await fetch(bridge, f"{site.url}/x")
    assert answer.status_code == 507
    assert not (config.work_dir / "artifacts").exists()


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("https://example.org/a/b.bin?x=/y#z", "b.bin"),
        ("https://example.org/", "part-0.bin"),
        ("https://example.org", "part-0.bin"),
        ("https://example.org/%C3%A4.bin", "ä.bin"),
    ],
)
def test_a_name_comes_from_the_path_s_last_segment(uri: str, name: str) -> None:
    assert file_name(uri) == name


@pytest.mark.parametrize("uri", ["ftp://example.org/x", "//example.org/x", "x", "http:///x", "https://[::1/x", ""])
def test_an_address_that_is_not_http_is_refused(uri: str) -> None:
    with pytest.raises(BridgeError):
        file_name(uri)


@pytest.mark.parametrize("last", ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%0ab"])
async def test_a_file_name_that_leads_out_of_the_directory_is_refused(
    bridge: httpx.AsyncClient, site: Site, config: BridgeConfig, tmp_path: Path, last: str
) -> None:
    def outside() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if "artifacts" not in path.parts}

    before = outside()
    await fetch(bridge, f"{site.url}/a/{last}")
    assert outside() == before
