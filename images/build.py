"""`python -m images.build [IMAGE ...]`: build the images that have changed.

Environment: REGISTRY and TAG (the images' names), BASE (their base image), PLATFORM (such as linux/arm64), TORCH (the
trainer's build of PyTorch) and TORCH_INDEX (its package index), CONTAINER_TOOL, SOURCE_DATE_EPOCH (the time of every
file in the images, in seconds).
"""

import argparse
import fcntl
import os
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from platform import machine
from typing import Final

from images.base import build_base, install_programs
from images.contexts import IMAGES, OUTPUT, ROOT, Image, digest, lay_out
from images.cpu_torch import without_cuda
from images.pip_settings import secrets
from images.sbom import write_image_bill
from images.tool import BuildError, ContainerTool, find_tool
from images.torch_variants import check_variant, take_from_index

PLATFORMS: Final = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
"""The platforms of images, by the names that machines have for themselves."""
_EPOCH_S: Final = "315532800"  # 1980, the earliest time that a wheel can hold


@dataclass(frozen=True)
class Settings:
    """The settings in the environment."""

    registry: str
    tag: str
    base: str | None
    platform: str | None
    torch: str
    torch_index: str | None
    epoch_s: int

    @property
    def base_reference(self) -> str:
        """The name of the base image that `make base-image` builds."""
        return f"{self.registry}/base:debian"

    def reference(self, name: str) -> str:
        """Return the full name of an image."""
        return f"{self.registry}/{name}:{self.tag}"


def settings_of(environment: dict[str, str]) -> Settings:
    """Parse the environment. An empty variable counts as absent, because make passes unset variables as empty ones.

    Raises:
        BuildError: A variable has no usable value.
    """
    values = {key: value for key, value in environment.items() if value}
    torch = values.get("TORCH", "cuda")
    check_variant(torch, values.get("TORCH_INDEX"))
    platform = values.get("PLATFORM")
    check_platform(platform, torch)
    epoch = values.get("SOURCE_DATE_EPOCH", _EPOCH_S)
    if not epoch.isdecimal():
        raise BuildError(f"SOURCE_DATE_EPOCH={epoch}: must be a whole number of seconds")
    registry, tag = values.get("REGISTRY", "localhost/hypha"), values.get("TAG", _project()["version"])
    return Settings(registry, tag, values.get("BASE"), platform, torch, values.get("TORCH_INDEX"), int(epoch))


def check_platform(platform: str | None, torch: str) -> None:
    """Check that images for a platform can be built; None is the platform of this machine.

    Raises:
        BuildError: They cannot.
    """
    if platform is None:
        return
    if platform not in PLATFORMS.values():
        raise BuildError(f"PLATFORM={platform}: must be one of {', '.join(PLATFORMS.values())}")
    if torch == "cpu" and platform != PLATFORMS.get(machine()):
        raise BuildError(
            f"TORCH=cpu with PLATFORM={platform}: the libraries that stand in for CUDA's are compiled for this "
            "machine; build on a machine of that platform, or without TORCH=cpu"
        )


def _project() -> dict[str, str]:
    project: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def build(image: Image, settings: Settings, tool: ContainerTool, *, archive: bool) -> str:
    """Build an image if anything in it has changed; return `built` or `unchanged`."""
    context = OUTPUT / "context" / image.name
    wheel = lay_out(image, ROOT / "requirements" / f"{image.name}.txt", context)
    arguments = {"WHEEL": wheel} | ({"BASE": settings.base} if settings.base else {})
    labels = {"org.opencontainers.image.title": f"hypha-worker {image.name}", **_labels()}
    if image.name == "trainer":
        labels["space.hypha.torch"] = settings.torch
        if settings.torch == "cpu":
            without_cuda(context)
        elif settings.torch_index:
            take_from_index(context)
            arguments["TORCH_INDEX"] = settings.torch_index
    reference = settings.reference(image.name)
    base = (settings.base, tool.image_id(settings.base)) if settings.base else ()
    inputs = digest(
        context, tool.name, reference, settings.platform or "", str(settings.epoch_s), *base, *arguments.values()
    )
    stamp, saved = OUTPUT / f"{image.name}.digest", OUTPUT / f"{image.name}.tar"
    changed = not stamp.exists() or stamp.read_text() != inputs or not tool.image_id(reference)
    if changed:
        stamp.unlink(missing_ok=True)
        saved.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as private:
            tool.build(
                *(context, reference),
                target=image.name,
                platform=settings.platform,
                epoch_s=settings.epoch_s,
                arguments=arguments,
                labels=labels,
                secrets=secrets(Path(private)),
            )
        stamp.write_text(inputs)
    if archive and not saved.exists():
        tool.save(reference, saved)
    return "built" if changed else "unchanged"


def _labels() -> dict[str, str]:
    project = _project()
    names = {"version": "version", "description": "description", "licenses": "license"}
    return {f"org.opencontainers.image.{label}": project[key] for label, key in names.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the requested images; return the exit code, 1 for a failure."""
    names = [image.name for image in IMAGES]
    parser = argparse.ArgumentParser(prog="python -m images.build", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help=f"{', '.join(names)} (default: all of these), base")
    parser.add_argument(
        "--archive",
        action=argparse.BooleanOptionalAction,
        help="save each as .images/IMAGE.tar (default: only for buildah, because no other program sees its images)",
    )
    options = parser.parse_args(arguments)
    wanted = options.images or names
    if unknown := set(wanted) - {*names, "base"}:
        parser.error(f"there is no image {', '.join(sorted(unknown))}: choose from {', '.join(names)} and base")
    try:
        if "base" in wanted:
            install_programs()
        tool, settings = find_tool(os.environ.get("CONTAINER_TOOL")), settings_of(dict(os.environ))
        archive = tool.name == "buildah" if options.archive is None else options.archive
        OUTPUT.mkdir(exist_ok=True)
        with (OUTPUT / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # builds share the contexts; the lock ends with its process
            if "base" in wanted:
                build_base(settings.base_reference, tool, OUTPUT / "context" / "base", epoch_s=settings.epoch_s)
            for image in (image for image in IMAGES if image.name in wanted):
                started = time.monotonic()
                done = build(image, settings, tool, archive=archive)
                write_image_bill(image.name)
                print(f"{settings.reference(image.name)}: {done} in {time.monotonic() - started:.0f} s", flush=True)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
