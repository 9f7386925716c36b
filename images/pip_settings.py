"""This machine's pip settings (index, certificates, proxy) as secrets of a build, which no layer keeps."""

import os
import subprocess
import sys
from ast import literal_eval
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

CERTIFICATES: Final = "/run/ca.crt"
"""Where the steps of a build find the certificate authorities."""

_PASSED: Final = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries")


def pip_conf(listing: Iterable[str], *, certificates: bool) -> str:
    """Return a pip.conf with those of the settings, lines of `pip config list`, that are valid inside a build."""
    settings = {}
    for line in listing:
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = literal_eval(value)  # later lines override earlier ones, as in pip
    lines = [f"{key} = {settings[key]}".replace("\n", "\n  ") for key in _PASSED if key in settings]
    return "\n".join(["[global]", *lines, *([f"cert = {CERTIFICATES}"] if certificates else []), ""])


def certificates(environment: Mapping[str, str]) -> Path | None:
    """Return the file of certificate authorities that the environment names, or None."""
    named = environment.get("PIP_CERT") or environment.get("SSL_CERT_FILE")
    return Path(named) if named and Path(named).is_file() else None


def secrets(directory: Path) -> dict[str, Path]:
    """Write the settings to a private directory; return the secrets for a build by their ids."""
    bundle = certificates(os.environ)
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    file = directory / "pip.conf"
    file.write_text(pip_conf(listing.splitlines(), certificates=bundle is not None))
    return {"pip": file} | ({"ca": bundle} if bundle else {})
