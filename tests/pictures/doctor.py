"""The picture of docs/troubleshooting.md: `doctor` finds a gateway that does not run and a key that others may read."""

import re
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from e2e import terminal
from pictures import DIRECTORY
from support.user_machine import INIT, Machine

COMMAND: Final = "hypha-worker doctor --config worker.toml"
_AWAY: Final = "/ip4/127.0.0.1/tcp/1"
_RESOURCES: Final = {"cpu": "0.5", "memory": "0.5", "storage": "1"}
"""As every machine has."""


def draw() -> None:
    """Write the picture."""
    with TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        machine = Machine(directory, stack)
        machine.enter(INIT)
        _edit(directory / "worker.toml")
        (directory / "worker-key.pem").chmod(0o644)
        printed = machine.shown(COMMAND)
        for ours, usual in ((name, "/srv/hypha"), (str(Path(sys.executable).parent), "/opt/hypha/bin")):
            printed = printed.replace(ours, usual)
        printed = re.sub(r"(Linux \d+\.\d+)\S*", r"\1", printed)
        terminal.draw(DIRECTORY / "doctor.svg", COMMAND, printed)


def _edit(config: Path) -> None:
    text = re.sub(r"^(gateway_addresses = .*)]$", rf'\1, "{_AWAY}"]', config.read_text(), count=1, flags=re.MULTILINE)
    for name, amount in _RESOURCES.items():
        text = re.sub(rf"^{name} = .*$", f"{name} = {amount}", text, count=1, flags=re.MULTILINE)
    config.write_text(text)
