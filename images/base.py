"""Build a base image from Debian's packages, for machines that reach no image registry."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from images.tool import BuildError, ContainerTool

_PROGRAMS: Final = {"debootstrap": "debootstrap", "buildah": "buildah", "cc": "gcc"}
"""The programs that builds without an image registry need, and their Debian packages. TORCH=cpu needs the compiler."""

_PACKAGES: Final = "python3,python3-venv,ca-certificates"
_EXCLUDED: Final = (
    "./dev/*",
    "./var/cache/*",
    "./var/lib/apt/lists/*",
    "./var/log/*",
    "./etc/hostname",
    "./etc/machine-id",
    "./etc/resolv.conf",
    "./usr/share/doc/*",
    "./usr/share/info/*",
    "./usr/share/locale/*",
    "./usr/share/man/*",
)
_CONTAINERFILE: Final = 'FROM scratch\nADD rootfs.tar /\nCMD ["python3"]\n'


def install_programs() -> None:
    """Install those of the programs that the machine lacks.

    Raises:
        BuildError: They cannot be installed.
    """
    install(package for program, package in _PROGRAMS.items() if not shutil.which(program))


def install(packages: Iterable[str]) -> None:
    """Install packages of the distribution, if there are any.

    Raises:
        BuildError: They cannot be installed.
    """
    missing = list(packages)
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BuildError(f"{' '.join(missing)}: not found. Install them, or run this as root on Debian")
    print(f"installing {' '.join(missing)}", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", *command], check=False, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"apt-get could not install {' '.join(missing)}: {done.stderr or done.stdout}")


def build_base(reference: str, tool: ContainerTool, context: Path, *, epoch_s: int) -> None:
    """Build an image of minimal Debian with Python, of this machine's release, from this machine's mirror."""
    if tool.image_id(reference):
        print(f"{reference}: already exists; remove it to build it again")
        return
    if os.geteuid() != 0:
        raise BuildError("debootstrap, which makes the base image, needs root: run this as root")
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as directory:
        command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _release(), directory, _mirror()]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise BuildError(f"debootstrap ended with status {done.returncode}:\n{done.stdout[-2000:]}")
        excluded = [f"--exclude={pattern}" for pattern in _EXCLUDED]
        archive = ["tar", "--sort=name", f"--mtime=@{epoch_s}", "--numeric-owner", *excluded]
        subprocess.run([*archive, "-C", directory, "-cf", context / "rootfs.tar", "."], check=True)
    (context / "Containerfile").write_text(_CONTAINERFILE)
    tool.build(context, reference, epoch_s=epoch_s, arguments={}, labels={}, secrets={})
    shutil.rmtree(context)


def _release() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    if values.get("ID") != "debian":
        raise BuildError("the base image can only be made on Debian: set BASE to an image with Python 3.11 or newer")
    return values["VERSION_CODENAME"]


def _mirror() -> str:
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {_release()}"]
    mirrors = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split()
    if not mirrors:
        raise BuildError("apt lists no mirror: run `apt-get update`")
    return mirrors[0]
