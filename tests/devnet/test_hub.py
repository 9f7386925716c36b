"""The hub, used by the real huggingface_hub client."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get

WEIGHTS = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    files = {
        "digits/small/config.json": b"{}",
        "digits/small/model.safetensors": WEIGHTS,
        "digits/small/onnx/deep/model.onnx": b"onnx",
        "digits/small/.git/config": b"hidden",
        "digits/small@v2/config.json": b'{"version": 2}',
        "digits/secret/config.json": b'{"secret": true}',
        "outside.txt": b"content outside",
        "digits/gated/config.json": b'{"gated": true}',
        "tokens.toml": b'"digits/secret" = ["hf_right"]\n"digits/gated" = { gated = ["hf_admitted"] }\n',
    }
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "digits/small/link.txt").symlink_to(root / "outside.txt")
    return root


@pytest.fixture(scope="module")
def endpoint(root):
    command = [sys.executable, "-m", "hypha_devnet", "hub", "--root", root, "--tokens", root / "tokens.toml"]
    with subprocess.Popen([*command, "--events"], stdout=subprocess.PIPE) as process:
        event = json.loads(process.stdout.readline())
        assert event["event"] == "listening"
        yield event["url"]
        process.terminate()


@pytest.fixture
def api(endpoint):
    return HfApi(endpoint, token=False)


def test_a_file_is_downloaded(endpoint, tmp_path):
    path = hf_hub_download("digits/small", "model.safetensors", endpoint=endpoint, cache_dir=tmp_path, token=False)
    assert Path(path).read_bytes() == WEIGHTS


def test_a_repository_is_downloaded_without_hidden_files_and_links(endpoint, tmp_path):
    path = Path(snapshot_download("digits/small", endpoint=endpoint, cache_dir=tmp_path, token=False))
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())
    assert names == ["config.json", "model.safetensors", "onnx/deep/model.onnx"]


def test_an_unfinished_download_is_resumed(endpoint, tmp_path):
    path = tmp_path / "unfinished"
    path.write_bytes(b"0" * 1000)  # told from what a resumed download would fetch
    with path.open("ab") as file:
        url = f"{endpoint}/digits/small/resolve/main/model.safetensors"
        http_get(url, file, resume_size=1000, expected_size=len(WEIGHTS))
    assert path.read_bytes() == b"0" * 1000 + WEIGHTS[1000:]


def test_revisions_differ_in_commit_and_content(api, endpoint, tmp_path):
    first, second = api.model_info("digits/small"), api.model_info("digits/small", revision="v2")
    assert first.sha != second.sha
    for revision in ("v2", second.sha):
        path = hf_hub_download(
            "digits/small", "config.json", revision=revision, endpoint=endpoint, cache_dir=tmp_path, token=False
        )
        assert json.loads(Path(path).read_text()) == {"version": 2}
    assert {branch.name: branch.target_commit for branch in api.list_repo_refs("digits/small").branches} == {
        "main": first.sha,
        "v2": second.sha,
    }


def test_the_tree_is_listed_by_folder_or_recursively(api):
    assert {entry.path for entry in api.list_repo_tree("digits/small")} == {
        "config.json",
        "model.safetensors",
        "onnx",
    }
    assert {entry.path for entry in api.list_repo_tree("digits/small", "onnx")} == {"onnx/deep"}
    assert {entry.path for entry in api.list_repo_tree("digits/small", recursive=True)} == {
        "config.json",
        "model.safetensors",
        "onnx",
        "onnx/deep",
        "onnx/deep/model.onnx",
    }
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("digits/small", "nowhere"))


def test_a_private_repository_opens_to_its_token_only(api, endpoint, tmp_path):
    where = {"endpoint": endpoint}
    path = hf_hub_download("digits/secret", "config.json", token="hf_right", cache_dir=tmp_path / "mine", **where)
    assert json.loads(Path(path).read_text()) == {"secret": True}
    assert HfApi(endpoint, token="hf_right").model_info("digits/secret").private
    for token in (False, "hf_admitted"):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("digits/secret", "config.json", token=token, cache_dir=tmp_path / "theirs", **where)
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint, token=token).model_info("digits/secret")


@pytest.mark.parametrize("repository", ["digits/secret", "digits/gated", "digits/small", "digits/none"])
@pytest.mark.parametrize("token", ["hf_wrong", "hf_rightt", "hf_"])
def test_a_token_that_the_hub_does_not_know_is_refused(endpoint, tmp_path, repository, token):
    with pytest.raises(HfHubHTTPError) as refused:
        hf_hub_download(repository, "config.json", token=token, endpoint=endpoint, cache_dir=tmp_path)
    assert (type(refused.value), refused.value.response.status_code) == (HfHubHTTPError, 401)


def test_everybody_sees_a_gated_repository_and_those_with_access_read_it(api, endpoint, tmp_path):
    assert api.model_info("digits/gated").gated == "manual"
    assert [entry.path for entry in api.list_repo_tree("digits/gated")] == ["config.json"]
    where = {"endpoint": endpoint, "cache_dir": tmp_path}
    for token, status in ((False, 401), ("hf_right", 403)):
        with pytest.raises(GatedRepoError) as refused:
            hf_hub_download("digits/gated", "config.json", token=token, **where)
        assert refused.value.response.status_code == status
    path = hf_hub_download("digits/gated", "config.json", token="hf_admitted", **where)
    assert json.loads(Path(path).read_text()) == {"gated": True}


def test_a_missing_repository_revision_or_file_is_not_found(api, endpoint, tmp_path):
    where = {"endpoint": endpoint, "cache_dir": tmp_path, "token": False}
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("digits/none", "config.json", **where)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("digits/small", "config.json", revision="v3", **where)
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("digits/small", "none.json", **where)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("digits/none")


@pytest.mark.parametrize(
    "path",
    [
        "digits/small/resolve/main/../../../outside.txt",
        "digits/small/resolve/main/%2e%2e/%2e%2e/outside.txt",
        "digits/small/resolve/main/link.txt",
        "digits/small/resolve/main/.git/config",
        "../resolve/main/outside.txt",
        "%2e%2e/resolve/main/outside.txt",
        "digits/..%2f/resolve/main/outside.txt",
        "digits/small@v2/resolve/main/config.json",
        "digits/secret/resolve/main/config.json",
    ],
)
def test_no_path_leads_out_of_the_root(endpoint, path):
    host, port = endpoint.removeprefix("http://").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        connection.request("GET", f"/{path}")  # as it is: httpx would tidy the dots away
        response = connection.getresponse()
        assert response.status in (401, 404)
        assert b"content outside" not in response.read()


def test_an_edited_file_is_a_new_commit(root, api, endpoint, tmp_path):
    edited = root / "digits" / "edited"
    edited.mkdir()
    (edited / "a").write_text("one")
    before = api.model_info("digits/edited").sha
    (edited / "a").write_text("two!")
    assert api.model_info("digits/edited").sha != before
    path = hf_hub_download("digits/edited", "a", endpoint=endpoint, cache_dir=tmp_path, token=False)
    assert Path(path).read_text() == "two!"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--root", "/nonexistent"], "is not a directory"),
        (["--root", "/tmp", "--listen", "here"], "HOST:PORT"),
        (["--root", "/tmp", "--tokens", "/nonexistent"], "No such file"),
    ],
)
def test_wrong_options_are_explained(options, reason):
    result = subprocess.run(
        [sys.executable, "-m", "hypha_devnet", "hub", *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert reason in result.stderr
