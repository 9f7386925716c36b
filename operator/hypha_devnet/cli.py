"""The command line `hypha-devnet`."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, NoReturn

import trio
import typer

from hypha_contracts import logs
from hypha_contracts.text import escaped
from hypha_devnet import certs
from hypha_devnet.config import Config, DataConfig, NodeConfig, SchedulerConfig, load
from hypha_devnet.events import Events
from hypha_devnet.roles.node import leaves, until_signal
from hypha_network.errors import HyphaNetworkError
from hypha_network.wire.addresses import AddressError
from hypha_worker.config_file import ConfigError

app = typer.Typer(
    help="A small Hypha network: gateway, data node, scheduler, model hub, certificates, demo.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Option("--config", help="The node's TOML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key of the file: key.key=value.")]
WithEvents = Annotated[bool, typer.Option("--events", help="Write events to standard output, one line of JSON each.")]
LogLevel = Annotated[logs.LogLevel, typer.Option("--log-level", help="The least to log, on standard error.")]


@app.command()
def gateway(config: ConfigFile, sets: Set = None, events: WithEvents = False, log_level: LogLevel = "info") -> None:
    """Run a gateway, through which nodes join the network and reach each other."""
    from hypha_devnet.roles.gateway import run_gateway  # noqa: PLC0415 - each command loads what it needs

    settings = _load(NodeConfig, config, sets)
    _run(lambda: run_gateway(settings, Events.to_stdout(events)), log_level)


@app.command()
def data(config: ConfigFile, sets: Set = None, events: WithEvents = False, log_level: LogLevel = "info") -> None:
    """Run a data node: announce directories of slices as datasets and serve them."""
    from hypha_devnet.roles.data_node import run_data_node  # noqa: PLC0415

    settings = _load(DataConfig, config, sets)
    _run(lambda: run_data_node(settings, Events.to_stdout(events)), log_level)


@app.command()
def scheduler(config: ConfigFile, sets: Set = None, events: WithEvents = False, log_level: LogLevel = "info") -> None:
    """Run one training job: find workers, dispatch to them, and lead their rounds. Exits 0 when the job is done."""
    from hypha_devnet.roles.scheduler import run_scheduler  # noqa: PLC0415

    settings = _load(SchedulerConfig, config, sets)
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
        _fail(str(error))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def hub(context: typer.Context) -> None:
    """Serve model repositories to huggingface_hub clients."""
    from hypha_devnet.roles.hub import app as hub_app  # noqa: PLC0415

    hub_app(context.args, prog_name="hypha-devnet hub")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def demo(context: typer.Context) -> None:
    """Train a model over a network on this machine, and show the progress."""
    from hypha_devnet.demo.run import app as demo_app  # noqa: PLC0415

    demo_app(context.args, prog_name="hypha-devnet demo")


def _load(model: type[Config], path: Path, sets: list[str] | None) -> Config:
    try:
        return load(model, path, sets or ())
    except ConfigError as error:
        _fail(str(error))


def _run(serve: Callable[[], Awaitable[int]], log_level: logs.LogLevel, terminated_code: int = 0) -> NoReturn:
    logs.configure(log_level)
    reasons: list[str] = []
    code = 2
    try:
        code = trio.run(until_signal, serve, terminated_code)
    except* (ConfigError, HyphaNetworkError, AddressError) as group:
        reasons = [str(error) for error in leaves(group)]
    if reasons:
        _fail("; ".join(reasons))
    raise SystemExit(code)


def _fail(message: str) -> NoReturn:
    typer.echo(f"hypha-devnet: {escaped(message)}", err=True)
    raise SystemExit(2)
