"""Hugging Face repositories, fetched through the bridge by the real client from the real devnet hub."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hypha_bridge.config import BridgeConfig
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
        "tokens.toml": b'"digits/secret" = ["hf_right"]\n',
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    command = [sys.executable, "-m", "hypha_devnet.cli", "hub", "--root", root, "--tokens", root / "tokens.toml"]
    with subprocess.Popen([*command, "--events"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@pytest.fixture
def config(config: BridgeConfig, hub: str) -> BridgeConfig:
    connector = config.connector.model_copy(update={"deadline_s": 1})
    return config.model_copy(
        update={"hub_endpoint": hub, "storage_bytes": 5_000_000, "connector": connector, "read_ahead": 0}
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


async def test_the_documented_spelling_fetches_a_revision(bridge: httpx.AsyncClient, config: BridgeConfig) -> None:
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
async def test_what_the_hub_does_not_have_is_an_error_with_a_reason(
    bridge: httpx.AsyncClient, wanted: dict[str, Any], status: int, code: str
) -> None:
    answer = await bridge.post("/resources/fetch", json=wanted)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json()["detail"]


async def test_nothing_is_kept_outside_the_work_directory(
    bridge: httpx.AsyncClient, config: BridgeConfig, tmp_path: Path
) -> None:
    answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx"))
    assert answer.status_code == 200, answer.text
    assert large_files(tmp_path) == [config.work_dir / "artifacts/onnx/model.onnx"]


class TestWithLittleStorage:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"storage_bytes": 1_000_000})

    async def test_a_file_that_does_not_fit_is_refused_before_it_comes(
        self, bridge: httpx.AsyncClient, config: BridgeConfig, node: FakeNode
    ) -> None:
        answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx"))
        assert (answer.status_code, answer.json()["error"]) == (507, "storage_exceeded")
        assert not (config.work_dir / "artifacts").exists()
