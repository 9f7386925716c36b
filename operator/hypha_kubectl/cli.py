"""The command line `kubectl hypha`.

Exit codes: 0 success; 1 failure; 2 wrong command line or kubeconfig; 130 interrupted.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from hypha_contracts import command_line

if TYPE_CHECKING:
    from hypha_kubectl.access.api import Api

app = command_line.new_app(
    "kubectl hypha",
    "Show and manage the workers of a Hypha network in a cluster.\n\n"
    "Exit codes: 0 success; 1 failure; 2 wrong command line or kubeconfig; 130 interrupted.",
    add_completion=False,
)

_NAMESPACE: Final = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"

ContextOption = Annotated[
    str | None, typer.Option("--context", metavar="NAME", help="Context of the kubeconfig. Default: the current one.")
]
KubeconfigOption = Annotated[
    Path | None, typer.Option("--kubeconfig", metavar="FILE", help="Kubeconfig in place of KUBECONFIG's files.")
]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Default: the namespace of the context.")
]
AllOption = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces.")]


class Output(StrEnum):
    """A form for programs."""

    JSON = "json"


OutputOption = Annotated[Output | None, typer.Option("--output", "-o", help="Print JSON for programs.")]


def main() -> NoReturn:
    """Run the command line."""
    command_line.run(app, _expected, linux_only=False)


def _expected() -> command_line.Errors:
    from hypha_kubectl.errors import PluginError, UsageError  # noqa: PLC0415

    return {UsageError: 2, PluginError: 1}


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, show_version: command_line.VersionOption = False) -> None:  # noqa: ARG001
    command_line.require_command(context)


@dataclass(frozen=True)
class Scope:
    """Where a command looks. The namespace is None for all."""

    api: "Api"
    namespace: str | None

    @property
    def one_namespace(self) -> str:
        """The namespace of a command that has no --all-namespaces."""
        return self.namespace or self.api.context.namespace


@contextmanager
def _connected(
    context: str | None, kubeconfig: Path | None, namespace: str | None, all_namespaces: bool = False
) -> Iterator[Scope]:
    """Open the API server of a context. Errors of the API become messages with their remedies."""
    from hypha_contracts.kubernetes_errors import ApiError  # noqa: PLC0415 - --help needs none of these
    from hypha_kubectl.access.api import open_api  # noqa: PLC0415
    from hypha_kubectl.access.explain import explained  # noqa: PLC0415
    from hypha_kubectl.access.kubeconfig import load_context  # noqa: PLC0415

    if namespace and all_namespaces:
        raise typer.BadParameter("use either --namespace or --all-namespaces")
    if namespace is not None and not re.fullmatch(_NAMESPACE, namespace):
        raise typer.BadParameter(f"{namespace!r} is no name of a namespace; write letters, digits and hyphens")
    chosen = load_context(os.environ, kubeconfig, context)
    with open_api(chosen, os.environ) as api:
        try:
            with command_line.while_read():
                yield Scope(api, None if all_namespaces else namespace or chosen.namespace)
        except ApiError as error:
            raise explained(error, chosen) from error


@app.command()
def status(
    worker: Annotated[str | None, typer.Argument(metavar="WORKER", help="Show only this worker.")] = None,
    *,
    output: OutputOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    namespace: NamespaceOption = None,
    all_namespaces: AllOption = False,
) -> None:
    """Show workers with their jobs and earnings.

    For each worker: whether it makes offers and why not, how peers reach it, what is used, its leases and its jobs.
    """
    from hypha_kubectl.commands import status as command  # noqa: PLC0415

    with _connected(context, kubeconfig, namespace, all_namespaces) as scope:
        command.show(scope.api, scope.namespace, worker, as_json=output is Output.JSON)


@app.command()
def jobs(
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the changes until interrupted.")] = False,
    output: OutputOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    namespace: NamespaceOption = None,
    all_namespaces: AllOption = False,
) -> None:
    """List jobs, or follow them live with -w.

    Those that run come first. In a narrow terminal, names are cut and columns are left out.
    """
    from hypha_kubectl.commands import jobs as command  # noqa: PLC0415

    if watch and output:
        raise typer.BadParameter("use either --watch or --output")
    with _connected(context, kubeconfig, namespace, all_namespaces) as scope:
        if watch:
            command.watch(scope.api, scope.namespace)
        else:
            command.show(scope.api, scope.namespace, as_json=output is Output.JSON)


@app.command()
def logs(
    job: Annotated[str, typer.Argument(help="The job: its name, or the beginning of it or of its task id.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more lines until the job ends.")] = False,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DURATION", help="Only lines of this time, such as 10m.")
    ] = None,
    tail: Annotated[
        int | None, typer.Option("--tail", metavar="N", min=0, help="Only the last N lines of each container.")
    ] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Begin each line with its time.")] = False,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Print the logs of a job in one.

    The lines of bridge and executor are in the order of their times, each after its source.
    """
    from hypha_kubectl.commands import logs as command  # noqa: PLC0415

    options = command.Options(follow, _seconds(since), tail, timestamps)
    with _connected(context, kubeconfig, namespace) as scope:
        command.show(scope.api, scope.namespace, job, options)


