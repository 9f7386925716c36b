"""The trainer's entry point, `hypha_trainer.training --socket S --work-dir D --job JSON`, started by a launcher."""

import argparse
import os

from hypha_executor.arguments import read_job
from hypha_executor.bridge import Bridge
from hypha_trainer.job import TrainJob, parse_train_job
from hypha_trainer.log import log
from hypha_trainer.program import (
    add_output_arguments,
    end_with,
    exit_code_of,
    fetch_model,
    model_parser,
    start_fetching,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one job to its end; return the exit code."""
    options = _parse(arguments)
    return exit_code_of(lambda: _run(parse_train_job(read_job(options)), options), options.work_dir)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = model_parser("python -m hypha_trainer", "Train one Hypha job (DiLoCo).")
    add_output_arguments(parser, "the trained model")
    parser.add_argument(
        "--update-timeout-s", type=float, default=3600.0, help="how long to wait for an update (%(default)s)"
    )
    return parser.parse_args(arguments)


def _run(job: TrainJob, options: argparse.Namespace) -> int:
    bridge = Bridge(options.socket, options.work_dir)
    try:
        return _train(job, bridge, options)
    finally:
        bridge.telemetry.close()


def _train(job: TrainJob, bridge: Bridge, options: argparse.Namespace) -> int:
    fetched = start_fetching(bridge, job) if os.environ.get("RANK", "0") == "0" else None

    # These imports take seconds, so the files are fetched meanwhile, and a wrong job is refused before.
    from accelerate import Accelerator  # noqa: PLC0415

    from hypha_trainer import devices  # noqa: PLC0415
    from hypha_trainer.loop import Coordinator, train  # noqa: PLC0415
    from hypha_trainer.models import free_storage  # noqa: PLC0415
    from hypha_trainer.output import keep_model  # noqa: PLC0415
    from hypha_trainer.processes import join  # noqa: PLC0415
    from hypha_trainer.setup import make_processes, make_training  # noqa: PLC0415

    env = os.environ
    devices.check_installed(env.get("ACCELERATE_MIXED_PRECISION", "no"), env.get("ACCELERATE_DYNAMO_BACKEND", "no"))
    demand = devices.read_demand(env, fewer_gpus_allowed=options.allow_fewer_gpus)
    if warning := devices.check_devices(demand, devices.find_devices()):
        log(f"warning: {warning}")
    join()
    accelerator = Accelerator()
    devices.check_world(env, accelerator.process_index, accelerator.num_processes)
    processes = make_processes(accelerator)
    if processes.main and (warning := devices.check_sharding(env, sharded=accelerator.is_fsdp2)):
        log(f"warning: {warning}")
    folders = processes.decide(lambda: fetched.result() if fetched else fetch_model(bridge, job))
    training, start = make_training(
        job, bridge, folders, accelerator, processes, trust_remote_code=options.trust_remote_code
    )
    if processes.main:
        free_storage(folders[0], job.model.reference)
    coordinator = (
        Coordinator(bridge, job, options.work_dir, start, options.update_timeout_s) if processes.main else None
    )
    rounds = train(training, coordinator)
    if coordinator and options.output_dir:
        where = options.output_dir, job.job_id, options.output_max_bytes
        keep_model(coordinator.weights, folders[0], *where, work_dir=options.work_dir)
    log(f"training finished after {rounds} rounds")
    return 0


if __name__ == "__main__":
    end_with(main)
