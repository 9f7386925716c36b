"""`python -m hypha_parameter_server --socket PATH --work-dir DIR (--job JSON | --job-file PATH)`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from hypha_executor.arguments import executor_parser, print_error, read_job
from hypha_executor.bridge import Bridge
from hypha_executor.errors import ExecutorError
from hypha_executor.incoming import Incoming
from hypha_executor.last_lines import LastLines
from hypha_parameter_server.job import parse_aggregate_job
from hypha_parameter_server.rounds import Policy
from hypha_parameter_server.server import Server
from hypha_parameter_server.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; return the exit code: 0 once the scheduler says that the job is done, else that of the error."""
    options = _parser().parse_args(arguments)
    last_lines = LastLines()
    handlers = [logging.StreamHandler(sys.stderr), last_lines]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=handlers)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        job = parse_aggregate_job(read_job(options))
        policy = Policy(options.deadline_s, options.quorum, options.clip_factor)
        bridge, store = Bridge(options.socket, options.work_dir), Store(options.work_dir, job.job_id)
        Server(job, bridge, store, policy).run(Incoming(bridge, job.updates))
    except (ExecutorError, OSError) as error:
        print_error(str(error))
        return error.exit_code if isinstance(error, ExecutorError) else ExecutorError.exit_code
    last_lines.leave()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = executor_parser(
        "python -m hypha_parameter_server", "Average the pseudo-gradients of one Hypha job.", "hypha-worker"
    )
    parser.add_argument(
        "--deadline-s",
        type=_positive,
        default=os.environ.get("HYPHA_PS_DEADLINE_S", "600"),
        help="seconds after a round's first pseudo-gradient until a quorum is enough"
        " (%(default)s; HYPHA_PS_DEADLINE_S)",
    )
    parser.add_argument(
        "--quorum",
        type=_fraction,
        default=os.environ.get("HYPHA_PS_QUORUM", "0.5"),
        help="the fraction of the members that is enough after the deadline (%(default)s; HYPHA_PS_QUORUM)",
    )
    parser.add_argument(
        "--clip-factor",
        type=_positive,
        default=os.environ.get("HYPHA_PS_CLIP_FACTOR", "2"),
        help="scale longer pseudo-gradients down to this multiple of the median length"
        " (%(default)s; HYPHA_PS_CLIP_FACTOR)",
    )
    return parser


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
