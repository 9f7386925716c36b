"""What the programs of this package share: the process, its exit code, and the files of a job's model."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hypha_executor.arguments import Parser, executor_parser, print_error
from hypha_executor.bridge import Bridge
from hypha_executor.errors import ExecutorError, JobError
from hypha_trainer.job import Artifact, InferenceJob, TrainJob
from hypha_trainer.log import LAST_LINES, log

Folders = tuple[Path, Path | None]
"""The folders with the files of the model and of the preprocessor."""


def model_parser(prog: str, description: str) -> Parser:
    """Return a parser of the options that every executor with a model takes."""
    parser = executor_parser(prog, description, "hypha-worker")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that a model brings")
    parser.add_argument(
        "--allow-fewer-gpus",
        action="store_true",
        help="run with the GPUs that PyTorch can use, or on the CPU, if the lease has more",
    )
    return parser


def add_output_arguments(parser: Parser, what: str) -> None:
    """Add the options that say where the results of jobs are kept; the worker's owner may set them by variables."""
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=os.environ.get("OUTPUT_DIR") or None,
        help=f"keep {what} in this directory, in a folder named after the job (OUTPUT_DIR)",
    )
    parser.add_argument(
        "--output-max-bytes",
        type=int,
        default=os.environ.get("OUTPUT_MAX_BYTES") or None,
        help="keep nothing that would make the directory larger (OUTPUT_MAX_BYTES)",
    )


def exit_code_of(run_job: Callable[[], int], work_dir: Path) -> int:
    """Run a job to its end; return the exit code. SIGTERM ends the process meanwhile."""
    signal.signal(signal.SIGTERM, _terminate)
    # All files come through the bridge, so transformers must not use a network, nor write outside the work directory.
    os.environ.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(work_dir / "modules"), TOKENIZERS_PARALLELISM="false")
    try:
        return run_job()
    except SystemExit:
        log("terminated")
        raise
    except ExecutorError as error:
        return _fail(str(error), error.exit_code)
    except Exception as error:  # an unexpected error: its traceback, and one line for the worker's log
        traceback.print_exc()
        return _fail(f"{type(error).__name__}: {str(error)[:500]}", 1)


def _fail(text: str, exit_code: int) -> int:
    """Print the error, and leave it in the file from which the launcher of several processes reads it."""
    print_error(text)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(path).write_text(json.dumps({"message": text, "timestamp": int(time.time())}))
    return exit_code


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """End the program. The signal may have interrupted a write to the log, so this function must not write to it."""
    sys.exit(128 + signal.SIGTERM)


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end the process at once, because other threads may wait for answers that will never come.

    If it succeeds, the last lines of the log stay for the cluster.
    """
    try:
        code = main()
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else int(request.code is not None)
    if code == 0:
        LAST_LINES.leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start_fetching(bridge: Bridge, job: TrainJob | InferenceJob) -> "Future[Folders]":
    """Act as `fetch_model`, in a daemon thread, so that a job which is refused meanwhile ends at once."""
    future: Future[Folders] = Future()

    def run() -> None:
        try:
            future.set_result(fetch_model(bridge, job))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="fetch", daemon=True).start()
    return future


def fetch_model(bridge: Bridge, job: TrainJob | InferenceJob) -> Folders:
    """Fetch preprocessor and model, in this order, so that if both have a config.json, the model's stays."""
    preprocessor = _folder(bridge, job.preprocessor) if job.preprocessor else None
    return _folder(bridge, job.model), preprocessor


def _folder(bridge: Bridge, artifact: Artifact) -> Path:
    files = bridge.fetch(artifact.reference)
    if not files:
        raise JobError(f"the artifact of {artifact.task!r} has no files; name them in its filenames")
    log(f"fetched {len(files)} files")  # a name may be a part of a secret URI
    return min((path.parent for path in files), key=lambda folder: len(folder.parts))
