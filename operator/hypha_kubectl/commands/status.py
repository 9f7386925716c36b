"""`kubectl hypha status`."""

import json
from typing import Final

from rich.console import Console

from hypha_contracts.kinds import HYPHA_JOB, WORKER, Manifest
from hypha_kubectl.access.api import Api, at_once
from hypha_kubectl.errors import PluginError
from hypha_kubectl.views.shown import plain
from hypha_kubectl.views.status_tree import render
from hypha_kubectl.views.workers import workers_of

SCHEMA_VERSION: Final = 1


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


def chosen(workers: list[Manifest], name: str | None, namespace: str | None) -> list[Manifest]:
    """Return the workers of a name, or all. PluginError if there is none of that name."""
    found = [worker for worker in workers if name in (None, worker["metadata"]["name"])]
    if name is not None and not found:
        others = ", ".join(sorted({worker["metadata"]["name"] for worker in workers}))
        there = f"There are: {others}." if others else "There are none."
        raise PluginError(
            f"no HyphaWorker {name} in {place(namespace)}. {there} Use --namespace or -A to look elsewhere."
        )
    return found


def place(namespace: str | None) -> str:
    """Return where a command looked, for people."""
    return f"namespace {namespace}" if namespace else "the cluster"
