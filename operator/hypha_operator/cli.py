"""The command line `hypha-operator`."""

import asyncio
import gc
import os
from typing import Annotated, NoReturn

import typer

from hypha_contracts import command_line, logs
from hypha_operator.machinery.cluster import NoClusterError
from hypha_operator.machinery.health import PortTakenError
from hypha_operator.run import run, run_uninstall
from hypha_operator.settings import Settings, SettingsError
from hypha_operator.workers.uninstall import UninstallError

app = command_line.new_app("hypha-operator")


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, show_version: command_line.VersionOption = False) -> None:  # noqa: ARG001
    """Run Hypha workers and their jobs on Kubernetes."""
    command_line.require_command(context)


_Namespaces = Annotated[
    list[str] | None, typer.Option("--namespace", metavar="NAME", help="Serve this namespace. Repeatable.")
]
_AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", help="Serve all namespaces.")]
_Release = Annotated[
    str,
    typer.Option(metavar="NAMESPACE/NAME", help="The release that this operator belongs to."),
]
_Level = Annotated[logs.LogLevel, typer.Option(envvar="HYPHA_LOG_LEVEL", help="Lowest level to log.")]
_Format = Annotated[logs.LogFormat, typer.Option(envvar="HYPHA_LOG_FORMAT", help="Log format.")]


@app.command("run")
def run_command(
    *,
    namespace: _Namespaces = None,
    all_namespaces: _AllNamespaces = False,
    release: _Release = "default/hypha-operator",
    port: Annotated[int, typer.Option(help="Serve /healthz, /readyz and /metrics on this port.")] = 8080,
    log_level: _Level = "info",
    log_format: _Format = "human",
) -> None:
    """Reconcile HyphaWorkers and HyphaJobs, with the pod's service account or with KUBECONFIG."""
    namespaces = _checked(namespace, all_namespaces)
    logs.configure(log_level, log_format)
    gc.freeze()  # nothing that the imports made is ever garbage, so no collection has to visit it
    asyncio.run(run(Settings.from_environment(os.environ), release, namespaces, port))


@app.command("uninstall")
def uninstall_command(
    *,
    namespace: _Namespaces = None,
    all_namespaces: _AllNamespaces = False,
    release: _Release = "default/hypha-operator",
    log_level: _Level = "info",
    log_format: _Format = "human",
) -> None:
    """Stop this release's operators and remove their finalizers and Leases. Workers and jobs go on."""
    namespaces = _checked(namespace, all_namespaces)
    logs.configure(log_level, log_format)
    asyncio.run(run_uninstall(release, namespaces))


def _checked(namespace: list[str] | None, all_namespaces: bool) -> tuple[str, ...]:
    """Return the namespaces to serve; empty for all."""
    if bool(namespace) == all_namespaces:
        raise typer.BadParameter("set either --namespace NAME (once or more) or --all-namespaces")
    return tuple(namespace or ())


def main() -> NoReturn:
    """Run the command line."""
    command_line.run(app, lambda: {SettingsError: 2, NoClusterError: 1, PortTakenError: 1, UninstallError: 1})


if __name__ == "__main__":
    main()
