"""The command line `hypha-operator`."""

import asyncio
import os
from importlib.metadata import version
from typing import Annotated

import typer

from hypha_contracts import descriptors, logs
from hypha_contracts.text import escaped
from hypha_operator.machinery.cluster import NoClusterError
from hypha_operator.machinery.health import PortTakenError
from hypha_operator.run import run
from hypha_operator.settings import Settings, SettingsError

app = typer.Typer(
    name="hypha-operator",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Run Hypha workers and their jobs on Kubernetes."""


@app.command("run")
def run_command(
    namespace: Annotated[list[str] | None, typer.Option(help="Serve this namespace. May be repeated.")] = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", help="Serve all namespaces.")] = False,
    port: Annotated[int, typer.Option(help="Serve /healthz and /metrics on this port.")] = 8080,
    log_level: Annotated[logs.LogLevel, typer.Option(envvar="HYPHA_LOG_LEVEL", help="Lowest level to log.")] = "info",
    log_format: Annotated[logs.LogFormat, typer.Option(envvar="HYPHA_LOG_FORMAT", help="Log format.")] = "human",
) -> None:
    """Reconcile HyphaWorkers and HyphaJobs, with the pod's service account or with KUBECONFIG."""
    if bool(namespace) == all_namespaces:
        raise typer.BadParameter("set either --namespace NAME (once or more) or --all-namespaces")
    logs.configure(log_level, log_format)
    try:
        settings = Settings.from_environment(os.environ)
        asyncio.run(run(settings, tuple(namespace or ()), port))
    except (SettingsError, NoClusterError, PortTakenError) as error:
        typer.echo(f"hypha-operator: {escaped(str(error))}", err=True)
        raise typer.Exit(1) from error


@app.command("version")
def version_command() -> None:
    """Print the version."""
    typer.echo(version("hypha-worker"))


def main() -> None:
    """Run the command line."""
    descriptors.raise_limit()
    app()


if __name__ == "__main__":
    main()
