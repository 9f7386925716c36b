"""The certificates of a network that runs in a cluster, in Secrets of its namespace.

The Secrets exist before, so whoever fills them needs no right to create any. What a Secret holds already is kept.
"""

import base64
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from hypha_devnet import certs
from hypha_worker.runtimes.kubernetes.api import KubernetesApi

AUTHORITIES: Final = "devnet-authorities"
"""The Secret with the authorities' certificates and keys, for the certificates of further nodes."""
_AUTHORITY_FILES: Final = tuple(
    f"{authority}-{kind}.pem" for authority in ("root", "organisation") for kind in ("cert", "key")
)
_KINDS: Final = {"tls.crt": "cert", "tls.key": "key", "ca.crt": "trust"}


def identity_secret(node: str) -> str:
    """Return the name of the Secret with a node's certificate, key and authorities."""
    return f"{node}-identity"


async def fill_secrets(api: KubernetesApi, namespace: str, nodes: Sequence[str]) -> list[str]:
    """Make the certificates that are missing; return the names of the Secrets that changed. ApiError, ValueError."""
    files = {AUTHORITIES: {name: name for name in _AUTHORITY_FILES}} | {
        identity_secret(node): {key: f"{node}-{kind}.pem" for key, kind in _KINDS.items()} for node in nodes
    }
    held = {secret: await _read(api, namespace, secret) for secret in files}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for secret, names in files.items():
            for key, file in names.items():
                if key in held[secret]:
                    certs.write_private(directory / file, held[secret][key])
        certs.make(directory, "devnet", nodes)
        made = {
            secret: {key: (directory / file).read_bytes() for key, file in names.items()}
            for secret, names in files.items()
        }
    # The authorities come first, so that no node has a certificate of an authority that is lost.
    changed = [secret for secret in files if held[secret] != made[secret]]
    for secret in changed:
        data = {key: base64.b64encode(content).decode() for key, content in made[secret].items()}
        await api.merge(_path(namespace, secret), {"data": data})
    return changed


async def _read(api: KubernetesApi, namespace: str, secret: str) -> Mapping[str, bytes]:
    found = await api.get(_path(namespace, secret))
    return {key: base64.b64decode(content) for key, content in (found.get("data") or {}).items()}


def _path(namespace: str, secret: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets/{secret}"
