"""The command line `hypha-worker`.

Exit codes: 0 success; 1 failure (probe: not healthy); 2 wrong command line or configuration; 130 interrupted.
"""

import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hypha_contracts import descriptors, logs
from hypha_contracts.text import escaped

if TYPE_CHECKING:
    from hypha_worker.config_file import Loaded

app = typer.Typer(
    name="hypha-worker",
    help="A worker node for the Hypha network. `hypha-worker --config FILE` alone runs it.\n\n"
    "Exit codes: 0 success; 1 failure (probe: not healthy); 2 wrong command line or configuration.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_OVERRIDES = (
    *("gateway_addresses", "listen_addresses", "external_addresses"),
    *("relay_circuit", "work_dir", "exclude_cidr"),
)
DEFAULT_CONFIGS = (Path("worker.toml"), Path("config.toml"))


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="Configuration. Default: worker.toml or else config.toml."),
]
LevelOption = Annotated[
    logs.LogLevel, typer.Option("--log-level", envvar="HYPHA_LOG_LEVEL", help="Lowest level to log.")
]
FormatOption = Annotated[
    logs.LogFormatOrAuto,
    typer.Option(
        "--log-format", envvar="HYPHA_LOG_FORMAT", help="auto: human on a terminal, otherwise logfmt (key=value)."
    ),
]
GatewayOption = Annotated[
    list[str] | None,
    typer.Option("--gateway", metavar="ADDRESS", help="Use this gateway instead. Repeatable."),
]
ListenOption = Annotated[
    list[str] | None,
    typer.Option("--listen", metavar="ADDRESS", help="Listen on this address instead. Repeatable."),
]
ExternalOption = Annotated[
    list[str] | None,
    typer.Option("--external", metavar="ADDRESS", help="Address at which other peers reach this node. Repeatable."),
]
RelayOption = Annotated[
    bool | None, typer.Option("--relay-circuit/--no-relay-circuit", help="Accept connections through the gateways.")
]
WorkDirOption = Annotated[Path | None, typer.Option("--work-dir", metavar="DIR", help="Directory of jobs and state.")]
CidrOption = Annotated[
    list[str] | None,
    typer.Option("--exclude-cidr", metavar="CIDR", help="Ignore addresses in this network. Repeatable."),
]


def main() -> NoReturn:
    """Run the command line. Expected errors are one line on standard error."""
    from hypha_network.errors import HyphaNetworkError  # noqa: PLC0415
    from hypha_worker.config_file import ConfigError  # noqa: PLC0415
    from hypha_worker.errors import NodeError  # noqa: PLC0415

    descriptors.raise_limit()
    try:
        app(prog_name="hypha-worker")
    except* ConfigError as group:
        _fail(str(_first(group)), 2)
    except* (HyphaNetworkError, NodeError) as group:
        _fail(str(_first(group)))
    sys.exit(0)


