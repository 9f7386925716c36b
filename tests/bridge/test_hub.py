"""Hugging Face repositories, fetched through the bridge by the real client from the real devnet hub."""

import collections
import contextlib
import hashlib
import http.server
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn

from hypha_contracts.bridge_config import BridgeConfig, CacheConfig, LentToken
from hypha_devnet.roles.hub import build
from hypha_devnet.roles.repositories import Repositories
from support.bridge_node import FakeNode

pytestmark = pytest.mark.anyio

WEIGHTS = os.urandom(2_000_000)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("hub")
    files = {
        "digits/small/config.json": b"{}",
        "digits/small/onnx/model.onnx": WEIGHTS,
        "digits/small@v2/config.json": b'{"version": 2}',
        "digits/secret/config.json": b'{"secret": true}',
        "digits/gated/config.json": b'{"gated": true}',
        "tokens.toml": b'"digits/secret" = ["hf_right"]\n"digits/gated" = { gated = ["hf_admitted"] }\n',
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    command = [sys.executable, "-m", "hypha_devnet", "hub", "--root", root, "--tokens", root / "tokens.toml"]
    with subprocess.Popen([*command, "--events"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@pytest.fixture
def config(config: BridgeConfig, hub: str) -> BridgeConfig:
    return config.model_copy(
        update={"hub_endpoint": hub, "storage_bytes": 5_000_000, "download_deadline_s": 1, "read_ahead": 0}
    )


def reference(*filenames: str, repository: str = "digits/small", **more: Any) -> dict[str, Any]:
    return {"type": "huggingface", "repository": repository, "filenames": list(filenames)} | more


def large_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size >= len(WEIGHTS)]


async def test_files_keep_their_names_and_folders(bridge: httpx.AsyncClient, config: BridgeConfig) -> None:
    answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx", "config.json"))
    assert answer.status_code == 200, answer.text
    model, settings = answer.json()
    assert (model["path"], settings["path"]) == ("artifacts/onnx/model.onnx", "artifacts/config.json")
    assert (model["size"], model["checksum"]) == (len(WEIGHTS), "sha256:" + hashlib.sha256(WEIGHTS).hexdigest())
    assert model["metadata"]["source"] == "huggingface"
    assert (config.work_dir / model["path"]).read_bytes() == WEIGHTS
    assert (config.work_dir / model["path"]).stat().st_mode & 0o777 == 0o600


async def test_the_documented_form_fetches_a_revision(bridge: httpx.AsyncClient, config: BridgeConfig) -> None:
    body = {"fetch": reference("config.json", revision="v2") | {"type": "HuggingFace"}, "out_dir": "models"}
    answer = await bridge.post("/resources/fetch", json=body)
    assert answer.status_code == 200, answer.text
    assert json.loads((config.work_dir / "models/config.json").read_text()) == {"version": 2}


async def test_a_private_repository_opens_to_the_reference_s_token(
    bridge: httpx.AsyncClient, config: BridgeConfig
) -> None:
    wanted = reference("config.json", repository="digits/secret")
    answer = await bridge.post("/resources/fetch", json=wanted | {"token": "hf_right"})
    assert answer.status_code == 200, answer.text
    assert json.loads((config.work_dir / "artifacts/config.json").read_text()) == {"secret": True}


async def test_a_private_repository_stays_closed_to_the_operator_s_own_token(
    bridge: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    answer = await bridge.post("/resources/fetch", json=reference("config.json", repository="digits/secret"))
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("wanted", "status", "code"),
    [
        (reference("nothing.json"), 404, "not_found"),
        (reference("config.json", revision="v9"), 404, "not_found"),
        (reference("config.json", repository="digits/none"), 404, "not_found"),
        (reference("config.json", repository="../../etc"), 400, "invalid_request"),
        (reference("config.json", repository="a/b/c/d"), 400, "invalid_request"),
    ],
)
async def test_a_file_that_the_hub_lacks_is_an_error_with_a_reason(
    bridge: httpx.AsyncClient, wanted: dict[str, Any], status: int, code: str
) -> None:
    answer = await bridge.post("/resources/fetch", json=wanted)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ({}, "is gated, and the reference holds no token, and the worker's owner lends none for it."),
        ({"token": "hf_right"}, "is gated, and the account of this token is not among those that may read it."),
    ],
)
async def test_a_gated_repository_is_refused_with_the_way_to_get_access(
    bridge: httpx.AsyncClient, hub: str, token: dict[str, str], says: str
) -> None:
    answer = await bridge.post("/resources/fetch", json=reference("config.json", repository="digits/gated") | token)
    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    detail = answer.json()["detail"]
    assert f"the repository digits/gated {says} Ask for access on its page on the hub {hub} with the account" in detail
    assert "hf_right" not in detail


