"""Start the processes of a trainer: `python -m hypha_trainer.launch`, then the arguments of `accelerate launch`.

The processes of `accelerate launch` find each other through a TCP server that listens on every network and asks for no
password. Here they find each other through files that only this user can open. A single process takes the place of the
launcher, so that signals reach it and its exit code is the launcher's.
"""

import argparse
import os
import sys
import tempfile
from typing import Final

from accelerate.commands import launch as accelerate
from accelerate.utils import ComputeEnvironment
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from hypha_executor.arguments import print_error
from hypha_executor.errors import JobError
from hypha_trainer.devices import check_installed
from hypha_trainer.processes import STORE_VARIABLE

_EXPORTED: Final = {
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
    "fsdp_activation_checkpointing": "FSDP_ACTIVATION_CHECKPOINTING",
}
"""Options that accelerate passes on only to DeepSpeed or FSDP, and the variables in which this trainer reads them."""


def main() -> None:
    """Run accelerate's launcher until all processes have ended; exit with the code of the first that failed."""
    try:
        options = _read_options()
    except JobError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    for option, variable in _EXPORTED.items():
        if (value := getattr(options, option)) not in (None, False, "auto"):
            os.environ.setdefault(variable, str(value).lower())
    if options.use_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # accelerate sets it for a single process only
    if _starts_several(options):
        sys.exit(_launch(options))
    command, environment = prepare_simple_launcher_cmd_env(options)
    os.execvpe(command[0], command, environment)  # noqa: S606


def _read_options() -> argparse.Namespace:
    options: argparse.Namespace = accelerate.launch_command_parser().parse_args()
    try:
        options, config, _ = accelerate._validate_launch_command(options)  # reads the configuration file
    except Exception as error:
        raise JobError(f"accelerate refuses its configuration: {type(error).__name__}: {error}") from error
    environment = config.compute_environment if config else ComputeEnvironment.LOCAL_MACHINE
    check_options(options, local=environment == ComputeEnvironment.LOCAL_MACHINE)
    return options


def check_options(options: argparse.Namespace, *, local: bool) -> None:
    """Check that this launcher can start what accelerate's options ask for.

    Args:
        options: accelerate's options and, where these are absent, the entries of its configuration file.
        local: Whether the configuration is for this machine.

    Raises:
        JobError: It cannot.
    """
    if not local or (options.num_machines or 1) > 1:
        raise JobError(
            "this trainer runs on one machine; set compute_environment: LOCAL_MACHINE and num_machines: 1 "
            "in the accelerate configuration"
        )
    if options.use_deepspeed or options.use_megatron_lm or options.tpu:
        raise JobError(
            "this trainer supports neither DeepSpeed nor Megatron-LM nor TPUs; "
            "set distributed_type to NO, MULTI_GPU or FSDP in the accelerate configuration"
        )
    if (options.num_processes or 1) > 1 and not _starts_several(options):
        raise JobError(
            f"num_processes is {options.num_processes}, but accelerate starts one process for this distributed_type; "
            "set distributed_type: MULTI_GPU or FSDP, or num_processes: 1"
        )
    check_installed(options.mixed_precision or "no", options.dynamo_backend or "no")


def _starts_several(options: argparse.Namespace) -> bool:
    return bool(options.multi_gpu or options.use_fsdp)


def _launch(options: argparse.Namespace) -> int:
    """Run several processes; return the exit code."""
    with tempfile.TemporaryDirectory() as directory:
        options.rdzv_backend, options.rdzv_conf = "c10d", "store_type=file"
        options.rdzv_endpoint = f"{directory}/launcher"
        options.main_process_port = 0  # unused, but accelerate checks that the port is free
        os.environ.update({STORE_VARIABLE: f"{directory}/trainer", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
        try:
            accelerate.multi_gpu_launcher(options)
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            print_error(f"process {rank} of the trainer failed: {_reason(failure)}")
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


def _reason(failure: ProcessFailure) -> str:
    if failure.exitcode > 0 and not failure.error_file_data.get("message"):
        return f"exit code {failure.exitcode}"
    return failure.message


if __name__ == "__main__":
    main()
