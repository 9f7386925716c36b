"""The trainer's entry point, `hypha_trainer.training --socket S --work-dir D --job JSON`, started by a launcher."""

import argparse
import os
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hypha_executor.arguments import executor_parser, read_job
from hypha_executor.bridge import Bridge
from hypha_executor.errors import ExecutorError, JobError
from hypha_trainer.job import Artifact, TrainJob, parse_train_job
from hypha_trainer.log import log


def main(arguments: list[str] | None = None) -> int:
    """Run one job to its end; return the exit code."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    work_dir: Path = options.work_dir
    # All files come through the bridge, so transformers must not use a network, nor write outside the work directory.
    os.environ.update(HF_HUB_OFFLINE="1", HF_MODULES_CACHE=str(work_dir / "modules"), TOKENIZERS_PARALLELISM="false")
    try:
        return _run(parse_train_job(read_job(options)), options, work_dir)
    except ExecutorError as error:
        log(f"error: {error}")
        return error.exit_code
    except Exception as error:  # an unexpected error: its traceback, and one line for the worker's log
        traceback.print_exc()
        log(f"error: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
        return 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = executor_parser("hypha_trainer.training", "Trains one Hypha job (DiLoCo).")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that a model brings")
    parser.add_argument(
        "--output-dir", type=Path, help="keep the trained model in this directory, in a folder named after the job"
    )
    parser.add_argument(
        "--update-timeout-s", type=float, default=3600.0, help="how long to wait for an update (%(default)s)"
    )
    return parser.parse_args(arguments)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    log("terminated")
    sys.exit(128 + signal.SIGTERM)


def _run(job: TrainJob, options: argparse.Namespace, work_dir: Path) -> int:
    bridge = Bridge(options.socket, work_dir)
    fetched = ThreadPoolExecutor(1, "fetch").submit(_fetch, bridge, job) if os.environ.get("RANK", "0") == "0" else None

    # These imports take seconds, so the files are fetched meanwhile, and a wrong job is refused before.
    from accelerate import Accelerator  # noqa: PLC0415

    from hypha_trainer.loop import Coordinator, train  # noqa: PLC0415
    from hypha_trainer.processes import join  # noqa: PLC0415
    from hypha_trainer.setup import keep_model, make_processes, make_training  # noqa: PLC0415

    join()
    accelerator = Accelerator()
    processes = make_processes(accelerator)
    folders = processes.decide(lambda: fetched.result() if fetched else _fetch(bridge, job))
    training, start = make_training(
        job, bridge, folders, accelerator, processes, trust_remote_code=options.trust_remote_code
    )
    coordinator = Coordinator(bridge, job, work_dir, start, options.update_timeout_s) if processes.main else None
    rounds = train(training, coordinator)
    if coordinator and options.output_dir:
        keep_model(coordinator.weights, folders[0], options.output_dir / job.job_id)
    log(f"training finished after {rounds} rounds")
    return 0


def _fetch(bridge: Bridge, job: TrainJob) -> tuple[Path, Path | None]:
    """Fetch preprocessor and model, in this order, so that if both have a config.json, the model's stays."""
    preprocessor = _folder(bridge, job.preprocessor) if job.preprocessor else None
    return _folder(bridge, job.model), preprocessor


def _folder(bridge: Bridge, artifact: Artifact) -> Path:
    files = bridge.fetch(artifact.reference)
    if not files:
        raise JobError(f"the artifact of {artifact.task!r} has no files; name them in its filenames")
    log(f"fetched {len(files)} files")  # a name may be a part of a secret URI
    return min((path.parent for path in files), key=lambda folder: len(folder.parts))


def run() -> NoReturn:
    """Run the job and end the process at once, because other threads may wait for answers that will never come."""
    try:
        code = main()
    except SystemExit as request:
        code = request.code if isinstance(request.code, int) else int(request.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
