"""The program that builds the images: podman, docker or buildah."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class BuildError(Exception):
    """An image could not be built; the text says why and what to do."""


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
        platform: str | None = None,
        epoch_s: int,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        secrets: Mapping[str, Path],
    ) -> None:
        """Build a target (default: the last) of the Containerfile in a directory, which is also the build context.

        The steps run programs of the platform (default: this machine's), so another one needs emulation.

        `secrets` are files, by id, that build steps may mount and that no layer keeps.
        """
        command = [self.name, "build", "--file", str(context / "Containerfile"), "--tag", reference]
        if self.name != "docker":  # docker caches layers by default and takes the time from the environment
            command += ["--layers", "--force-rm", "--timestamp", str(epoch_s)]
        command += ["--target", target] if target else []
        command += ["--platform", platform] if platform else []
        command += ["--network", "host"] if self.name == "buildah" else []
        command += [f"--build-arg={key}={value}" for key, value in arguments.items()]
        command += [f"--label={key}={value}" for key, value in labels.items()]
        command += [f"--secret=id={key},src={file}" for key, file in secrets.items()]
        # chroot is the isolation of buildah that also works inside a container without extra rights.
        environment = {
            "BUILDAH_ISOLATION": "chroot",
            **os.environ,
            "SOURCE_DATE_EPOCH": str(epoch_s),
            "DOCKER_BUILDKIT": "1",
        }
        self._run([*command, str(context)], environment)

    def image_id(self, reference: str) -> str:
        """Return the id of a local image, or an empty text."""
        done = subprocess.run([self.name, "images", "--quiet", "--no-trunc", reference], capture_output=True, text=True)  # noqa: PLW1510
        return done.stdout.strip()

    def push(self, reference: str) -> str:
        """Push an image to its registry; return its digest there, as `sha256:...`."""
        with tempfile.TemporaryDirectory() as directory:
            if self.name == "docker":
                self._run(["docker", "push", "--quiet", reference])
                return self._repository_digest(reference)
            file = Path(directory, "digest")
            self._run([self.name, "push", "--quiet", "--digestfile", str(file), reference])
            return file.read_text().strip()

    def _repository_digest(self, reference: str) -> str:
        """Return the digest under which docker has pushed an image to the registry of a reference."""
        command = ["docker", "image", "inspect", "--format", "{{json .RepoDigests}}", reference]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        digests: list[str] = json.loads(printed)
        repository = reference.rpartition(":")[0]
        return next(entry.partition("@")[2] for entry in digests if entry.startswith(f"{repository}@"))

    def save(self, reference: str, archive: Path) -> None:
        """Write an image to a file that containerd, docker and podman load. It appears only when it is complete."""
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
                " If it cannot pull the base image, run `make base-image` and set BASE=localhost/hypha/base:debian."
                " If it cannot run programs of another PLATFORM, build on such a machine, or install the emulation"
                " (Debian: apt-get install qemu-user-static)"
            ) from None


def find_tool(wanted: str | None = None) -> ContainerTool:
    """Return the wanted program, or by default the first one that works on this machine.

    Raises:
        BuildError: None works.
    """
    for name in (wanted,) if wanted else ("podman", "docker", "buildah"):
        if shutil.which(name) and _works(name):
            return ContainerTool(name)
    raise BuildError(
        f"{wanted or 'podman, docker and buildah'}: not found or not working."
        " Install one of podman, docker and buildah (Debian: apt-get install buildah)"
    )


def _works(name: str) -> bool:
    """Return whether a program can build; docker may be installed without its daemon."""
    return subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0