async def test_a_token_that_the_hub_does_not_know_is_named_as_the_reason(bridge: httpx.AsyncClient) -> None:
    answer = await bridge.post("/resources/fetch", json=reference("config.json") | {"token": "hf_wrong"})
    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")
    assert "the hub does not know this token" in answer.json()["detail"]


class TestWithATokenOfTheOwner:
    @pytest.fixture
    def token(self, tmp_path: Path) -> Path:
        file = tmp_path / "hub-token"
        file.write_text("hf_admitted\n")
        return file

    @pytest.fixture
    def config(self, config: BridgeConfig, token: Path) -> BridgeConfig:
        lent = LentToken(file=token, repositories=frozenset({"digits/gated"}))
        return config.model_copy(update={"hub_token": lent})

    async def test_it_opens_a_listed_repository_and_its_renewal_needs_no_restart(
        self, bridge: httpx.AsyncClient, config: BridgeConfig, token: Path
    ) -> None:
        wanted = reference("config.json", repository="digits/gated")
        await anyio.Path(token).write_text("hf_right")
        assert (await bridge.post("/resources/fetch", json=wanted)).status_code == 403
        await anyio.Path(token).write_text("hf_admitted")
        answer = await bridge.post("/resources/fetch", json=wanted)
        assert answer.status_code == 200, answer.text
        assert json.loads((config.work_dir / "artifacts/config.json").read_text()) == {"gated": True}

    async def test_it_opens_no_other_repository(self, bridge: httpx.AsyncClient, token: Path) -> None:
        await anyio.Path(token).write_text("hf_right")
        answer = await bridge.post("/resources/fetch", json=reference("config.json", repository="digits/secret"))
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")

    async def test_the_token_of_a_reference_goes_before_it(self, bridge: httpx.AsyncClient) -> None:
        wanted = reference("config.json", repository="digits/gated") | {"token": "hf_right"}
        answer = await bridge.post("/resources/fetch", json=wanted)
        assert answer.status_code == 403
        assert "the account of this token" in answer.json()["detail"]

    async def test_a_lost_token_file_is_logged_and_not_named_to_the_job(
        self, bridge: httpx.AsyncClient, token: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await anyio.Path(token).unlink()
        answer = await bridge.post("/resources/fetch", json=reference("config.json", repository="digits/gated"))
        assert answer.status_code == 403
        assert token.name not in answer.text
        assert f"the token of hub_token cannot be read: [Errno 2] No such file or directory: '{token}'" in caplog.text

    async def test_it_stays_out_of_the_work_directory_and_of_the_log(
        self, bridge: httpx.AsyncClient, config: BridgeConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        await bridge.post("/resources/fetch", json=reference("config.json", repository="digits/gated"))
        held = [path.read_bytes() for path in config.work_dir.rglob("*") if path.is_file()]
        assert held
        assert not any(b"hf_admitted" in content for content in held)
        assert "hf_admitted" not in caplog.text


class _Recorder(http.server.ThreadingHTTPServer):
    """Answers every request with a redirect to `target`, or with a file, and records who sent a token."""

    daemon_threads = True

    def __init__(self, target: str | None = None, prefix: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Recording)
        self.target, self.prefix = target, prefix
        self.tokens: list[str | None] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.prefix}"


class _Recording(http.server.BaseHTTPRequestHandler):
    server: _Recorder

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.server.tokens.append(self.headers.get("Authorization"))
        revisions = "main", "a" * 40  # the bridge downloads the commit that it was told
        expected = [f"{self.server.prefix}/digits/gated/resolve/{name}/config.json" for name in revisions]
        if self.server.target:
            self.send_response(302)
            self.send_header("Location", f"{self.server.target}{self.path}")
        else:
            self.send_response(200 if self.path in expected else 404)
        self.send_header("ETag", '"v1"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("X-Linked-Size", "2")
        self.send_header("Content-Length", "0" if self.server.target else "2")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if not self.server.target:
            self.wfile.write(b"{}")


class TestOfAHubThatRedirectsToAnotherHost:
    @pytest.fixture
    def elsewhere(self) -> Iterator[_Recorder]:
        with _Recorder() as server:
            yield server
            server.shutdown()

    @pytest.fixture
    def redirecting(self, elsewhere: _Recorder) -> Iterator[_Recorder]:
        with _Recorder(elsewhere.url) as server:
            yield server
            server.shutdown()

    @pytest.fixture
    def config(self, config: BridgeConfig, redirecting: _Recorder) -> BridgeConfig:
        return config.model_copy(update={"hub_endpoint": redirecting.url})

    async def test_the_other_host_gets_no_token(
        self, bridge: httpx.AsyncClient, redirecting: _Recorder, elsewhere: _Recorder
    ) -> None:
        wanted = reference("config.json", repository="digits/gated") | {"token": "hf_admitted"}
        answer = await bridge.post("/resources/fetch", json=wanted)
        assert answer.status_code == 200, answer.text
        assert set(redirecting.tokens) == {"Bearer hf_admitted"}
        assert set(elsewhere.tokens) == {None}

    async def test_not_even_if_the_client_knows_it_as_a_host_of_the_hub(
        self, bridge: httpx.AsyncClient, elsewhere: _Recorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.file_download._is_same_or_hub_host", lambda *_: True)
        wanted = reference("config.json", repository="digits/gated") | {"token": "hf_admitted"}
        answer = await bridge.post("/resources/fetch", json=wanted)
        assert answer.status_code == 200, answer.text
        assert set(elsewhere.tokens) == {None}


@pytest.mark.parametrize("slashes", ["", "/", "//"])
@pytest.mark.parametrize("prefix", ["", "/mirrors/hf"])
class TestAnEndpoint:
    @pytest.fixture
    def served(self, prefix: str) -> Iterator[_Recorder]:
        with _Recorder(prefix=prefix) as server:
            yield server
            server.shutdown()

    @pytest.fixture
    def config(self, config: BridgeConfig, served: _Recorder, slashes: str) -> BridgeConfig:
        return config.model_copy(update={"hub_endpoint": served.url + slashes})

    async def test_may_have_a_path_and_end_with_a_slash(self, bridge: httpx.AsyncClient) -> None:
        answer = await bridge.post("/resources/fetch", json=reference("config.json", repository="digits/gated"))
        assert answer.status_code == 200, answer.text


async def test_nothing_is_kept_outside_the_work_directory(
    bridge: httpx.AsyncClient, config: BridgeConfig, tmp_path: Path
) -> None:
    answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx"))
    assert answer.status_code == 200, answer.text
    assert large_files(tmp_path) == [config.work_dir / "artifacts/onnx/model.onnx"]


class _CountedHub:
    """The devnet hub in a thread of this process, which counts the downloads of each path."""

    def __init__(self, root: Path) -> None:
        (root / "digits/small/onnx").mkdir(parents=True)
        (root / "digits/small/onnx/model.onnx").write_bytes(WEIGHTS)
        repositories = Repositories(root, {})
        self.commit = repositories.snapshot("digits/small", "main", None).commit
        self.downloads: collections.Counter[str] = collections.Counter()
        api = build(repositories)

        async def counting(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("method") == "GET":
                self.downloads[scope["path"]] += 1
            await api(scope, receive, send)

        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(counting, log_level="warning"))
        self._thread = threading.Thread(target=lambda: self._server.run([self._listener]), daemon=True)

    def __enter__(self) -> "_CountedHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def _fetch_in_ten_jobs(config: BridgeConfig, hub_url: str, directory: Path) -> list[bytes]:
    """Fetch the weights in ten processes that begin together, as the bridges of ten jobs; return what each got."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hypha_bridge.hub import Hub\n"
        "from hypha_bridge.paths import WorkDir\n"
        "from hypha_bridge.storage import JobFiles, Storage\n"
        "from hypha_bridge.trust import write_authorities\n"
        "from hypha_contracts.bridge_config import BridgeConfig\n"
        "from hypha_messages.job import HuggingFaceReference\n"
        "staging, out = Path(sys.argv[2]), Path(sys.argv[3])\n"
        "files = JobFiles(WorkDir(staging), staging, Storage((staging,), None))\n"
        "hub = Hub(BridgeConfig.model_validate_json(sys.argv[1]), files, write_authorities(None, staging))\n"
        "hub._import()\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "wanted = HuggingFaceReference(repository='digits/small', filenames=['onnx/model.onnx'])\n"
        "with hub.download(wanted, 'onnx/model.onnx') as (path, _):\n"
        "    path.rename(out)\n"
    )
    text = config.model_copy(update={"hub_endpoint": hub_url}).to_json()
    with contextlib.ExitStack() as stack:
        jobs, outs = [], []
        for number in range(10):
            staging = directory / f"staging-{number}"
            staging.mkdir()
            outs.append(directory / f"out-{number}")
            command = [sys.executable, "-c", program, text, str(staging), str(outs[-1])]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            jobs.append(stack.enter_context(subprocess.Popen(command, **pipes)))
        for job in jobs:
            assert job.stdout.readline() == "ready\n"
        for job in jobs:
            job.stdin.write("go\n")
            job.stdin.flush()
        assert [job.wait(60) for job in jobs] == [0] * 10
    return [out.read_bytes() for out in outs]


class _BreakingProxy(socketserver.ThreadingTCPServer):
    """Forwards requests to the hub and breaks off the first answer longer than a megabyte in its middle."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, hub: str) -> None:
        super().__init__(("127.0.0.1", 0), _Pass)
        self.hub = httpx.URL(hub)
        self.breaks_left = 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # broken connections are what it is for


class _Pass(socketserver.BaseRequestHandler):
    server: _BreakingProxy

    def handle(self) -> None:
        with socket.create_connection((self.server.hub.host, self.server.hub.port or 80)) as hub:
            threading.Thread(target=self._pass_requests, args=(hub,), daemon=True).start()
            passed = 0
            while data := hub.recv(65536):
                passed += len(data)
                if passed > 1_000_000 and self.server.breaks_left:
                    self.server.breaks_left -= 1
                    return
                self.request.sendall(data)

    def _pass_requests(self, hub: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(65536):
                hub.sendall(data)
            hub.shutdown(socket.SHUT_WR)


class TestOverALineThatBreaks:
    @pytest.fixture
    def proxy(self, hub: str) -> Iterator[_BreakingProxy]:
        with _BreakingProxy(hub) as proxy:
            threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
            yield proxy
            proxy.shutdown()

    @pytest.fixture
    def config(self, config: BridgeConfig, proxy: _BreakingProxy) -> BridgeConfig:
        return config.model_copy(update={"hub_endpoint": proxy.url})

    async def test_a_download_is_resumed(
        self, bridge: httpx.AsyncClient, config: BridgeConfig, proxy: _BreakingProxy
    ) -> None:
        answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx"))
        assert answer.status_code == 200, answer.text
        assert proxy.breaks_left == 0
        assert (config.work_dir / "artifacts/onnx/model.onnx").read_bytes() == WEIGHTS


class TestWithACache:
    """Ten bridges at once, each with the hub's own client, on a hub that counts requests."""

    @pytest.fixture
    def config(self, config: BridgeConfig, tmp_path: Path) -> BridgeConfig:
        cache = CacheConfig(directory=tmp_path / "cache", max_bytes=10_000_000)
        return config.model_copy(update={"cache": cache})

    @pytest.fixture
    def counted(self, tmp_path: Path) -> Iterator[_CountedHub]:
        with _CountedHub(tmp_path / "models") as counted:
            yield counted

    async def test_ten_jobs_of_one_model_make_one_download(
        self, config: BridgeConfig, counted: _CountedHub, tmp_path: Path
    ) -> None:
        results = await anyio.to_thread.run_sync(lambda: _fetch_in_ten_jobs(config, counted.url, tmp_path))
        assert results == [WEIGHTS] * 10
        assert counted.downloads == {"/digits/small/resolve/" + counted.commit + "/onnx/model.onnx": 1}

    async def test_downloads_with_a_token_are_neither_kept_nor_served(
        self, bridge: httpx.AsyncClient, config: BridgeConfig
    ) -> None:
        assert config.cache is not None
        wanted = reference("config.json", repository="digits/secret") | {"token": "hf_right"}
        assert (await bridge.post("/resources/fetch", json=wanted)).status_code == 200
        assert [path for path in config.cache.directory.iterdir() if not path.name.startswith(".lock")] == []

    async def test_a_cached_file_of_a_repository_that_became_private_is_refused(
        self, bridge: httpx.AsyncClient, config: BridgeConfig
    ) -> None:
        """The hub is asked each time, so the cache opens nothing that the hub does not."""
        assert config.cache is not None
        secret = b'{"secret": true}'
        (config.cache.directory / f"sha256-{hashlib.sha256(secret).hexdigest()}").write_bytes(secret)
        answer = await bridge.post("/resources/fetch", json=reference("config.json", repository="digits/secret"))
        assert answer.status_code == 404


class TestWithLittleStorage:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"storage_bytes": 1_000_000})

    async def test_a_file_that_does_not_fit_is_refused_before_its_download(
        self, bridge: httpx.AsyncClient, config: BridgeConfig, node: FakeNode
    ) -> None:
        answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx"))
        assert (answer.status_code, answer.json()["error"]) == (507, "storage_exceeded")
        assert not (config.work_dir / "artifacts").exists()
