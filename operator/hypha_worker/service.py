"""The systemd service of a worker."""

import pwd
import sysconfig
from importlib.resources import files
from pathlib import Path
from typing import Final

from hypha_worker.errors import NodeError

STATE_DIR: Final = Path("/var/lib/hypha")
"""The work directory of a service. systemd makes it, for the service's user alone."""


def find_user(name: str) -> pwd.struct_passwd:
    """Return a user of this machine; NodeError if there is none of this name."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise NodeError(
            f"there is no user {name}. Make one with `useradd --system --user-group --no-create-home {name}`."
        ) from None


def render_unit(config: Path, user: str, work_dir: Path) -> str:
    """Return the text of the unit. The paths are absolute."""
    program = Path(sysconfig.get_path("scripts")) / "hypha-worker"
    state = "StateDirectory=hypha\nStateDirectoryMode=0700"
    return (files("hypha_worker") / "hypha-worker.service").read_text().format(
        user=user,
        command=f"{_quoted(program)} run --config {_quoted(config)}".replace("$", "$$"),
        directories=state if work_dir == STATE_DIR else f"ReadWritePaths={_quoted(work_dir)}",
        protect_home="read-only" if program.is_relative_to("/home") or program.is_relative_to("/root") else "yes",
    )  # fmt: skip


def next_steps(config: Path, user: str, unit: Path, name: str) -> str:
    """Return what the owner of the machine does next, as commands for root."""
    directory = config.absolute().parent
    public = " ".join(f"{name}-{kind}.pem" for kind in ("cert", "trust"))
    return f"""\
Set its gateways and resources. Then, as root, install its certificates, and start it:
  install --mode=0644 {public} {directory}
  install --mode=0600 --owner={user} {name}-key.pem {directory}
  systemctl daemon-reload
  systemctl enable --now {unit.stem}"""


def _quoted(path: Path) -> str:
    """Quote a path for systemd, which expands % also in quotes."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'
