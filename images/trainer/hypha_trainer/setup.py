"""Prepare the training of a job: processes, data, the model on its devices, and its weights."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from transformers.distributed.configuration_utils import DistributedConfig

from hypha_executor.bridge import Bridge
from hypha_executor.errors import JobError
from hypha_trainer.job import TrainJob
from hypha_trainer.log import log
from hypha_trainer.loop import Training
from hypha_trainer.models import disable_cache, load_model, load_preprocessor, set_pad_token
from hypha_trainer.optimizer import make_optimizer, make_schedule
from hypha_trainer.preprocessing import Preparation, ensure_pad_token, slice_names
from hypha_trainer.processes import Processes
from hypha_trainer.replicas import Weights, exchanged_groups
from hypha_trainer.slices import Batches, fetch_slices
from hypha_trainer.tuning import read_tuning, recompute_activations
from hypha_trainer.weights import Tensors


def make_processes(accelerator: Accelerator) -> Processes:
    """Return the processes that accelerate has started. Those of one tensor-parallel group train the same rows."""
    tensor_parallel = _tensor_parallel(accelerator)
    return Processes(
        rank=accelerator.process_index,
        size=accelerator.num_processes,
        data_rank=accelerator.process_index // tensor_parallel,
        data_ranks=accelerator.num_processes // tensor_parallel,
    )


def make_training(
    job: TrainJob,
    bridge: Bridge,
    folders: tuple[Path, Path | None],
    accelerator: Accelerator,
    processes: Processes,
    *,
    trust_remote_code: bool,
) -> tuple[Training, Tensors]:
    """Return the training of a job, ready for its first batch, and (in the main process) the initial weights."""
    if job.batch_size < processes.data_ranks:
        raise JobError(
            f"batch_size {job.batch_size} is too small for {processes.data_ranks} processes; use fewer processes"
        )
    model_folder, preprocessor_folder = folders
    preprocessor = None
    if job.preprocessor and preprocessor_folder:
        task = job.preprocessor.task
        preprocessor = load_preprocessor(task, preprocessor_folder, trust_remote_code=trust_remote_code)
    pad_token_id = ensure_pad_token(preprocessor)
    required, optional = slice_names(job)
    batches = Batches(
        fetch_slices(bridge, job.data),
        required=required,
        optional=optional,
        prepare=Preparation(job, preprocessor),
        batch_size=job.batch_size,
        processes=processes,
        device=accelerator.device,
    )
    plain = load_model(
        job.model.task, model_folder, trust_remote_code=trust_remote_code, placement=_placement(accelerator)
    )
    set_pad_token(plain, pad_token_id)
    groups = exchanged_groups(plain)
    tuning = read_tuning(os.environ)
    if tuning.recompute_activations:
        if accelerator.distributed_type == DistributedType.FSDP:
            disable_cache(plain)  # accelerate does the rest
        else:
            recompute_activations(plain)
    optimizer = make_optimizer(job.optimizer, plain.parameters())
    schedule = make_schedule(job.schedule, optimizer)
    count = sum(parameter.numel() for parameter in plain.parameters())
    # Some models use a parameter only in some batches (experts, dropped layers) or never (mask tokens).
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    model, prepared = accelerator.prepare(plain, optimizer)
    # Not the prepared model: its wrappers (DDP, torch.compile) add to the names of the tensors.
    weights = Weights(plain, groups, main=processes.main, alone=processes.alone, device=accelerator.device)
    start = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.tensors()}
    torch.seed()  # from now on every process draws different random numbers
    if processes.main:
        log(
            f"{type(plain).__name__}, {count:,} parameters, {accelerator.num_processes} x {accelerator.device.type}, "
            f"mixed precision: {accelerator.mixed_precision if accelerator.native_amp else 'no'}"
        )
    return Training(accelerator, processes, model, prepared, schedule, weights, batches, tuning), start


def _placement(accelerator: Accelerator) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that place the model.

    Raises:
        JobError: This trainer does not support the accelerate configuration.
    """
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise JobError("this trainer shards by FSDP 2; set fsdp_config.fsdp_version: 2 in the accelerate configuration")
    size = _tensor_parallel(accelerator)
    if size == 1:
        return {}
    if size != accelerator.num_processes:
        raise JobError(
            f"tp_size is {size} but num_processes {accelerator.num_processes}; make them equal for accelerate"
        )
    return {"distributed_config": DistributedConfig(tp_size=size)}


def _tensor_parallel(accelerator: Accelerator) -> int:
    config = accelerator.parallelism_config
    return config.tp_size if config else 1
