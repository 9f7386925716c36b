"""Remove from a root file system all programs but Python's, such as shells and package managers.

The Containerfile runs this file in a build stage, so it needs nothing but the standard library.
"""

import re
import shutil
import stat
from pathlib import Path
from typing import Final

KEPT: Final = re.compile(r"python3?(\.\d+)?|test|ldconfig|.+\.so[.\d]*|.+\.py")
"""The names of executable files that stay: Python, `test` for the bridge's probe, ldconfig for torch, and libraries."""
_REMOVED: Final = (
    *("etc/*shadow*", "usr/lib/apt", "usr/lib/dpkg", "usr/lib/*/perl*", "usr/share/perl*", "usr/share/doc"),
    *("usr/share/bash-completion", "usr/share/bug", "usr/share/lintian", "usr/share/python-wheels"),
    *("usr/lib/python3*/ensurepip", "usr/local/lib/python3*/ensurepip", "usr/local/lib/python3*/site-packages/pip*"),
    *("etc/apt", "usr/lib/*/libapt-*", "var/cache/*", "var/lib/apt", "var/log/*"),
)
_MOUNTED: Final = ("proc", "sys", "dev", "run")
_USED_DATA: Final = re.compile(r"/usr/share/(ca-certificates|zoneinfo)/")


def minimise(root: Path) -> None:
    """Remove the programs, and from dpkg's status the packages of which nothing is left that a program uses."""
    for path in [path for pattern in _REMOVED for path in root.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for top in [path for path in root.iterdir() if path.name not in _MOUNTED and not path.is_symlink()]:
        for path in [path for path in top.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]:
            mode = path.stat().st_mode
            if mode & 0o111 and not KEPT.fullmatch(path.name):
                path.unlink()
            else:
                path.chmod(stat.S_IMODE(mode) & 0o777)  # without set-user-id and set-group-id
    for link in [path for name in ("bin", "sbin", "local/bin") for path in (root / "usr" / name).iterdir()]:
        if not link.exists():
            link.unlink()
    _rewrite_status(root)


def _rewrite_status(root: Path) -> None:
    dpkg = root / "var" / "lib" / "dpkg"
    if not dpkg.exists():
        return
    packages = (dpkg / "status").read_text().strip().split("\n\n")
    kept = [package for package in packages if any(_is_used(root, path) for path in _paths(dpkg / "info", package))]
    (dpkg / "status").write_text("".join(f"{package}\n\n" for package in kept))
    for path in [path for path in dpkg.iterdir() if path.name != "status"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _paths(info: Path, package: str) -> list[str]:
    fields = dict(re.findall(r"^(Package|Architecture): (.*)$", package, flags=re.MULTILINE))
    lists = (info / f"{fields['Package']}.list", info / f"{fields['Package']}:{fields['Architecture']}.list")
    return [line for file in lists if file.exists() for line in file.read_text().splitlines()]


def _is_used(root: Path, path: str) -> bool:
    return bool(KEPT.fullmatch(Path(path).name) or _USED_DATA.match(path)) and Path(f"{root}{path}").is_file()


if __name__ == "__main__":
    minimise(Path("/"))
    Path(__file__).unlink()
