"""The command line that every executor takes: where its bridge, its work directory and its job are."""

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from hypha_executor.errors import JobError


class Parser(argparse.ArgumentParser):
    """A command line that looks and answers like the other commands of Hypha: an error is one line, and exits with 2.

    Args:
        prog: The command.
        description: What it does.
        distribution: The installed package whose version `--version` prints; None for no such option.
    """

    def __init__(self, prog: str, description: str | None = None, distribution: str | None = None):
        super().__init__(
            prog=prog, description=description, add_help=False, allow_abbrev=False, formatter_class=_Formatter
        )
        if distribution:
            text = f"%(prog)s {version(distribution)}"
            self.add_argument("-V", "--version", action="version", version=text, help="Print the version and exit.")
        self.add_argument("-h", "--help", action="help", help="Show this message and exit.")

    def error(self, message: str) -> NoReturn:
        """Print an error of the command line and exit with 2."""
        print_error(f"{message[:1].upper()}{message[1:]}. Try `{self.prog} --help`.")
        sys.exit(2)


class _Formatter(argparse.HelpFormatter):
    def add_usage(self, usage, actions, groups, prefix=None):  # type: ignore[no-untyped-def]
        super().add_usage(usage, actions, groups, prefix or "Usage: ")

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading and heading.capitalize())


def print_error(message: str) -> None:
    """Write an error to standard error as one line that begins with `error: `."""
    prefix = "\x1b[31merror:\x1b[0m" if sys.stderr.isatty() else "error:"
    print(prefix, " ".join(message.split()), file=sys.stderr, flush=True)


def executor_parser(prog: str, description: str | None = None, distribution: str | None = None) -> Parser:
    """Return a parser of the options that every executor takes; an executor may add its own.

    Each option may be left out if the worker has set its environment variable:

    - `--socket PATH` (`SOCKET_PATH`) becomes `socket: Path`, the job bridge's Unix socket.
    - `--work-dir DIR` (`WORK_DIR`) becomes `work_dir: Path`, absolute.
    - `--job JSON` or `--job-file PATH` (`JOB_FILE`) become what `read_job` reads.
    """
    parser = Parser(prog, description, distribution)
    _add_path(parser, "--socket", "SOCKET_PATH", "the job bridge's Unix socket")
    _add_path(parser, "--work-dir", "WORK_DIR", "the job's work directory")
    job = parser.add_mutually_exclusive_group(required="JOB_FILE" not in os.environ)
    job.add_argument("--job", help="the job specification in JSON")
    job.add_argument(
        "--job-file", type=Path, default=os.environ.get("JOB_FILE"), help="a file with the job specification (JOB_FILE)"
    )
    return parser


def _add_path(parser: argparse.ArgumentParser, option: str, variable: str, meaning: str) -> None:
    default = os.environ.get(variable)
    parser.add_argument(
        option, type=_absolute, default=default, required=default is None, help=f"{meaning} ({variable})"
    )


def _absolute(path: str) -> Path:
    return Path(path).resolve()


def read_job(options: argparse.Namespace) -> str:
    """Return the text of the job specification that the command line names.

    Raises:
        JobError: The job file cannot be read.
    """
    if options.job is not None:
        return str(options.job)
    try:
        return str(options.job_file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"the job file cannot be read: {error}; check --job-file") from None
