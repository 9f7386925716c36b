"""The executor's container: its command, its environment and its share of the node, all from the job and its worker."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from hypha_contracts.names import JOB_FILE_KEY
from hypha_contracts.units import BYTES_PER_GB, devices_needed
from hypha_operator.settings import Settings
from hypha_resources.job import Amounts, HyphaJobSpec
from hypha_resources.worker import Executor, HyphaWorkerSpec

WORK_DIR: Final = "/job/work"
SOCKET: Final = f"{WORK_DIR}/bridge.sock"
JOB_FILE: Final = f"/etc/hypha/job/{JOB_FILE_KEY}"
CLAIM: Final = "gpu"
"""The name of the pod's claim where devices are claimed (DRA)."""

_UNNAMED: Final = Amounts(cpu=0.1, memory=0.25, storage=1.0)
"""What a job gets of that which its lease does not name: in a pod nothing is unlimited."""
_VARIABLES: Final = {"SOCKET_PATH": SOCKET, "WORK_DIR": WORK_DIR, "JOB_FILE": JOB_FILE}
_PLACEHOLDER: Final = re.compile("|".join(f"{{{name}}}" for name in _VARIABLES))
_OPTIONS: Final = ("--socket", SOCKET, "--work-dir", WORK_DIR, "--job-file", JOB_FILE)


class UnbuildableJobError(ValueError):
    """The worker's specification has no place for the job; the text says what to change."""


def executor_of(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> Executor:
    """Return what the worker says of the job's executor; UnbuildableJobError if it has none such."""
    executor = worker.executor(job.executor.class_, job.executor.name)
    if executor is None:
        raise UnbuildableJobError(
            f"worker {job.worker_ref.name} has no executor {job.executor.class_}/{job.executor.name} any more;"
            " add it to spec.executors for the next job"
        )
    return executor


def devices_of(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> int:
    """Return how many devices hold the lease's video memory; UnbuildableJobError if the worker has none."""
    if job.resources.gpu <= 0:
        return 0
    if worker.resources.gpu is None:
        raise UnbuildableJobError(
            f"the lease has {job.resources.gpu:g} GB of GPU memory but worker {job.worker_ref.name} no GPUs any more;"
            " set spec.resources.gpu for the next job"
        )
    # a lease of the whole worker is a sum of floats, which may be a hair above what the devices have
    return min(devices_needed(job.resources.gpu, worker.resources.gpu.memory_gb), worker.resources.gpu.count)


def storage_bytes(job: HyphaJobSpec) -> int:
    """Return what the job may write."""
    return _bytes(job.resources.storage or _UNNAMED.storage)


def memory_bytes(job: HyphaJobSpec) -> int:
    """Return what the executor may hold in memory, /dev/shm included."""
    return _bytes(job.resources.memory or _UNNAMED.memory)


def executor_resources(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> dict[str, Any]:
    """Return requests and limits: the lease. Storage is only requested, since the volume has the limit."""
    amounts = {"cpu": f"{_millicores(job)}m", "memory": str(memory_bytes(job))}
    gpu, devices = worker.resources.gpu, devices_of(job, worker)
    claims: dict[str, Any] = {}
    if gpu and devices:
        if gpu.device_class_name:
            claims = {"claims": [{"name": CLAIM}]}
        else:
            amounts[gpu.resource_name] = str(devices)
    return {"requests": amounts | {"ephemeral-storage": str(storage_bytes(job))}, "limits": amounts, **claims}


def executor_command(executor: Executor, devices: int) -> tuple[list[str], list[str]]:
    """Return the container's command and arguments."""
    added = [_replaced(argument) for argument in executor.args]
    if executor.command is not None:
        return [_replaced(argument) for argument in executor.command], added
    if executor.class_ == "aggregate":
        return ["python", "-m", "hypha_parameter_server"], [*_OPTIONS, *added]
    launch = ["accelerate", "launch", "--num_machines", "1", "--num_processes", str(max(devices, 1))]
    launch += ["--mixed_precision", executor.accelerate.mixed_precision, "--dynamo_backend", "no"]
    launch += ["--multi_gpu"] if devices > 1 else []
    trusting = ["--trust-remote-code"] if executor.trust_remote_code else []
    return [*launch, "-m", "hypha_trainer"], [*_OPTIONS, *trusting, *added]


def executor_environment(job: HyphaJobSpec, executor: Executor, devices: int) -> list[dict[str, str]]:
    """Return the container's environment: defaults, what the worker's owner adds, what the job's place is."""
    defaults = {
        "HOME": WORK_DIR,
        "TMPDIR": f"{WORK_DIR}/tmp",  # noqa: S108 - the job's own
        "HF_HOME": f"{WORK_DIR}/.cache/huggingface",
        "OMP_NUM_THREADS": str(max(_millicores(job) // 1000 // max(devices, 1), 1)),
        "PYTHONUNBUFFERED": "1",
    }
    if not devices:  # or images made for GPUs get all of the node's
        defaults["NVIDIA_VISIBLE_DEVICES"] = "void"
    return to_env(defaults | executor.env | _VARIABLES)


def executor_image(executor: Executor, settings: Settings) -> str:
    """Return the image that the container runs."""
    default = settings.trainer_image if executor.class_ == "train" else settings.parameter_server_image
    return executor.image or default


def to_env(variables: Mapping[str, str]) -> list[dict[str, str]]:
    """Return variables as a container's `env`; a $ in them means itself."""
    return [{"name": name, "value": value.replace("$(", "$$(")} for name, value in variables.items()]


def _replaced(argument: str) -> str:
    return _PLACEHOLDER.sub(lambda match: _VARIABLES[match[0][1:-1]], argument)


def _millicores(job: HyphaJobSpec) -> int:
    return max(int(Decimal(str(job.resources.cpu or _UNNAMED.cpu)) * 1000), 1)


def _bytes(gigabytes: float) -> int:
    return max(int(Decimal(str(gigabytes)) * BYTES_PER_GB), 1)
