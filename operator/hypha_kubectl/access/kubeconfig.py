"""Read kubeconfig files as kubectl does: several files are merged, and a context names a cluster and a user.

https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/
"""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from hypha_kubectl.errors import UsageError

_DEFAULT: Final = "~/.kube/config"
_PATHS: Final = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
"""Keys whose values are paths, relative to the directory of their file."""


@dataclass(frozen=True)
class Context:
    """What one context of the kubeconfig names. `cluster` and `user` have the keys of the file."""

    name: str
    namespace: str
    cluster: Mapping[str, Any]
    user: Mapping[str, Any]

    @property
    def server(self) -> str:
        """The address of the API server."""
        return str(self.cluster["server"]).rstrip("/")

    def pem(self, of: Mapping[str, Any], key: str) -> str | None:
        """Return the PEM text of a certificate or key, which the kubeconfig holds or names a file of. UsageError.

        The text is ASCII. Other bytes, which comments may have, are escaped.
        """
        where = f"kubeconfig, context {self.name}, {key}"
        try:
            if data := of.get(f"{key}-data"):
                return base64.b64decode(data, validate=True).decode("ascii", "backslashreplace")
            return Path(of[key]).read_text(encoding="ascii", errors="backslashreplace") if of.get(key) else None
        except OSError as error:
            raise UsageError(f"{where}: {of[key]}: {error.strerror}. Log in to the cluster again.") from error
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where} holds no certificate or key. Log in to the cluster again.") from error


@dataclass
class _Merged:
    """The entries of all files by name. The first file that has a name wins."""

    current: str = ""
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    contexts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        document = _read(path)
        self.current = self.current or str(document.get("current-context") or "")
        for entries, key in ((self.clusters, "cluster"), (self.users, "user"), (self.contexts, "context")):
            for name, entry in _entries(document, key, path).items():
                entries.setdefault(name, entry)


def load_context(environ: Mapping[str, str], kubeconfig: Path | None = None, name: str | None = None) -> Context:
    """Return a context, by default the current one.

    Args:
        environ: `KUBECONFIG` may name several files.
        kubeconfig: the only file to read.
        name: the context.

    Raises:
        UsageError: there is no kubeconfig or no such context, or a file cannot be used.
    """
    listed = str(kubeconfig) if kubeconfig else environ.get("KUBECONFIG") or _DEFAULT
    paths = [Path(path).expanduser() for path in listed.split(os.pathsep) if path]
    found = [path for path in paths if path.exists()]
    if not found:
        raise UsageError(f"no kubeconfig: {listed}: no such file. Set KUBECONFIG, or use --kubeconfig FILE.")
    merged = _Merged()
    for path in found:
        merged.add(path)
    chosen = name or merged.current
    if not chosen:
        raise UsageError(
            f"{listed}: no context is selected. Use --context NAME, or run `kubectl config use-context NAME`."
            f"{_there_are(merged.contexts)}"
        )
    if chosen not in merged.contexts:
        raise UsageError(f"{listed}: there is no context {chosen}.{_there_are(merged.contexts)} Use --context NAME.")
    context = merged.contexts[chosen]
    cluster = merged.clusters.get(str(context.get("cluster")), {})
    if not str(cluster.get("server") or "").startswith(("https://", "http://")):
        raise UsageError(f"{listed}: context {chosen} names no cluster with the address of a server. Correct it.")
    user = merged.users.get(str(context.get("user")), {})
    return Context(chosen, str(context.get("namespace") or "default"), cluster, user)


def _there_are(contexts: Mapping[str, Any]) -> str:
    return f" There are: {', '.join(contexts)}." if contexts else " There are no contexts."


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}. Make it readable, or set KUBECONFIG to another file.") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise UsageError(f"{path} is not YAML. Correct it, or set KUBECONFIG to another file.") from error
    if not isinstance(document or {}, dict):
        raise UsageError(f"{path} is no kubeconfig. Correct it, or set KUBECONFIG to another file.")
    return document or {}


def _entries(document: Mapping[str, Any], key: str, path: Path) -> dict[str, dict[str, Any]]:
    """Return the named entries of a list such as `clusters`, with absolute paths."""
    entries: dict[str, dict[str, Any]] = {}
    for item in document.get(f"{key}s") or []:
        entry = item.get(key) if isinstance(item, dict) else None
        if not isinstance(entry, dict) or "name" not in item:
            raise UsageError(f"{path}: {key}s is no list of items with a name and a {key}. Correct it.")
        absolute: dict[str, Any] = {name: str(path.parent / entry[name]) for name in _PATHS if entry.get(name)}
        program = entry.get("exec")
        if isinstance(program, dict) and os.sep in str(program.get("command")):
            absolute["exec"] = program | {"command": str(path.parent / program["command"])}
        entries.setdefault(str(item["name"]), entry | absolute)
    return entries