def _seconds(duration: str | None) -> int | None:
    from hypha_contracts.durations import parse_duration  # noqa: PLC0415

    try:
        return None if duration is None else parse_duration(duration)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")]


@app.command()
def drain(
    worker: Annotated[str, typer.Argument(help="The worker.")],
    *,
    deadline: Annotated[
        str | None,
        typer.Option("--deadline", metavar="DURATION", help="End the jobs that still run after this time, such as 2h."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="Wait at most so long. Default: without end.")
    ] = None,
    wait: WaitOption = True,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Suspend a worker, and wait until it is empty.

    It sets spec.suspend: the worker makes no new offers, and jobs go on. It waits until no job and no lease is left.
    """
    from hypha_kubectl.commands import drain as command  # noqa: PLC0415

    times = {"deadline_s": _seconds(deadline), "timeout_s": _seconds(timeout)}
    with _connected(context, kubeconfig, namespace) as scope:
        settle_s = command.SETTLE_S if wait else None
        command.drain(scope.api, scope.one_namespace, worker, **times, settle_s=settle_s)


@app.command()
def resume(
    worker: Annotated[str, typer.Argument(help="The worker.")],
    *,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help="Wait at most so long.")] = "5m",
    wait: WaitOption = True,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    namespace: NamespaceOption = None,
) -> None:
    """Let a worker make offers again.

    It unsets spec.suspend and spec.suspendDeadline, and waits until the worker makes offers.
    """
    from hypha_kubectl.commands import drain as command  # noqa: PLC0415

    timeout_s = _seconds(timeout)
    with _connected(context, kubeconfig, namespace) as scope:
        command.resume(scope.api, scope.one_namespace, worker, timeout_s=timeout_s, wait=wait)


@app.command()
def check(
    *,
    before: Annotated[bool, typer.Option("--pre", help="Only what must be right before an installation.")] = False,
    output: OutputOption = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    namespace: NamespaceOption = None,
    all_namespaces: AllOption = False,
) -> None:
    """Find out what is wrong, and what to do.

    With --pre whether a cluster is ready for Hypha, otherwise what is wrong with an installation and its workers. Exit
    1 if a check failed. It changes nothing.
    """
    from hypha_kubectl.commands import check as command  # noqa: PLC0415

    with _connected(context, kubeconfig, namespace, all_namespaces) as scope:
        code = command.check(scope.api, scope.namespace, before=before, as_json=output is Output.JSON)
    raise typer.Exit(code)


@app.command()
def report(
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.tar.gz", help="Default: hypha-report-TIME.tar.gz.")
    ] = None,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    namespace: NamespaceOption = None,
    all_namespaces: AllOption = False,
) -> None:
    """Write a support bundle without secrets.

    It holds objects, events, logs of operators and controllers, and versions. docs/kubectl.md says what is left out.
    """
    from hypha_kubectl.commands import report as command  # noqa: PLC0415

    with _connected(context, kubeconfig, namespace, all_namespaces) as scope:
        command.report(scope.api, scope.namespace, output)


@app.command()
def release(
    name: Annotated[str | None, typer.Argument(metavar="WORKER|JOB", help="The object to release.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Release all workers and jobs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do it although an operator holds its Lease.")] = False,
    context: ContextOption = None,
    kubeconfig: KubeconfigOption = None,
    namespace: NamespaceOption = None,
    all_namespaces: AllOption = False,
) -> None:
    """Remove finalizers of an operator that is gone.

    Then its workers can be deleted. It refuses while an operator holds its Lease, and asks before it changes anything.
    """
    from hypha_kubectl.commands import release as command  # noqa: PLC0415

    if (name is None) is not everything:
        raise typer.BadParameter("name a worker or a job, or use --all")
    with _connected(context, kubeconfig, namespace, all_namespaces) as scope:
        command.release(scope.api, scope.namespace, name, yes=yes, force=force)
