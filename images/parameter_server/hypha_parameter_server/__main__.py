"""`python -m hypha_parameter_server --socket PATH --work-dir DIR (--job JSON | --job-file PATH)`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hypha_parameter_server.bridge import Arrivals, Bridge
from hypha_parameter_server.errors import JobError, ParameterServerError
from hypha_parameter_server.job import parse_job
from hypha_parameter_server.rounds import Policy
from hypha_parameter_server.server import INCOMING, Server
from hypha_parameter_server.store import Store

log = logging.getLogger("hypha_parameter_server")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the job; the exit status is 0 once the scheduler says it is done, 1 for a failure, 2 for an unusable job."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        job = parse_job(options.job if options.job is not None else options.job_file.read_text())
        policy = Policy(options.deadline_s, options.quorum, options.clip_factor)
        store = Store(options.work_dir, job.job_id)
        arrivals = Arrivals(options.socket, job.updates, INCOMING)
        Server(job, Bridge(options.socket), store, policy).run(arrivals)
    except JobError as error:
        log.error("%s", error)  # noqa: TRY400 - the text says what to do
        return 2
    except (ParameterServerError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - as above
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hypha_parameter_server", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="the job bridge's socket")
    parser.add_argument("--work-dir", type=Path, required=True, help="the job's work directory")
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("--job", help="the job specification as JSON")
    job.add_argument("--job-file", type=Path, help="a file with the job specification")
    parser.add_argument(
        "--deadline-s",
        type=_positive,
        default=_environment("DEADLINE_S", "600"),
        help="seconds from a round's first pseudo-gradient, after which a quorum suffices"
        " (%(default)s; HYPHA_PS_DEADLINE_S)",
    )
    parser.add_argument(
        "--quorum",
        type=_fraction,
        default=_environment("QUORUM", "0.5"),
        help="the fraction of the members that suffices then (%(default)s; HYPHA_PS_QUORUM)",
    )
    parser.add_argument(
        "--clip-factor",
        type=_positive,
        default=_environment("CLIP_FACTOR", None),
        help="scale pseudo-gradients down to this many times the median length (off; HYPHA_PS_CLIP_FACTOR)",
    )
    return parser


def _environment(name: str, default: str | None) -> str | None:
    return os.environ.get(f"HYPHA_PS_{name}", default)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
