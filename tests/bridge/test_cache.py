"""The cache of public files: what it keeps, for how long, and that a job gets the hub's bytes whatever is in it."""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hypha_bridge import cache as module
from hypha_bridge.cache import Cache, Content, fetch
from hypha_bridge.errors import BridgeError
from hypha_contracts.bridge_config import CacheConfig

DATA = b"weights" * 1000
MIB = 1 << 20
GIT_ID = hashlib.sha1(b"blob %d\0" % len(DATA) + DATA, usedforsecurity=False).hexdigest()


def content_of(data: bytes) -> Content:
    found = Content.of(hashlib.sha256(data).hexdigest(), len(data))
    assert found is not None
    return found


CONTENT = content_of(DATA)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def stopping() -> threading.Event:
    return threading.Event()


@pytest.fixture
def cache(directory: Path, stopping: threading.Event) -> Cache:
    return Cache(CacheConfig(directory=directory, max_bytes=20_000), stopping, wait_s=0)


class Job:
    """A job that needs a file, with its directory and the number of its downloads."""

    def __init__(self, directory: Path, data: bytes = DATA) -> None:
        directory.mkdir()
        self.directory, self.data, self.downloads = directory, data, 0

    def download(self) -> Path:
        self.downloads += 1
        path = self.directory / "downloaded"
        path.write_bytes(self.data)
        return path

    def fetch(self, cache: Cache, content: Content = CONTENT) -> tuple[bytes, bool]:
        path, cached = fetch(cache, content, self.directory / "cached", self.download)
        assert path.parent == self.directory
        return path.read_bytes(), cached


def entries(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if not path.name.startswith(".lock")}


@pytest.mark.parametrize(
    ("etag", "kind"),
    [(CONTENT.digest, "sha256"), (CONTENT.digest.upper(), "sha256"), (GIT_ID, "git"), ("v1", None), (None, None)],
)
def test_the_hub_s_entity_tag_names_the_content_if_it_is_a_hash(etag: str | None, kind: str | None) -> None:
    found = Content.of(etag, len(DATA))
    assert (found.kind if found else None) == kind
    assert Content.of(etag, None) is None, "nothing would bound what is read"


@pytest.mark.parametrize("etag", [CONTENT.digest, GIT_ID])
def test_the_second_job_gets_the_file_without_a_download(cache: Cache, tmp_path: Path, etag: str) -> None:
    content = Content.of(etag, len(DATA))
    assert content is not None
    first, second = Job(tmp_path / "first"), Job(tmp_path / "second")
    assert first.fetch(cache, content) == (DATA, False)
    assert second.fetch(cache, content) == (DATA, True)
    assert second.downloads == 0
    assert (tmp_path / "second" / "cached").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["changed", "shorter", "longer", "link", "directory", "fifo"])
def test_whatever_is_in_the_cache_a_job_gets_the_hub_s_bytes(
    damage: str, cache: Cache, directory: Path, tmp_path: Path
) -> None:
    Job(tmp_path / "first").fetch(cache)
    entry = directory / CONTENT.name
    changed = {"changed": b"x" + DATA[1:], "shorter": DATA[:-1], "longer": DATA + b"x"}
    if damage in changed:
        entry.write_bytes(changed[damage])
    else:
        entry.unlink()
    (tmp_path / "secret").write_bytes(DATA)
    if damage == "link":
        entry.symlink_to(tmp_path / "secret")
    elif damage == "directory":
        entry.mkdir()
    elif damage == "fifo":
        os.mkfifo(entry)
    second = Job(tmp_path / "second")
    assert second.fetch(cache) == (DATA, False)
    assert second.downloads == 1
    if damage in changed:
        assert entry.read_bytes() == DATA, "the damaged file is replaced"


def test_what_the_hub_sends_against_its_own_hash_is_not_kept(cache: Cache, directory: Path, tmp_path: Path) -> None:
    wrong = Job(tmp_path / "first", data=b"x" * len(DATA))
    assert wrong.fetch(cache) == (wrong.data, False)
    assert entries(directory) == set()


def test_the_files_that_were_used_longest_ago_make_room(cache: Cache, directory: Path, tmp_path: Path) -> None:
    files = [bytes([number]) * 8_000 for number in range(3)]
    for number, data in enumerate(files[:2]):
        Job(tmp_path / f"job-{number}", data).fetch(cache, content_of(data))
        os.utime(directory / content_of(data).name, (number, number))
    Job(tmp_path / "again", files[0]).fetch(cache, content_of(files[0]))
    Job(tmp_path / "third", files[2]).fetch(cache, content_of(files[2]))
    assert entries(directory) == {content_of(files[0]).name, content_of(files[2]).name}


