"""The content of each image: its packages of the distribution and its requirements, laid out as a build context."""

import hashlib
import re
import shutil
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from hatchling.builders.wheel import WheelBuilder

ROOT: Final = Path(__file__).parent.parent
OUTPUT: Final = ROOT / ".images"
CONTAINERFILE: Final = ROOT / "images" / "Containerfile"


@dataclass(frozen=True)
class Image:
    """One image.

    Attributes:
        name: Its name, which is also that of its target, its extra and its requirements file.
        packages: The directories of our packages in it, relative to the project's root.
        in_chart: Whether the chart's values name it.
    """

    name: str
    packages: tuple[str, ...]
    in_chart: bool = True


IMAGES: Final = (
    Image(
        "operator",
        (
            "operator/hypha_messages",
            "operator/hypha_contracts",
            "operator/hypha_resources",
            "operator/hypha_telemetry",
            "operator/hypha_operator",
        ),
    ),
    Image(
        "worker",
        (
            "operator/hypha_messages",
            "operator/hypha_contracts",
            "operator/hypha_resources",
            "operator/hypha_telemetry",
            "operator/hypha_network",
            "operator/hypha_worker",
        ),
    ),
    Image(
        "bridge",
        (
            "operator/hypha_messages",
            "operator/hypha_contracts",
            "images/executor/hypha_executor",
            "bridge_sidecar/hypha_bridge",
        ),
    ),
    Image(
        "devnet",
        (
            "operator/hypha_messages",
            "operator/hypha_contracts",
            "operator/hypha_resources",
            "operator/hypha_telemetry",
            "operator/hypha_network",
            "operator/hypha_worker",
            "operator/hypha_devnet",
            "images/executor/hypha_executor",
        ),
        in_chart=False,
    ),
    Image("parameter-server", ("images/executor/hypha_executor", "images/parameter_server/hypha_parameter_server")),
    Image("trainer", ("images/executor/hypha_executor", "images/trainer/hypha_trainer")),
)


def project_of(project: Mapping[str, Any], packages: Iterable[str]) -> dict[str, Any]:
    """Return the contents of pyproject.toml for a wheel that holds only some packages, and only their scripts."""
    part = deepcopy(dict(project))
    wheel = part["tool"]["hatch"]["build"]["targets"]["wheel"]
    unknown = set(packages) - set(wheel["packages"])
    if unknown:
        raise ValueError(
            f"pyproject.toml puts no {', '.join(sorted(unknown))} into the wheel: correct images/contexts.py"
        )
    wheel["packages"] = list(packages)
    names = {PurePosixPath(package).name for package in packages}
    scripts = part["project"]["scripts"]
    part["project"]["scripts"] = {k: v for k, v in scripts.items() if re.split(r"[.:]", v)[0] in names}
    return part


def build_wheel(packages: Iterable[str], directory: Path) -> Path:
    """Build a wheel of some packages. The same files give the same bytes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    builder = WheelBuilder(str(ROOT), config=project_of(project, packages))
    return Path(next(iter(builder.build(directory=str(directory), versions=["standard"]))))


def lay_out(image: Image, requirements: Path, directory: Path) -> str:
    """Lay out the build context of an image from scratch; return its wheel as `FILE#sha256=DIGEST`, as pip takes it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    shutil.copyfile(requirements, directory / "requirements.txt")
    for file in ("Containerfile", "minimal.py"):
        shutil.copyfile(ROOT / "images" / file, directory / file)
    (directory / "overlay").mkdir()
    (directory / "torch.txt").touch()
    wheel = build_wheel(image.packages, directory)
    return f"{wheel.name}#sha256={hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def digest(directory: Path, *settings: str) -> str:
    """Return one digest of everything that decides what is built: the files of a directory and some settings."""
    total = hashlib.sha256()
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        total.update(f"{file.relative_to(directory)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    total.update("\0".join(settings).encode())
    return total.hexdigest()
