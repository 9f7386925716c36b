"""The accelerate configuration of a job, which its pod mounts as a file.

The file is an annotation of the pod that the kubelet projects into a volume, so it needs no object of its own and stays
as it was when the job began.
"""

import json
from functools import lru_cache
from typing import Any, Final

import yaml

from hypha_contracts.names import GROUP
from hypha_resources.accelerate import Accelerate

ACCELERATE_ANNOTATION: Final = f"{GROUP}/accelerate"
"""On the pod of a job of class train: the accelerate configuration of its processes."""
_DIRECTORY: Final = "/etc/hypha/accelerate"
_FILE_NAME: Final = "accelerate.yaml"
ACCELERATE_FILE: Final = f"{_DIRECTORY}/{_FILE_NAME}"
ACCELERATE_MOUNT: Final = {"name": "accelerate", "mountPath": _DIRECTORY, "readOnly": True}


def process_count(config: Accelerate, devices: int) -> int:
    """Return how many processes train a job: one for each device, or as many as configured for a job without."""
    return devices or config.num_processes or 1


def accelerate_file(config: Accelerate, devices: int) -> str:
    """Return the file's text: the owner's configuration, with the processes that the devices of the job decide.

    It lacks fsdp_sync_module_states, because with False `accelerate launch` refuses efficient loading even for FSDP 2.
    """
    processes = process_count(config, devices)
    left_out: dict[str, Any] = {"parallelism_config": True, "fsdp_config": {"fsdp_sync_module_states"}}
    content: dict[str, Any] = config.model_dump(exclude_none=True, exclude=left_out)
    content |= {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": _distributed_type(config, processes),
        "num_machines": 1,
        "num_processes": processes,
    }
    if not devices:
        content["use_cpu"] = True
    if processes > 1 and _is_tensor_parallel(config):
        content["parallelism_config"] = {"parallelism_config_tp_size": processes}
    return _yaml(json.dumps(content))


@lru_cache(maxsize=64)
def _yaml(text: str) -> str:
    """Return JSON as YAML. Most jobs of a worker have the same file, and PyYAML is slow."""
    return yaml.safe_dump(json.loads(text))


def accelerate_volume() -> dict[str, Any]:
    """Return the volume with the file."""
    annotation = {"fieldPath": f"metadata.annotations['{ACCELERATE_ANNOTATION}']"}
    return {"name": "accelerate", "downwardAPI": {"items": [{"path": _FILE_NAME, "fieldRef": annotation}]}}


def _distributed_type(config: Accelerate, processes: int) -> str:
    if config.distributed_type == "FSDP":
        return "FSDP"  # also for one process, whose parameters may be offloaded to the CPU
    return "MULTI_GPU" if processes > 1 else "NO"  # with use_cpu, the former starts processes on the CPU


def _is_tensor_parallel(config: Accelerate) -> bool:
    parallelism = config.parallelism_config
    return bool(parallelism and (parallelism.parallelism_config_tp_size or 1) > 1)
