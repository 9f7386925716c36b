"""The accelerate configuration that a job's pod mounts: what the owner wrote, with the processes of the lease."""

from typing import Any

import pytest
import yaml

from hypha_operator.pods.accelerate import accelerate_file, process_count
from hypha_resources.accelerate import Accelerate

FSDP = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, "fsdp_offload_params": True}}
TENSOR_PARALLEL = {"parallelism_config": {"parallelism_config_tp_size": 8, "parallelism_config_cp_size": 1}}


def content(devices: int, **config: Any) -> dict[str, Any]:
    text = accelerate_file(Accelerate.model_validate(config), devices)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@pytest.mark.parametrize(
    ("config", "devices", "expected"),
    [
        ({}, 0, ("NO", 1, True)),
        ({}, 1, ("NO", 1, None)),
        ({}, 4, ("MULTI_GPU", 4, None)),
        ({"num_processes": 2}, 0, ("MULTI_GPU", 2, True)),
        ({"distributed_type": "MULTI_CPU", "num_processes": 2}, 0, ("MULTI_GPU", 2, True)),
        ({"distributed_type": "MULTI_GPU", "num_processes": 8}, 1, ("NO", 1, None)),
        ({"distributed_type": "NO", "num_processes": 1}, 2, ("MULTI_GPU", 2, None)),
        ({**FSDP, "num_processes": 8}, 2, ("FSDP", 2, None)),
        (FSDP, 1, ("FSDP", 1, None)),
        ({"use_cpu": True}, 2, ("MULTI_GPU", 2, True)),
    ],
)
def test_the_devices_of_a_job_decide_its_processes(
    config: dict[str, Any], devices: int, expected: tuple[str, int, bool | None]
) -> None:
    found = content(devices, **config)
    assert (found["distributed_type"], found["num_processes"], found.get("use_cpu")) == expected
    assert process_count(Accelerate.model_validate(config), devices) == expected[1]


def test_everything_else_stays_as_the_owner_wrote_it() -> None:
    written = {
        "mixed_precision": "bf16",
        "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": False},
        "deepspeed_config": {"gradient_accumulation_steps": 4, "gradient_clipping": 0.5},
        "dynamo_config": {"dynamo_backend": "EAGER"},
        "fp8_config": {"backend": "AO"},
        "enable_cpu_affinity": True,
    }
    assert content(1, **written).items() >= written.items()


@pytest.mark.parametrize(("devices", "expected"), [(1, None), (4, {"parallelism_config_tp_size": 4})])
def test_tensor_parallelism_takes_all_processes_of_the_job(devices: int, expected: dict[str, int] | None) -> None:
    assert content(devices, **TENSOR_PARALLEL).get("parallelism_config") == expected


def test_the_file_lacks_the_option_with_which_accelerate_refuses_fsdp_2() -> None:
    shards = {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": True, "fsdp_sync_module_states": False}
    found = content(2, distributed_type="FSDP", fsdp_config=shards)["fsdp_config"]
    assert found == {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": True}
