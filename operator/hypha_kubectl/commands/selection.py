"""Find the objects that a command line names."""

from hypha_contracts.kinds import Manifest
from hypha_kubectl.errors import PluginError


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
