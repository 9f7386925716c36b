"""Files appear complete or not at all, and the job's storage is limited."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypha_bridge.errors import BridgeError
from hypha_bridge.paths import WorkDir
from hypha_bridge.storage import JobFiles, StagedFile, Storage, snapshot

BLOCK = 1024 * 1024


@pytest.fixture
def files(tmp_path: Path) -> Iterator[JobFiles]:
    work, staging = tmp_path / "work", tmp_path / "staging"
    work.mkdir()
    staging.mkdir()
    work_dir = WorkDir(work)
    yield JobFiles(work_dir, staging, Storage((work, staging), 4 * BLOCK))
    work_dir.close()


def test_a_staged_file_is_private_and_hashed_on_the_way(files: JobFiles) -> None:
    with files.stage() as staged:
        staged.write(b"ab")
        staged.write(memoryview(b"c"))
    assert staged.path.read_bytes() == b"abc"
    assert staged.path.stat().st_mode & 0o777 == 0o600
    assert (staged.size_bytes, staged.checksum) == (3, "sha256:" + hashlib.sha256(b"abc").hexdigest())


def test_a_staged_file_is_deleted_after_an_error(files: JobFiles) -> None:
    with contextlib.suppress(RuntimeError), files.stage() as staged:
        staged.write(b"ab")
        raise RuntimeError
    assert list(files.staging.iterdir()) == []


def test_a_restarted_file_discards_the_bytes_written(files: JobFiles) -> None:
    with files.stage() as staged:
        staged.write(b"long ago")
        staged.restart()
        staged.write(b"now")
    assert staged.path.read_bytes() == b"now"
    assert staged.checksum == "sha256:" + hashlib.sha256(b"now").hexdigest()


def fill(staged: StagedFile, size_bytes: int) -> None:
    for _ in range(0, size_bytes, BLOCK):
        staged.write(bytes(BLOCK))


def test_the_limit_counts_what_the_job_wrote_and_what_is_staged(files: JobFiles) -> None:
    (files.work_dir.path / "own").write_bytes(bytes(2 * BLOCK))
    with pytest.raises(BridgeError) as refusal, files.stage() as staged:
        fill(staged, 3 * BLOCK)
    assert (refusal.value.status, refusal.value.code) == (507, "storage_exceeded")
    assert list(files.staging.iterdir()) == []


def test_deleted_files_free_storage_at_once(files: JobFiles) -> None:
    own = files.work_dir.path / "own"
    own.write_bytes(bytes(4 * BLOCK))
    with pytest.raises(BridgeError):
        files.storage.check(BLOCK)
    own.unlink()
    files.storage.check(BLOCK)


def test_a_file_that_does_not_fit_is_refused_before_its_fetch(files: JobFiles) -> None:
    with pytest.raises(BridgeError, match="storage"):
        files.storage.check(5 * BLOCK)


def test_links_in_the_work_directory_do_not_count_their_targets(files: JobFiles, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(8 * BLOCK))
    (files.work_dir.path / "link").symlink_to(tmp_path / "large")
    (files.work_dir.path / "loop").symlink_to(files.work_dir.path)
    files.storage.check(3 * BLOCK)


def test_a_snapshot_outlives_overwriting_and_deletion(files: JobFiles) -> None:
    path = files.work_dir.path / "gradient"
    content = os.urandom(BLOCK + 17)
    path.write_bytes(content)
    fd = files.work_dir.open_file(("gradient",))
    copy = snapshot(fd, files)
    os.close(fd)
    path.write_bytes(b"the next round, into the same file")
    path.unlink()
    assert copy.read_bytes() == content


def test_a_snapshot_beyond_the_limit_is_refused_and_deleted(files: JobFiles) -> None:
    path = files.work_dir.path / "gradient"
    path.write_bytes(bytes(3 * BLOCK))
    fd = files.work_dir.open_file(("gradient",))
    with pytest.raises(BridgeError, match="storage"):
        snapshot(fd, files)
    os.close(fd)
    assert list(files.staging.iterdir()) == []
