"""The bridge reads and writes only inside the work directory, for every path and while the job changes directories."""

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_bridge.errors import BridgeError
from hypha_bridge.paths import WorkDir, parse, parse_file

names = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "secret").write_text("secret")
    return directory


@pytest.fixture
def work_dir(tmp_path: Path) -> Iterator[WorkDir]:
    (tmp_path / "work").mkdir()
    work_dir = WorkDir(tmp_path / "work")
    yield work_dir
    work_dir.close()


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    path = tmp_path / "staged"
    path.write_text("fetched")
    return path


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "//x", "..", "../x", "a/../../x", "a/..", "a\0b", "a\nb", "x" * 256, "a/" * 2000 + "b", "\ud800"],
)
def test_a_path_that_leads_out_or_is_odd_is_refused(path: str) -> None:
    with pytest.raises(BridgeError) as refusal:
        parse(path)
    assert refusal.value.status == 400


@pytest.mark.parametrize("path", ["", ".", "./", "a/", "a/."])
def test_a_file_needs_a_name(path: str) -> None:
    with pytest.raises(BridgeError):
        parse_file(path)


@given(st.lists(names, min_size=1, max_size=5), st.lists(st.sampled_from(["", "."]), max_size=3))
def test_a_relative_path_is_its_names_however_it_is_written(parts: list[str], noise: list[str]) -> None:
    written = "/".join([".", *parts[:1], *noise, *parts[1:]])
    assert parse(written) == tuple(parts)


@given(st.text(max_size=60))
def test_an_accepted_path_stays_inside(text: str) -> None:
    try:
        accepted = parse(text)
    except BridgeError:
        return
    joined = os.path.normpath("/".join(("/work", *accepted)))
    assert joined == "/work" or joined.startswith("/work/")


def test_a_file_is_placed_with_its_directories(work_dir: WorkDir, staged: Path) -> None:
    work_dir.place(staged, ("models", "deep", "weights"))
    assert (work_dir.path / "models/deep/weights").read_text() == "fetched"
    assert not staged.exists()
    assert (work_dir.path / "models").stat().st_mode & 0o777 == 0o700


def test_a_file_is_placed_over_an_older_one(work_dir: WorkDir, staged: Path) -> None:
    (work_dir.path / "x").write_text("old")
    work_dir.place(staged, ("x",))
    assert (work_dir.path / "x").read_text() == "fetched"


def test_a_link_in_the_way_is_replaced_not_followed(work_dir: WorkDir, staged: Path, outside: Path) -> None:
    (work_dir.path / "x").symlink_to(outside / "secret")
    work_dir.place(staged, ("x",))
    assert (outside / "secret").read_text() == "secret"
    assert (work_dir.path / "x").read_text() == "fetched"
    assert not (work_dir.path / "x").is_symlink()


@pytest.mark.parametrize("link", ["models", "models/inner"])
def test_a_linked_directory_is_refused(work_dir: WorkDir, staged: Path, outside: Path, link: str) -> None:
    (work_dir.path / link).parent.mkdir(exist_ok=True)
    (work_dir.path / link).symlink_to(outside)
    with pytest.raises(BridgeError, match="symbolic link"):
        work_dir.place(staged, (*link.split("/"), "secret"))
    with pytest.raises(BridgeError, match="symbolic link"):
        work_dir.open_file((*link.split("/"), "secret"))
    with pytest.raises(BridgeError, match="symbolic link"):
        work_dir.make_directory((*link.split("/"), "new"))
    assert [path.name for path in outside.iterdir()] == ["secret"]


def test_a_linked_file_is_not_read(work_dir: WorkDir, outside: Path) -> None:
    (work_dir.path / "x").symlink_to(outside / "secret")
    with pytest.raises(BridgeError, match="symbolic link") as refusal:
        work_dir.open_file(("x",))
    assert refusal.value.status == 400


def test_only_regular_files_are_read(work_dir: WorkDir) -> None:
    (work_dir.path / "directory").mkdir()
    os.mkfifo(work_dir.path / "pipe")
    for name in ("directory", "pipe"):
        with pytest.raises(BridgeError, match="regular file"):
            work_dir.open_file((name,))


def test_a_missing_file_is_not_found(work_dir: WorkDir) -> None:
    with pytest.raises(BridgeError) as refusal:
        work_dir.open_file(("nothing", "here"))
    assert refusal.value.status == 404


def test_a_directory_where_a_file_should_go_is_refused(work_dir: WorkDir, staged: Path) -> None:
    (work_dir.path / "x").mkdir()
    with pytest.raises(BridgeError) as refusal:
        work_dir.place(staged, ("x",))
    assert refusal.value.status == 400
    assert staged.exists()


def test_a_job_that_swaps_directories_for_links_reaches_no_file_outside(
    work_dir: WorkDir, tmp_path: Path, outside: Path
) -> None:
    """A thread swaps a directory for a link and back while the bridge places and reads files."""
    inside = work_dir.path / "d"
    spare = work_dir.path / "spare"
    inside.mkdir()
    (inside / "secret").write_text("of the job")
    stop = threading.Event()

    def swap() -> None:
        steps = (
            lambda: inside.rename(spare),
            lambda: inside.symlink_to(outside),
            inside.unlink,
            lambda: shutil.rmtree(inside),  # where the bridge was quicker and made the directory anew
            lambda: spare.rename(inside),
        )
        while not stop.is_set():
            for step in steps:
                with contextlib.suppress(OSError):
                    step()

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes = set()
    try:
        for number in range(1500):
            source = tmp_path / "source"
            source.write_text("fetched")
            try:
                work_dir.place(source, ("d", f"new-{number % 7}"))
                outcomes.add("placed")
            except BridgeError as error:
                outcomes.add(error.code)
            try:
                fd = work_dir.open_file(("d", "secret"))
            except BridgeError as error:
                outcomes.add(error.code)
            else:
                assert os.read(fd, 100) == b"of the job"
                os.close(fd)
    finally:
        stop.set()
        swapper.join()
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert "placed" in outcomes
    assert len(outcomes) > 1, "the race never happened; the test shows nothing"
