"""The program that builds the images: podman, docker or buildah, whichever there is."""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class BuildError(Exception):
    """An image could not be built; the text says which and what to do."""


@dataclass(frozen=True)
class ContainerTool:
    """A program that builds, keeps and saves images.

    Attributes:
        name: Its command: `podman`, `docker` or `buildah`.
    """

    name: str

    def build(
        self,
        context: Path,
        reference: str,
        *,
        target: str | None = None,
        epoch_s: int,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        secrets: Mapping[str, Path],
    ) -> None:
        """Build a directory with a Containerfile; `secrets` are files that steps may ask for and no layer keeps."""
        command = [self.name, "build", "--file", str(context / "Containerfile"), "--tag", reference]
        if self.name != "docker":  # which has layers and the time of its environment by itself
            command += ["--layers", "--force-rm", "--timestamp", str(epoch_s)]
        command += ["--target", target] if target else []
        command += ["--network", "host"] if self.name == "buildah" else []
        command += [f"--build-arg={key}={value}" for key, value in arguments.items()]
        command += [f"--label={key}={value}" for key, value in labels.items()]
        command += [f"--secret=id={key},src={file}" for key, file in secrets.items()]
        # Of buildah's ways to isolate a step, chroot works without any rights that a container may lack.
        environment = {
            "BUILDAH_ISOLATION": "chroot",
            **os.environ,
            "SOURCE_DATE_EPOCH": str(epoch_s),
            "DOCKER_BUILDKIT": "1",
        }
        self._run([*command, str(context)], environment)

    def image_id(self, reference: str) -> str:
        """Return the id of an image that this machine has, else nothing."""
        done = subprocess.run([self.name, "images", "--quiet", "--no-trunc", reference], capture_output=True, text=True)  # noqa: PLW1510
        return done.stdout.strip()

    def save(self, reference: str, archive: Path) -> None:
        """Write an image to a file that containerd, docker and podman load; the file appears whole or not at all."""
        part = archive.with_suffix(".part")
        part.unlink(missing_ok=True)
        if self.name == "buildah":
            self._run(["buildah", "push", "--quiet", reference, f"docker-archive:{part}:{reference}"])
        else:
            self._run([self.name, "save", "--output", str(part), reference])
        part.replace(archive)

    def _run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        try:
            subprocess.run(command, check=True, env=environment)
        except subprocess.CalledProcessError as error:
            raise BuildError(
                f"{' '.join(command[:2])} ended with status {error.returncode}; its output says why."
                " Where the base image cannot be pulled: `make base-image`, then BASE=localhost/hypha/base:debian"
            ) from None


def find_tool(wanted: str | None = None) -> ContainerTool:
    """Return the wanted program, else the first that works here; BuildError if there is none."""
    for name in (wanted,) if wanted else ("podman", "docker", "buildah"):
        if shutil.which(name) and _works(name):
            return ContainerTool(name)
    none = wanted or "none of podman, docker and buildah"
    raise BuildError(f"{none} works here: install one (Debian: apt-get install buildah)")


def _works(name: str) -> bool:
    """Whether a program can build: docker may be there without its daemon."""
    return subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0
