"""The command line `hypha-devnet`."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, NoReturn

import trio
import typer

from hypha_contracts import command_line, logs
from hypha_contracts.kubernetes_errors import ApiError
from hypha_devnet import certs
from hypha_devnet.config import DataConfig, GatewayConfig, SchedulerConfig, load
from hypha_devnet.events import Events
from hypha_devnet.roles.node import until_signal
from hypha_network.errors import HyphaNetworkError
from hypha_network.wire.addresses import AddressError
from hypha_worker.config_file import ConfigError
from hypha_worker.errors import NodeError

app = command_line.new_app("hypha-devnet")

ConfigFile = Annotated[Path, typer.Option("--config", help="The node's TOML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key of the file: key.key=value.")]
WithEvents = Annotated[bool, typer.Option("--events", help="Write events to standard output, one line of JSON each.")]
LogLevel = Annotated[logs.LogLevel, typer.Option("--log-level", help="The least to log, on standard error.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, show_version: command_line.VersionOption = False) -> None:  # noqa: ARG001
    """Run a small Hypha network: gateway, data node, scheduler, model hub, certificates, demo."""
    command_line.require_command(context)


@app.command()
def gateway(config: ConfigFile, sets: Set = None, events: WithEvents = False, log_level: LogLevel = "info") -> None:
    """Run a gateway, through which nodes join the network and reach each other."""
    from hypha_devnet.roles.gateway import run_gateway  # noqa: PLC0415 - each command loads what it needs

    settings = load(GatewayConfig, config, sets or ())
    _run(lambda: run_gateway(settings, Events.to_stdout(events)), log_level)


@app.command()
def data(config: ConfigFile, sets: Set = None, events: WithEvents = False, log_level: LogLevel = "info") -> None:
    """Run a data node: announce directories of slices as datasets and serve them."""
    from hypha_devnet.roles.data_node import run_data_node  # noqa: PLC0415

    settings = load(DataConfig, config, sets or ())
    _run(lambda: run_data_node(settings, Events.to_stdout(events)), log_level)


@app.command()
def scheduler(config: ConfigFile, sets: Set = None, events: WithEvents = False, log_level: LogLevel = "info") -> None:
    """Run one training job: find workers, dispatch to them, and lead their rounds. Exits 0 when the job is done."""
    from hypha_devnet.roles.scheduler import run_scheduler  # noqa: PLC0415

    settings = load(SchedulerConfig, config, sets or ())
    _run(lambda: run_scheduler(settings, Events.to_stdout(events)), log_level, terminated_code=143)


@app.command(name="certs")
def certificates(
    directory: Annotated[Path, typer.Argument(help="The directory of the files.")],
    nodes: Annotated[list[str] | None, typer.Option("--node", help="A node to make a certificate for.")] = None,
    organisation: Annotated[str, typer.Option(help="The organisation that the nodes belong to.")] = "devnet",
    revoke: Annotated[list[str] | None, typer.Option(help="Revoke the certificate of a node.")] = None,
) -> None:
    """Make a network's certificates: a root, an organisation, nodes, and revocation lists (crls.pem).

    Files that exist are kept and used.
    """
    try:
        for path in certs.make(directory, organisation, nodes or [], revoke or []):
            typer.echo(path)
    except (OSError, ValueError) as error:
        command_line.fail(str(error))


@app.command(name="cluster-certs")
def cluster_certificates(
    nodes: Annotated[list[str], typer.Option("--node", help="A node to make a certificate for.")],
    namespace: Annotated[str, typer.Option(help="The namespace of the Secrets.")],
    log_level: LogLevel = "info",
) -> None:
    """Fill the Secrets NODE-identity of a namespace with certificates, as the service account of this pod.

    The Secrets, and devnet-authorities for the keys of the authorities, must exist. What they hold is kept.
    """
    from hypha_devnet.cluster_secrets import fill_secrets  # noqa: PLC0415
    from hypha_worker.runtimes.kubernetes.api import ApiAccess, open_api  # noqa: PLC0415

    async def fill() -> int:
        async with open_api(ApiAccess.find(os.environ)) as api:
            for secret in await fill_secrets(api, namespace, nodes):
                typer.echo(secret)
        return 0

    _run(fill, log_level, terminated_code=143)


@app.command()
def digits(directory: Annotated[Path, typer.Argument(help="The directory of the files.")]) -> None:
    """Write the demo's digits: data/digits and data/digits-held-out for a data node, and hub, the root of a hub."""
    from hypha_devnet.demo import digits_data  # noqa: PLC0415

    digits_data.write(directory)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def hub(context: typer.Context) -> None:
    """Serve model repositories to huggingface_hub clients."""
    from hypha_devnet.roles.hub import app as hub_app  # noqa: PLC0415

    hub_app(context.args, prog_name="hypha-devnet hub", standalone_mode=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Train a model over a network on this machine, and show the progress."""
    from hypha_devnet.demo.run import app as demo_app  # noqa: PLC0415

    raise typer.Exit(demo_app(context.args, prog_name="hypha-devnet demo", standalone_mode=False))


def _run(serve: Callable[[], Awaitable[int]], log_level: logs.LogLevel, terminated_code: int = 0) -> NoReturn:
    logs.configure(log_level)
    raise typer.Exit(trio.run(until_signal, serve, terminated_code))


def main() -> NoReturn:
    """Run the command line."""
    command_line.run(app, lambda: {ConfigError: 2, AddressError: 2, HyphaNetworkError: 1, ApiError: 1, NodeError: 1})
