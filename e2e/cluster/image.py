"""Images of statically linked programs. That of busybox holds a pod's namespaces, and serves as a shell for tests."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any, Final

BUSYBOX: Final = "hypha.test/busybox:1"


def write_busybox_image(path: Path, busybox: Path) -> None:
    """Write an OCI archive with busybox and a link for each of its commands. Its default command sleeps."""
    commands = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    links = {f"bin/{command}": "busybox" for command in commands if command != "busybox"}
    write_image(
        path, BUSYBOX, {"bin/busybox": busybox}, links, {"Cmd": ["/bin/sleep", "infinity"], "Env": ["PATH=/bin"]}
    )


def write_image(
    path: Path, name: str, programs: dict[str, Path], links: dict[str, str], config: dict[str, Any]
) -> None:
    """Write an OCI archive of one layer.

    Args:
        path: The archive.
        name: The name under which containerd imports the image.
        programs: Paths in the image, and the statically linked programs that they hold.
        links: Paths in the image, and what they link to.
        config: The configuration of containers.
    """
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        for directory, mode in (("bin", 0o755), ("tmp", 0o1777)):
            files.addfile(_entry(directory, tarfile.DIRTYPE, mode))
        for place, source in programs.items():
            entry = _entry(place, tarfile.REGTYPE, 0o755)
            entry.size = source.stat().st_size
            with source.open("rb") as program:
                files.addfile(entry, program)
        for place, target in links.items():
            link = _entry(place, tarfile.SYMTYPE, 0o777)
            link.linkname = target
            files.addfile(link)
    blobs: dict[str, bytes] = {}

    def descriptor(media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {
            "mediaType": f"application/vnd.oci.image.{media_type}",
            "digest": f"sha256:{digest}",
            "size": len(content),
        }

    layer_descriptor = descriptor("layer.v1.tar", layer.getvalue())
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(
            "config.v1+json",
            json.dumps(
                {
                    "architecture": "amd64",
                    "os": "linux",
                    "config": config,
                    "rootfs": {"type": "layers", "diff_ids": [layer_descriptor["digest"]]},
                }
            ).encode(),
        ),
        "layers": [layer_descriptor],
    }
    image = descriptor("manifest.v1+json", json.dumps(manifest).encode())
    index = {"schemaVersion": 2, "manifests": [image | {"annotations": {"io.containerd.image.name": name}}]}
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
        _add(archive, "index.json", json.dumps(index).encode())
        for digest, content in blobs.items():
            _add(archive, f"blobs/sha256/{digest}", content)


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    return entry


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = _entry(name, tarfile.REGTYPE, 0o644)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
