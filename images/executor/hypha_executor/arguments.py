"""The command line that every executor takes: where its bridge, its work directory and its job are."""

import argparse
import os
from pathlib import Path

from hypha_executor.errors import JobError


def executor_parser(prog: str, description: str | None = None) -> argparse.ArgumentParser:
    """Return a parser of the options that every executor takes; an executor may add its own.

    Each option may be left out if the worker has set its environment variable:

    - `--socket PATH` (`SOCKET_PATH`) becomes `socket: Path`, the job bridge's Unix socket.
    - `--work-dir DIR` (`WORK_DIR`) becomes `work_dir: Path`, absolute.
    - `--job JSON` or `--job-file PATH` (`JOB_FILE`) become what `read_job` reads.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
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
