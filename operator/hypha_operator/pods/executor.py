"""Derive the executor container's command, environment and resources from the job and its worker."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from hypha_contracts.names import JOB_FILE_KEY, LEASE_GPUS
from hypha_contracts.units import devices_needed, to_bytes
from hypha_operator.pods.accelerate import ACCELERATE_FILE, process_count
from hypha_resources.job import HyphaJobSpec
from hypha_resources.worker import HyphaWorkerSpec
from hypha_resources.worker_executors import Executor

WORK_DIR: Final = "/job/work"
SOCKET: Final = f"{WORK_DIR}/bridge.sock"
JOB_FILE: Final = f"/etc/hypha/job/{JOB_FILE_KEY}"
CLAIM: Final = "gpu"
"""The name of the pod's claim on devices (DRA)."""

_DTYPES: Final = {"no": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "bfloat16"}
"""The dtype of the model in inference, by the executor's mixed precision. Weights are not kept in fp8."""
_VARIABLES: Final = {"SOCKET_PATH": SOCKET, "WORK_DIR": WORK_DIR, "JOB_FILE": JOB_FILE}
_PLACEHOLDER: Final = re.compile("|".join(f"{{{name}}}" for name in _VARIABLES))
_OPTIONS: Final = ("--socket", SOCKET, "--work-dir", WORK_DIR, "--job-file", JOB_FILE)


class UnbuildableJobError(ValueError):
    """The worker's specification does not fit the job."""


def executor_of(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> Executor:
    """Return the worker's entry for the job's executor. Raises UnbuildableJobError if the worker has none."""
    executor = worker.executor(job.executor.class_, job.executor.name)
    if executor is None:
        raise UnbuildableJobError(
            f"worker {job.worker_ref.name} no longer has the executor {job.executor.class_}/{job.executor.name}."
            " Add it to spec.executors for the next job."
        )
    return executor


def devices_of(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> int:
    """Return how many devices hold the lease's GPU memory. Raises UnbuildableJobError if the worker has no devices."""
    if job.resources.gpu <= 0:
        return 0
    if worker.resources.gpu is None:
        raise UnbuildableJobError(
            f"worker {job.worker_ref.name} no longer has GPUs for the lease of {job.resources.gpu:g} GB of GPU memory."
            " Set spec.resources.gpu for the next job."
        )
    # a lease of the complete worker is a sum of floats, which may slightly exceed the devices' memory
    return min(devices_needed(job.resources.gpu, worker.resources.gpu.memory_gb), worker.resources.gpu.count)


def storage_bytes(job: HyphaJobSpec) -> int:
    """Return how many bytes the job may write to disk."""
    return to_bytes(job.resources.storage)


def memory_bytes(job: HyphaJobSpec) -> int:
    """Return how many bytes of memory the executor may use, including /dev/shm."""
    return to_bytes(job.resources.memory)


def executor_resources(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> dict[str, Any]:
    """Return requests and limits from the lease. Storage has no limit here because the volume has one.

    Only a volume on the disk of the node takes the node's storage. A job for a queue does not request storage. Queues
    cover CPU, memory and devices as a rule, and Kueue never admits a job that requests anything else.
    """
    amounts = {"cpu": f"{_millicores(job)}m", "memory": str(memory_bytes(job))}
    gpu, devices = worker.resources.gpu, devices_of(job, worker)
    claims: dict[str, Any] = {}
    if gpu and devices:
        if gpu.device_class_name:
            claims = {"claims": [{"name": CLAIM}]}
        else:
            amounts[gpu.resource_name] = str(devices)
    queued = executor_of(job, worker).queue_name is not None
    on_node = worker.jobs.storage.storage_class_name is None
    storage = {"ephemeral-storage": str(storage_bytes(job))} if on_node and not queued else {}
    return {"requests": amounts | storage, "limits": amounts, **claims}


def executor_command(executor: Executor) -> tuple[list[str], list[str]]:
    """Return the container's command and arguments."""
    added = [_replaced(argument) for argument in executor.args]
    if executor.command is not None:
        return [_replaced(argument) for argument in executor.command], added
    trusting = ["--trust-remote-code"] if executor.trust_remote_code else []
    if executor.class_ == "aggregate":
        return ["python", "-m", "hypha_parameter_server"], [*_OPTIONS, *added]
    if executor.class_ == "inference":  # one process, which spreads the model over all devices
        dtype = _DTYPES[executor.accelerate.mixed_precision]
        return ["python", "-m", "hypha_trainer.inference"], [*_OPTIONS, "--dtype", dtype, *trusting, *added]
    launch = ["python", "-m", "hypha_executor.restart", "-m", "hypha_trainer.launch", "--config_file", ACCELERATE_FILE]
    return [*launch, "-m", "hypha_trainer"], [*_OPTIONS, *trusting, *added]


def executor_environment(
    job: HyphaJobSpec, executor: Executor, devices: int, trace: Mapping[str, str]
) -> list[dict[str, str]]:
    """Return the container's environment: defaults, then the worker's variables, then the job's own."""
    processes = process_count(executor.accelerate, devices) if executor.class_ == "train" else 1
    defaults = {
        "HOME": WORK_DIR,
        "USER": "hypha",  # for libraries that ask who runs them, where the image knows no user of this id
        "TMPDIR": f"{WORK_DIR}/tmp",  # noqa: S108 - a directory of this job alone
        "HF_HOME": f"{WORK_DIR}/.cache/huggingface",
        "OMP_NUM_THREADS": str(max(_millicores(job) // 1000 // processes, 1)),
        "PYTHONUNBUFFERED": "1",
    }
    if not devices:  # otherwise the NVIDIA runtime gives CUDA images all GPUs of the node
        defaults["NVIDIA_VISIBLE_DEVICES"] = "void"
    return to_env({**defaults, **executor.env, **_VARIABLES, LEASE_GPUS: str(devices), **trace})


def to_env(variables: Mapping[str, str]) -> list[dict[str, str]]:
    """Return variables as a container's `env`. References such as $(HOME) are escaped."""
    return [{"name": name, "value": value.replace("$(", "$$(")} for name, value in variables.items()]


def _replaced(argument: str) -> str:
    return _PLACEHOLDER.sub(lambda match: _VARIABLES[match[0][1:-1]], argument)


def _millicores(job: HyphaJobSpec) -> int:
    return max(int(Decimal(str(job.resources.cpu)) * 1000), 1)