def _first(group: BaseException) -> BaseException:
    """Return the first error in a nursery's group."""
    return _first(group.exceptions[0]) if isinstance(group, BaseExceptionGroup) else group


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    config: ConfigOption = None,
    log_level: LevelOption = "info",
    log_format: FormatOption = "auto",
    show_version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and exit.")] = False,
) -> None:
    if show_version:
        typer.echo(f"hypha-worker {version('hypha-worker')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        if config is None:
            typer.echo(context.get_help())
            raise typer.Exit(2)
        run(config=config, log_level=log_level, log_format=log_format)


@app.command()
def run(
    *,
    config: ConfigOption = None,
    log_level: LevelOption = "info",
    log_format: FormatOption = "auto",
    gateway: GatewayOption = None,
    listen: ListenOption = None,
    external: ExternalOption = None,
    relay_circuit: RelayOption = None,
    work_dir: WorkDirOption = None,
    exclude_cidr: CidrOption = None,
) -> None:
    """Join the network, offer resources and run jobs until SIGTERM or SIGINT."""
    import trio  # noqa: PLC0415 - --help and --version do not need the node

    from hypha_worker.node import run_node  # noqa: PLC0415

    logs.configure(log_level, log_format)
    overrides = _overrides(gateway, listen, external, relay_circuit, work_dir and work_dir.absolute(), exclude_cidr)
    loaded = _load(config, overrides)
    for warning in loaded.warnings:
        logging.getLogger(__name__).warning("%s", warning)
    trio.run(run_node, loaded.config)


@app.command()
def init(
    *,
    output: Annotated[
        Path, typer.Option("--config", "--output", "-c", "-o", metavar="FILE", help="File to write.")
    ] = Path("worker.toml"),
    name: Annotated[
        str, typer.Option("--name", "-n", help="Name of this worker and of its certificate files.")
    ] = "worker",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
    gateway: GatewayOption = None,
    listen: ListenOption = None,
    external: ExternalOption = None,
    relay_circuit: RelayOption = None,
    work_dir: WorkDirOption = None,
    exclude_cidr: CidrOption = None,
) -> None:
    """Write a commented configuration."""
    from hypha_worker.template import render  # noqa: PLC0415

    values = _overrides(gateway, listen, external, relay_circuit, work_dir, exclude_cidr)
    try:
        with output.open("w" if force else "x", encoding="utf-8") as file:
            file.write(render(name, values))
    except FileExistsError:
        _fail(f"{output} exists. Use --force to overwrite it.", 2)
    except OSError as error:
        _fail(f"{output}: {error.strerror}")
    typer.echo(
        f"Wrote {output}. Set its gateways, certificates and resources, then run `hypha-worker run --config {output}`."
    )


@app.command()
def probe(
    address: Annotated[
        str, typer.Argument(help="Address such as /ip4/203.0.113.50/tcp/4001, with or without /p2p/<id>.")
    ],
    *,
    config: ConfigOption = None,
    cert: Annotated[Path | None, typer.Option("--cert", help="Certificate instead of the configured one.")] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Key instead of the configured one.")] = None,
    trust: Annotated[Path | None, typer.Option("--trust", help="Trust bundle instead of the configured one.")] = None,
    crls: Annotated[
        Path | None, typer.Option("--crls", help="Revocation lists instead of the configured ones.")
    ] = None,
    timeout: Annotated[int, typer.Option("--timeout", metavar="MS", min=1, help="Time to wait for the answer.")] = 2000,
) -> None:
    """Ask a node whether it is healthy. Exit 0 if it is, otherwise 1.

    Use a certificate other than the node's own.
    """
    import trio  # noqa: PLC0415

    from hypha_network.identity import Identity  # noqa: PLC0415
    from hypha_worker.probe import probe as ask  # noqa: PLC0415

    logs.configure("error")
    if cert and key and trust:
        identity = Identity.load(cert, key, trust, crls)
    else:
        configured = _load(config, {}).config
        identity = Identity.load(
            cert or configured.cert_pem,
            key or configured.key_pem,
            trust or configured.trust_pem,
            crls or configured.crls_pem,
        )
    reason = trio.run(ask, identity, address, timeout / 1000)
    if reason is not None:
        _fail(f"{address}: {reason}")
    typer.echo(f"{address}: healthy")


@app.command()
def identity(config: ConfigOption = None) -> None:
    """Print the peer id of the configured certificate and its validity."""
    from datetime import UTC, datetime  # noqa: PLC0415

    from hypha_network.identity import Identity  # noqa: PLC0415

    configured = _load(config, {}).config
    loaded = Identity.load(configured.cert_pem, configured.key_pem, configured.trust_pem, configured.crls_pem)
    now = datetime.now(UTC)
    days = (loaded.not_valid_after - now).days
    typer.echo(f"peer id      {loaded.peer_id}")
    typer.echo(f"certificate  {configured.cert_pem}")
    typer.echo(f"valid until  {loaded.not_valid_after:%Y-%m-%d %H:%M:%S} UTC ({days} days)")


def _load(path: Path | None, overrides: dict[str, Any]) -> "Loaded":
    from hypha_worker.config_file import load  # noqa: PLC0415

    found = path or next((default for default in DEFAULT_CONFIGS if default.exists()), DEFAULT_CONFIGS[0])
    return load(found, os.environ, overrides)


def _overrides(*options: Any) -> dict[str, Any]:
    """Return the options that the command line sets, by key of the configuration."""
    return {key: value for key, value in zip(_OVERRIDES, options, strict=True) if value not in (None, [])}


def _fail(message: str, code: int = 1) -> NoReturn:
    colour = sys.stderr.isatty()
    typer.echo(("\x1b[31merror:\x1b[0m " if colour else "error: ") + escaped(" ".join(message.split("\n"))), err=True)
    sys.exit(code)
