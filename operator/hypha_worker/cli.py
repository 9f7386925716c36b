"""The command line `hypha-worker`.

Exit codes: 0 success; 1 failure (probe: not healthy); 2 wrong command line or configuration; 130 interrupted.
"""

import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hypha_contracts import command_line, logs
from hypha_contracts.command_line import fail

if TYPE_CHECKING:
    from hypha_worker.config_file import Loaded
    from hypha_worker.doctor.check import Check

app = command_line.new_app(
    "hypha-worker",
    "A worker node for the Hypha network. `hypha-worker --config FILE` alone runs it.\n\n"
    "Exit codes: 0 success; 1 failure (probe: not healthy); 2 wrong command line or configuration; 130 interrupted.",
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
    """Run the command line."""
    command_line.run(app, _expected)


def _expected() -> command_line.Errors:
    from hypha_network.errors import HyphaNetworkError  # noqa: PLC0415
    from hypha_worker.config_file import ConfigError  # noqa: PLC0415
    from hypha_worker.errors import NodeError  # noqa: PLC0415

    return {ConfigError: 2, HyphaNetworkError: 1, NodeError: 1}


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    config: ConfigOption = None,
    log_level: LevelOption = "info",
    log_format: FormatOption = "auto",
    show_version: command_line.VersionOption = False,  # noqa: ARG001 - handled before this is called
) -> None:
    if context.invoked_subcommand is None and config is not None:
        run(config=config, log_level=log_level, log_format=log_format)
    else:
        command_line.require_command(context)


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
    """Join the network, offer resources and run jobs until SIGTERM or SIGINT. SIGHUP reads the configuration again."""
    import trio  # noqa: PLC0415 - --help and --version do not need the node

    from hypha_worker.node import run_node  # noqa: PLC0415

    logs.configure(log_level, log_format)
    overrides = _overrides(gateway, listen, external, relay_circuit, work_dir and work_dir.absolute(), exclude_cidr)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the node handles it
    reread = partial(_load, config, overrides)
    loaded = reread()
    for warning in loaded.warnings:
        logging.getLogger(__name__).warning("%s", warning)
    gc.freeze()  # a garbage collection that visited every module would stop the node for 100 ms
    trio.run(run_node, loaded.config, lambda: reread().config)


@app.command()
def init(
    *,
    output: Annotated[
        Path, typer.Option("--config", "--output", "-c", "-o", metavar="FILE", help="File to write.")
    ] = Path("worker.toml"),
    name: Annotated[
        str, typer.Option("--name", "-n", help="Name of this worker and of its certificate files.")
    ] = "worker",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
    unit: Annotated[
        Path | None, typer.Option("--unit", metavar="FILE", help="Also write a systemd unit that runs this worker.")
    ] = None,
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="User of the systemd unit.")] = "hypha",
    gateway: GatewayOption = None,
    listen: ListenOption = None,
    external: ExternalOption = None,
    relay_circuit: RelayOption = None,
    work_dir: WorkDirOption = None,
    exclude_cidr: CidrOption = None,
) -> None:
    """Write a commented configuration, and with --unit a systemd service.

    As root: hypha-worker init --config /etc/hypha/worker.toml --unit /etc/systemd/system/hypha-worker.service
    """
    from hypha_worker import service  # noqa: PLC0415
    from hypha_worker.template import render  # noqa: PLC0415

    group = service.find_user(user).pw_gid if unit else None
    if unit:
        work_dir = (work_dir or service.STATE_DIR).absolute()
        output.parent.mkdir(parents=True, exist_ok=True)
    _write(
        output, render(name, _overrides(gateway, listen, external, relay_circuit, work_dir, exclude_cidr)), force, group
    )
    if unit and work_dir:
        _write(unit, service.render_unit(output.absolute(), user, work_dir), force)
        typer.echo(f"Wrote {output} and {unit}. " + service.next_steps(output, user, unit, name))
    else:
        then = f"Set its gateways, certificates and resources, then run `hypha-worker run --config {output}`."
        typer.echo(f"Wrote {output}. {then}")


