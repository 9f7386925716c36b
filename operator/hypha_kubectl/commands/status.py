"""`kubectl hypha status`."""

import json

from rich.console import Console

from hypha_contracts.kinds import HYPHA_JOB, WORKER
from hypha_kubectl.access.api import Api, at_once
from hypha_kubectl.commands.selection import chosen, place
from hypha_kubectl.views.shown import SCHEMA_VERSION, plain
from hypha_kubectl.views.status_tree import render
from hypha_kubectl.views.workers import workers_of


def show(api: Api, namespace: str | None, name: str | None, *, as_json: bool) -> None:
    """Print the workers of a namespace, or one of them. ApiError, PluginError."""
    workers, jobs = at_once(lambda: api.find(WORKER, namespace), lambda: api.find(HYPHA_JOB, namespace))
    views = workers_of(chosen(workers, name, namespace), jobs, api.now())
    if as_json:
        print(json.dumps({"schema": SCHEMA_VERSION, "workers": plain(views)}, indent=2, ensure_ascii=False))
    elif not views:
        print(f"There are no HyphaWorkers in {place(namespace)}. Create one (examples/hyphaworker.yaml), or use -A.")
    else:
        Console(highlight=False).print(render(views, api.now()))
