"""The root file system of the images: Python and its libraries, without shells, package managers and set-user-id."""

import os
import stat
from pathlib import Path

import pytest

from images.archive import files, read
from images.contexts import IMAGES, OUTPUT
from images.minimal import KEPT, minimise

STATUS = """\
Package: dash
Status: install ok installed
Architecture: amd64
Version: 0.5.12-2

Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 2.36-9
Description: library
 of several lines

Package: ca-certificates
Status: install ok installed
Architecture: all
Version: 20230311
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small Debian."""
    for name in ("usr/bin/dash", "usr/bin/python3.11", "usr/bin/test", "usr/lib/libc.so.6", "usr/lib/apt/methods/http"):
        program(tmp_path, name)
    program(tmp_path, "usr/bin/su").chmod(0o4755)
    program(tmp_path, "usr/lib/python3.11/trace.py", "#!/usr/bin/python3\n")
    program(tmp_path, "usr/share/debconf/frontend", "#!/usr/bin/perl\n")
    plain(tmp_path, "usr/share/ca-certificates/one.crt")
    plain(tmp_path, "usr/share/doc/dash/copyright")
    plain(tmp_path, "usr/lib/helper").chmod(0o2644)
    (tmp_path / "usr" / "sbin").mkdir()
    (tmp_path / "usr" / "local" / "bin").mkdir(parents=True)
    (tmp_path / "usr" / "bin" / "sh").symlink_to("dash")
    (tmp_path / "usr" / "bin" / "python3").symlink_to("python3.11")
    (tmp_path / "bin").symlink_to("usr/bin")
    plain(tmp_path, "var/lib/dpkg/status", STATUS)
    plain(tmp_path, "var/lib/dpkg/info/dash.list", "/.\n/bin\n/bin/dash\n/usr/share/doc/dash/copyright\n")
    plain(tmp_path, "var/lib/dpkg/info/dash.postinst", "#!/bin/sh\n")
    plain(tmp_path, "var/lib/dpkg/info/libc6:amd64.list", "/usr/lib/libc.so.6\n")
    plain(tmp_path, "var/lib/dpkg/info/ca-certificates.list", "/usr/share/ca-certificates/one.crt\n")
    return tmp_path


def plain(root: Path, name: str, text: str = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def program(root: Path, name: str, text: str = "\x7fELF") -> Path:
    path = plain(root, name, text)
    path.chmod(0o755)
    return path


def test_only_python_its_libraries_and_the_probe_can_be_run(root: Path) -> None:
    minimise(root)
    executable = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and path.stat().st_mode & 0o111 and "bin/" not in os.path.relpath(path, root / "usr")
    }
    assert executable == {"usr/lib/libc.so.6", "usr/lib/python3.11/trace.py"}
    assert {path.name for path in (root / "usr" / "bin").iterdir()} == {"python3", "python3.11", "test"}


def test_no_file_changes_the_user_or_group_that_runs_it(root: Path) -> None:
    minimise(root)
    assert not [path for path in root.rglob("*") if path.is_file() and path.stat().st_mode & 0o6000]
    assert stat.S_IMODE((root / "usr" / "lib" / "helper").stat().st_mode) == 0o644


def test_scanners_still_find_the_packages_that_are_left_and_no_others(root: Path) -> None:
    minimise(root)
    status = (root / "var" / "lib" / "dpkg" / "status").read_text()
    assert [line for line in status.splitlines() if line.startswith("Package: ")] == [
        "Package: libc6",
        "Package: ca-certificates",
    ]
    assert " of several lines\n" in status
    assert list((root / "var" / "lib" / "dpkg").iterdir()) == [root / "var" / "lib" / "dpkg" / "status"]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_a_built_image_holds_no_shell_no_package_manager_and_no_set_user_id(image) -> None:
    archive = OUTPUT / f"{image.name}.tar"
    if not archive.exists():
        pytest.skip("`make images` with --archive builds it")
    found = [file for file, _ in files(archive)]
    programs = [file.name for file in found if file.isfile() and file.mode & 0o111]
    mounted = {"etc/hostname", "etc/hosts", "etc/resolv.conf"}  # the container runtime mounts its own over them
    system = [name for name in programs if not name.startswith("opt/hypha/") and name not in mounted]
    assert not [name for name in system if not KEPT.fullmatch(Path(name).name)]
    assert not [file.name for file in found if not file.isdir() and file.mode & 0o6000]
    links = [file.name for file in found if file.issym() and "bin/" in file.name]
    shells = {"sh", "bash", "dash", "busybox", "apt", "apt-get", "dpkg", "pip", "pip3", "perl", "su", "sudo"}
    assert not shells & {Path(name).name for name in programs + links}
    (status,) = read(archive, "var/lib/dpkg/status")
    assert "Package: libc6\n" in status
    assert "Package: dash\n" not in status