def test_a_file_that_is_larger_than_the_cache_is_not_kept_and_removes_nothing_needlessly(
    cache: Cache, directory: Path, tmp_path: Path
) -> None:
    Job(tmp_path / "first").fetch(cache)
    large = b"y" * 20_001
    assert Job(tmp_path / "second", large).fetch(cache, content_of(large)) == (large, False)
    assert entries(directory) == {CONTENT.name}


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A volume of 40 MiB."""
    volume = tmp_path / "volume"
    volume.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={40 * MIB}", "tmpfs", volume]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a volume")
    yield volume
    subprocess.run(["umount", "--lazy", volume], check=True)


def test_on_a_volume_smaller_than_the_limit_new_files_replace_old_ones(
    small_volume: Path, stopping: threading.Event, tmp_path: Path
) -> None:
    cache = Cache(CacheConfig(directory=small_volume, max_bytes=100 * 10**9), stopping, wait_s=0)
    files = [bytes([number]) * 8 * MIB for number in range(6)]
    for number, data in enumerate(files):
        Job(tmp_path / f"job-{number}", data).fetch(cache, content_of(data))
    assert entries(small_volume) == {content_of(data).name for data in files[-3:]}
    assert Job(tmp_path / "last", files[-1]).fetch(cache, content_of(files[-1])) == (files[-1], True)


def test_a_file_for_which_the_volume_runs_full_leaves_nothing(
    small_volume: Path, stopping: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(CacheConfig(directory=small_volume, max_bytes=100 * 10**9), stopping, wait_s=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))  # as beside a user's quota
    job = Job(tmp_path / "job", bytes(48 * MIB))
    assert job.fetch(cache, content_of(job.data)) == (job.data, False)
    assert entries(small_volume) == set()


def test_what_other_bridges_have_begun_takes_free_space_before_it_is_written(
    directory: Path, stopping: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(CacheConfig(directory=directory, max_bytes=100 * 10**9), stopping, wait_s=0)
    with (directory / ".partial-alive").open("wb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        living.write(bytes(4 * MIB))
        living.flush()
        living.truncate(10 * MIB)
        for free, kept in ((22 * MIB + len(DATA) - 1, set()), (22 * MIB + len(DATA), {CONTENT.name})):
            monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
            Job(tmp_path / f"job-{free}").fetch(cache)
            assert entries(directory) == {".partial-alive"} | kept


def test_a_file_system_that_refuses_a_file_s_size_is_left_without_it(
    cache: Cache, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(module.os, "ftruncate", refuse)
    assert Job(tmp_path / "first").fetch(cache) == (DATA, False)
    assert entries(directory) == set()


def test_files_of_the_owner_in_the_directory_stay(cache: Cache, directory: Path, tmp_path: Path) -> None:
    (directory / "notes").write_bytes(b"z" * 15_000)
    Job(tmp_path / "first").fetch(cache)
    assert (directory / "notes").exists()


def test_the_remains_of_a_killed_bridge_are_removed_and_those_of_a_living_one_count(
    cache: Cache, directory: Path, tmp_path: Path
) -> None:
    (directory / ".partial-dead").write_bytes(b"z" * 15_000)
    with (directory / ".partial-alive").open("wb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        living.truncate(15_000)
        Job(tmp_path / "first").fetch(cache)
        assert entries(directory) == {".partial-alive"}, "together they exceed the cache"
    Job(tmp_path / "second").fetch(cache)
    assert entries(directory) == {CONTENT.name}


def test_while_another_bridge_downloads_the_same_file_a_bridge_waits_for_it(
    directory: Path, stopping: threading.Event, tmp_path: Path
) -> None:
    patient = Cache(CacheConfig(directory=directory, max_bytes=20_000), stopping, wait_s=20)
    downloading, go_on = threading.Event(), threading.Event()
    first, second = Job(tmp_path / "first"), Job(tmp_path / "second")

    def slow() -> Path:
        downloading.set()
        assert go_on.wait(20)
        return first.download()

    one = threading.Thread(target=lambda: fetch(patient, CONTENT, first.directory / "cached", slow))
    one.start()
    assert downloading.wait(20)
    results: list[tuple[bytes, bool]] = []
    other = threading.Thread(target=lambda: results.append(second.fetch(patient)))
    other.start()
    go_on.set()
    one.join(20)
    other.join(20)
    assert results == [(DATA, True)]
    assert second.downloads == 0


def test_a_bridge_that_waited_too_long_downloads_the_file_itself(cache: Cache, directory: Path, tmp_path: Path) -> None:
    with (directory / f".lock-{CONTENT.digest[:2]}").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        job = Job(tmp_path / "first")
        assert job.fetch(cache) == (DATA, False)
    assert entries(directory) == set(), "the other bridge keeps the file"


def test_a_bridge_that_stops_does_not_wait(directory: Path, stopping: threading.Event, tmp_path: Path) -> None:
    patient = Cache(CacheConfig(directory=directory, max_bytes=20_000), stopping, wait_s=3600)
    stopping.set()
    with (directory / f".lock-{CONTENT.digest[:2]}").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BridgeError, match="the bridge is stopping"):
            Job(tmp_path / "first").fetch(patient)


@pytest.mark.parametrize("problem", ["a file", "no locks"])
def test_a_cache_that_cannot_be_used_ends_no_download(
    problem: str, directory: Path, stopping: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    if problem == "a file":
        directory.write_bytes(b"")
    else:
        monkeypatch.setattr(module.fcntl, "flock", refuse)
    cache = Cache(CacheConfig(directory=directory, max_bytes=20_000), stopping, wait_s=0)
    assert Job(tmp_path / "first").fetch(cache) == (DATA, False)
