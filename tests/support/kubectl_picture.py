"""Draw `kubectl hypha status` for the workers of `support.kubectl.furnish`, on a real API server, for docs/kubectl.md.

`PYTHONPATH=tests:. .venv/bin/python -m support.kubectl_picture docs/kubectl-status.svg`
"""

import re
import sys
import tempfile
from io import StringIO
from pathlib import Path
from typing import Final

from rich.console import Console

from hypha_contracts.kinds import HYPHA_JOB, WORKER
from hypha_kubectl.access.api import open_api
from hypha_kubectl.access.kubeconfig import load_context
from hypha_kubectl.views.status_tree import render
from hypha_kubectl.views.workers import workers_of
from support.api_server import PrivateApiServer
from support.kubectl import Scene, furnish
from support.resources import install_definitions

NAMESPACE: Final = "hypha"
_COLUMNS: Final = 104
_FOREIGN_FONT: Final = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def picture() -> str:
    """Return the picture as SVG that asks nobody for anything."""
    with tempfile.TemporaryDirectory() as directory, PrivateApiServer(Path(directory) / "api-server") as server:
        install_definitions(server.api)
        server.api.kubectl("create", "namespace", NAMESPACE)
        furnish(Scene(server.api, NAMESPACE))
        with open_api(load_context({}, server.api.kubeconfig), {}) as api:
            workers = workers_of(api.find(WORKER, NAMESPACE), api.find(HYPHA_JOB, NAMESPACE), api.now())
            console = Console(record=True, width=_COLUMNS, highlight=False, force_terminal=True, file=StringIO())
            console.print(render(workers, api.now()))
    svg = console.export_svg(title="kubectl hypha status", unique_id="status")
    return _FOREIGN_FONT.sub("", svg).replace("Fira Code", "ui-monospace, Menlo, Consolas")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture())
