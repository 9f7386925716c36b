"""`kubectl hypha release`."""

import sys
from typing import Final

import typer

from hypha_contracts.kinds import HYPHA_JOB, LEASE, WORKER
from hypha_contracts.kubernetes_errors import Conflict, Forbidden, NotFound
from hypha_contracts.operator_lease import CLUSTER_LEASE, LEASE_NAME
from hypha_contracts.text import count
from hypha_kubectl.access.api import Api, at_once
from hypha_kubectl.commands.selection import place
from hypha_kubectl.errors import PluginError, UsageError
from hypha_kubectl.views.operators import Held, held_of
from hypha_kubectl.views.releasing import Holding, consequence, holdings_of, living

_ATTEMPTS: Final = 3


def release(api: Api, namespace: str | None, name: str | None, *, yes: bool, force: bool) -> None:
    """Remove our finalizers from objects whose operator is gone. ApiError, PluginError.

    Args:
        api: the API server.
        namespace: where to look; None for all namespaces.
        name: a HyphaWorker or HyphaJob; None for all.
        yes: do not ask.
        force: do it although an operator lives.
    """
    found = _holdings(api, namespace, name)
    if not found:
        what = name or f"every object in {place(namespace)}"
        print(f"There is nothing to release: {what} is without finalizers of ours.")
        return
    leases = _leases(api, sorted({holding.namespace for holding in found}), force=force)
    _require_no_operator(api, leases, force=force)
    for holding in found:
        print(f"{holding}: {', '.join(holding.finalizers)}. {consequence(holding)}")
    _confirm(found, yes=yes)
    for holding in found:
        _remove(api, holding)
        print(f"{holding} is released.", flush=True)
    for held in leases:
        print(
            f"Lease {held.name} is left. If its operator is gone: kubectl delete lease {held.name} -n {held.namespace}"
        )


def _holdings(api: Api, namespace: str | None, name: str | None) -> list[Holding]:
    workers, jobs = at_once(lambda: api.find(WORKER, namespace), lambda: api.find(HYPHA_JOB, namespace))
    if name is not None and all(object_["metadata"]["name"] != name for object_ in (*workers, *jobs)):
        raise PluginError(
            f"no HyphaWorker or HyphaJob {name} in {place(namespace)}. Use --namespace to look elsewhere."
        )
    return holdings_of(workers, jobs, name)


def _leases(api: Api, namespaces: list[str], *, force: bool) -> list[Held]:
    """Return the Leases of operators of the cluster and of namespaces. PluginError if one of the latter is unknown."""
    found = []
    for place_ in (CLUSTER_LEASE, *((namespace, LEASE_NAME) for namespace in namespaces)):
        try:
            found.append(held_of(api.get(LEASE, *place_)))
        except NotFound:
            pass
        except Forbidden as error:  # an operator of the cluster holds the Lease of each namespace, too
            if place_ != CLUSTER_LEASE and not force:
                raise PluginError(
                    f"you may not read Lease {'/'.join(place_)}, which says whether an operator lives. Ask somebody "
                    "who may, or use --force."
                ) from error
    return [held for held in found if held]


def _require_no_operator(api: Api, leases: list[Held], *, force: bool) -> None:
    for held in living(leases, api.now()):
        lives = f"release {held.release} holds Lease {held.namespace}/{held.name} until {held.until:%H:%M:%S} UTC"
        if not force:
            raise PluginError(
                f"an operator lives: {lives}. It removes its finalizers itself once jobs have ended. If it is gone, "
                "wait until then, or use --force."
            )
        print(f"warning: {lives}. It may set the finalizers again.", file=sys.stderr)


def _confirm(found: list[Holding], *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this asks for a confirmation, and there is no terminal. Use --yes.")
    if not typer.confirm(f"Release {count(len(found), 'object')}?"):
        raise typer.Abort


def _remove(api: Api, holding: Holding) -> None:
    """Remove our finalizers, and keep those of others, which may change at the same time."""
    others, version = list(holding.others), holding.version
    for _ in range(_ATTEMPTS):
        change = {"metadata": {"resourceVersion": version, "finalizers": others or None}}
        try:
            api.merge(holding.kind, holding.namespace, holding.name, change)
        except NotFound:
            return
        except Conflict:
            try:
                metadata = api.get(holding.kind, holding.namespace, holding.name)["metadata"]
            except NotFound:
                return
            version = metadata["resourceVersion"]
            others = [name for name in metadata.get("finalizers") or [] if name not in holding.finalizers]
        else:
            return
    raise PluginError(f"{holding} changes all the time. Stop what changes it, and try again.")
