"""How `hypha-worker`, `hypha-operator`, `hypha-devnet` and `kubectl hypha` look and answer.

An error is one line on standard error that begins with `error: `. Exit codes: 0 success; 1 failure; 2 wrong command
line or configuration; 130 interrupted. The programs of jobs answer alike, by `hypha_executor.arguments.Parser`.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated, Any, Final, NoReturn

import typer

from hypha_contracts.text import escaped

_UsageError: Final[Any] = typer.BadParameter.__base__  # typer does not export it

Errors = Mapping[type[Exception], int]
"""The expected errors of a command and their exit codes."""


def new_app(name: str, help_text: str | None = None, *, add_completion: bool = True) -> typer.Typer:
    """Return a command line without commands, with or without the options that install completion in the shell."""
    return typer.Typer(
        name=name,
        help=help_text,
        add_completion=add_completion,
        context_settings={"help_option_names": ["--help", "-h"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(f"{context.info_name} {version('hypha-worker')}")
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
]


@contextmanager
def while_read() -> Iterator[None]:
    """Print to standard output. End without an error once its reader, such as `head`, has closed it."""
    try:
        yield
        sys.stdout.flush()  # not at exit, where nothing handles that the reader is gone
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_command(context: typer.Context) -> None:
    """Print the help and exit with 2 if the command line names no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def run(app: typer.Typer, expected: Callable[[], Errors], *, linux_only: bool = True) -> NoReturn:
    """Run a command line and end the process. `expected` is called, and may import much, only after an error."""
    if linux_only:
        _prepare_process(app)
    try:
        code = app(prog_name=app.info.name, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except _UsageError as error:
        _fail_usage(error)
    except Exception as error:
        errors = expected()
        causes = leaves(error)
        codes = [next((code for kind, code in errors.items() if isinstance(cause, kind)), None) for cause in causes]
        if codes[0] is None or None in codes:
            raise
        fail("; ".join(map(str, causes)), codes[0])
    sys.exit(code if isinstance(code, int) else 0)


def _prepare_process(app: typer.Typer) -> None:
    if sys.platform != "linux":
        fail(f"{app.info.name} runs on Linux only, not on {sys.platform}. Use a Linux machine or virtual machine.")
    from hypha_contracts import descriptors  # noqa: PLC0415 - it needs a module that other systems lack

    descriptors.raise_limit()


def _fail_usage(error: Any) -> NoReturn:
    hint = f" Try `{error.ctx.command_path} --help`." if error.ctx else ""
    fail(f"{error.format_message().rstrip('.')}.{hint}", 2)


def leaves(error: BaseException) -> list[BaseException]:
    """Return the errors of a group and of the groups in it, or an error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


def fail(message: str, code: int = 1) -> NoReturn:
    """Print an error and end the process."""
    prefix = "\x1b[31merror:\x1b[0m" if sys.stderr.isatty() else "error:"
    print(prefix, escaped(" ".join(message.split())), file=sys.stderr)
    sys.exit(code)