def _write(path: Path, text: str, force: bool, group: int | None = None) -> None:
    """Write a file. If it has a group, only the owner and the group may read it, because it may hold secrets."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            if group is not None:
                os.fchown(file.fileno(), -1, group)
                os.fchmod(file.fileno(), 0o640)
            file.write(text)
    except FileExistsError:
        fail(f"{path} exists. Use --force to overwrite it.", 2)
    except OSError as error:
        fail(f"{path}: {error.strerror}")


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
        fail(f"{address}: {reason}")
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


@app.command()
def doctor(
    *,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Find out why a worker does not work, and what to do. Exit 1 if a check failed, otherwise 0.

    It changes nothing and is safe beside a running node.
    """
    import trio  # noqa: PLC0415

    from hypha_contracts import findings  # noqa: PLC0415
    from hypha_worker.config_file import ConfigError  # noqa: PLC0415
    from hypha_worker.doctor import report  # noqa: PLC0415
    from hypha_worker.doctor.checks import CHECKS  # noqa: PLC0415
    from hypha_worker.doctor.run import run as examine  # noqa: PLC0415
    from hypha_worker.doctor.worker import Worker  # noqa: PLC0415

    logging.disable()  # the findings say what the node would log
    path = _find(config)
    loaded: Loaded | ConfigError
    try:
        loaded = _load(config, {})
    except ConfigError as error:
        loaded = error
    terminal = sys.stderr.isatty()
    clear = "\r\x1b[K"

    def show(remaining: Sequence["Check"]) -> None:
        typer.echo(f"{clear}{report.progress(remaining, len(CHECKS))}", err=True, nl=False)

    results = trio.run(examine, Worker(path, loaded, os.environ), CHECKS, show if terminal else lambda _: None)
    if terminal:
        typer.echo(clear, err=True, nl=False)
    if as_json:
        typer.echo(report.to_json(results, path, version("hypha-worker")))
    else:
        for line in findings.to_text(results, colour=sys.stdout.isatty()):
            typer.echo(line)
    raise typer.Exit(findings.exit_code(results))


@app.command()
def status(
    *,
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as JSON.")] = False,
) -> None:
    """Show the running node: whether it is ready, its jobs, leases, requests, peers and earnings."""
    from hypha_worker.status import client, commands  # noqa: PLC0415

    with command_line.while_read():
        commands.show_status(client.state_dir(_load(config, {}).config), as_json=as_json)


@app.command()
def jobs(
    *,
    config: ConfigOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the jobs until interrupted.")] = False,
) -> None:
    """List the jobs of the running node, with the progress that they report."""
    from hypha_worker.status import client, commands  # noqa: PLC0415

    directory = client.state_dir(_load(config, {}).config)
    with command_line.while_read():
        (commands.watch_jobs if watch else commands.show_jobs)(directory)


@app.command(name="logs")
def show_logs(
    job: Annotated[str, typer.Argument(help="The job: its task id, or the beginning of it.")],
    *,
    config: ConfigOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more lines until the job ends.")] = False,
) -> None:
    """Print the lines of a job's bridge and executor in one, by time. No node needs to run."""
    from hypha_worker.status import client  # noqa: PLC0415
    from hypha_worker.status import logs as job_logs  # noqa: PLC0415

    configured = _load(config, {}).config
    with command_line.while_read():
        job_logs.show(configured, client.state_dir(configured), job, follow=follow)


def _find(path: Path | None) -> Path:
    """Return the configuration file: the given one, or the first default that exists."""
    return path or next((default for default in DEFAULT_CONFIGS if default.exists()), DEFAULT_CONFIGS[0])


def _load(path: Path | None, overrides: dict[str, Any]) -> "Loaded":
    from hypha_worker.config_file import load  # noqa: PLC0415

    return load(_find(path), os.environ, overrides)


def _overrides(*options: Any) -> dict[str, Any]:
    """Return the options that the command line sets, by key of the configuration."""
    return {key: value for key, value in zip(_OVERRIDES, options, strict=True) if value not in (None, [])}
