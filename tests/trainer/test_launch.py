"""The launcher: what it refuses, and that the exit code and the last line are those of the failed process."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DynamoBackend, FullyShardedDataParallelPlugin, TorchDynamoPlugin, constants
from accelerate.utils.launch import prepare_multi_gpu_env
from pydantic import ValidationError

from hypha_executor.errors import JobError
from hypha_operator.pods.accelerate import accelerate_file
from hypha_resources.accelerate import Accelerate, DynamoConfig, FsdpConfig, ParallelismConfig
from hypha_trainer.launch import check_options
from hypha_trainer.tuning import Tuning, read_tuning
from support.trainer import Bridge, Hub, job_spec

from .conftest import OpenBridge

LAUNCH = (sys.executable, "-m", "hypha_trainer.launch")


def launch(bridge: Bridge, *options: str, batch_size: int = 8) -> "subprocess.Popen[str]":
    where = ["--socket", str(bridge.socket), "--work-dir", str(bridge.work_dir)]
    job = ["--job", json.dumps(job_spec(batch_size=batch_size))]
    command = [*LAUNCH, *options, "-m", "hypha_trainer.training", *where, *job]
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_for_gpus_that_are_not_there_send_nothing_and_say_why(
    hub: Hub, open_bridge: OpenBridge, tmp_path: Path
) -> None:
    (tmp_path / "accelerate.yaml").write_text(accelerate_file(Accelerate(), devices=2))
    process = launch(open_bridge(hub), "--config_file", str(tmp_path / "accelerate.yaml"))
    output = process.communicate()[0]
    assert process.returncode == 2, output
    last = output.splitlines()[-1]
    failed = r"error: process [01] of the trainer failed: accelerate starts 2 processes, one for each GPU"
    assert re.match(failed, last), output
    assert "sees none" in last
    assert hub.gradients == []


def test_a_single_process_ends_with_its_own_exit_code_and_last_line(
    hub: Hub, open_bridge: OpenBridge, tmp_path: Path
) -> None:
    (tmp_path / "accelerate.yaml").write_text('distributed_type: "NO"\nmixed_precision: "no"\n')
    process = launch(open_bridge(hub), "--config_file", str(tmp_path / "accelerate.yaml"), batch_size=0)
    output = process.communicate()[0]
    assert process.returncode == 2, output
    assert output.splitlines()[-1].startswith("error: job.executor.config.batch_size must be a number"), output


def test_a_terminated_launcher_terminates_its_single_process(hub: Hub, open_bridge: OpenBridge) -> None:
    hub.trainers = 2  # so the update never comes
    process = launch(open_bridge(hub), "--num_machines", "1", "--num_processes", "1", "--dynamo_backend", "no")
    assert process.stdout is not None
    assert any("pseudo-gradient sent" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143


CONFIGURATION = """
distributed_type: "NO"
use_cpu: true
mixed_precision: bf16
dynamo_backend: EAGER
fsdp_config: {fsdp_activation_checkpointing: true}
deepspeed_config: {gradient_accumulation_steps: 4, gradient_clipping: 0.5}
"""


def environment_of(directory: Path) -> dict[str, str]:
    """Return the environment that the launcher makes of the file in a directory."""
    (directory / "script.py").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    command = [*LAUNCH, "--config_file", str(directory / "accelerate.yaml"), str(directory / "script.py")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = json.loads(output.splitlines()[-1])
    return found


def test_the_entries_of_the_configuration_file_reach_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "accelerate.yaml").write_text(CONFIGURATION)
    found = environment_of(tmp_path)
    assert read_tuning(found) == Tuning(parts=4, max_gradient_norm=0.5, recompute_activations=True)
    assert found["ACCELERATE_USE_CPU"].lower() == "true"
    assert found["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert found["ACCELERATE_DYNAMO_BACKEND"] == "EAGER"


def test_the_operator_s_file_reaches_the_trainer(tmp_path: Path) -> None:
    configuration = {
        "mixed_precision": "bf16",
        "dynamo_config": {"dynamo_backend": "EAGER"},
        "fsdp_config": {"fsdp_activation_checkpointing": True},
        "deepspeed_config": {"gradient_accumulation_steps": 4, "gradient_clipping": 0.5},
    }
    (tmp_path / "accelerate.yaml").write_text(accelerate_file(Accelerate.model_validate(configuration), devices=0))
    found = environment_of(tmp_path)
    assert read_tuning(found) == Tuning(parts=4, max_gradient_norm=0.5, recompute_activations=True)
    assert found["ACCELERATE_USE_CPU"].lower() == "true"
    assert (found["ACCELERATE_MIXED_PRECISION"], found["ACCELERATE_DYNAMO_BACKEND"]) == ("bf16", "EAGER")


def test_the_accelerate_fields_of_a_hyphaworker_are_keys_that_accelerate_has() -> None:
    options = {option.dest for option in launch_command_parser()._actions}
    for model, prefix in ((FsdpConfig, "fsdp_"), (DynamoConfig, "dynamo_")):
        expected = {option for option in options if option.startswith(prefix)}
        assert set(model.model_fields) - {"fsdp_ignored_modules"} == expected
    assert set(ParallelismConfig.model_fields) <= options
    assert set(Accelerate.model_fields) <= set(ClusterConfig.__dataclass_fields__)


def accepts(model: type[FsdpConfig] | type[DynamoConfig], field: str, word: str) -> bool:
    try:
        model.model_validate({field: word})
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("model", "field", "words"),
    [
        (DynamoConfig, "dynamo_backend", [backend.value for backend in DynamoBackend]),
        (FsdpConfig, "fsdp_auto_wrap_policy", constants.FSDP_AUTO_WRAP_POLICY),
        (FsdpConfig, "fsdp_state_dict_type", constants.FSDP2_STATE_DICT_TYPE),
        (FsdpConfig, "fsdp_backward_prefetch", constants.FSDP_BACKWARD_PREFETCH),
    ],
)
def test_a_hyphaworker_takes_exactly_accelerate_s_words_in_upper_and_lower_case(
    model: type[FsdpConfig] | type[DynamoConfig], field: str, words: list[str]
) -> None:
    (rule,) = model.model_json_schema()["properties"][field]["anyOf"][0]["x-kubernetes-validations"]
    assert sorted(re.findall("'([A-Z0-9_]+)'", rule["rule"])) == sorted(words)
    assert all(accepts(model, field, word) and accepts(model, field, word.lower()) for word in words)
    assert not accepts(model, field, "NONSENSE")


def test_a_hyphaworker_takes_the_modes_of_the_compiler() -> None:
    assert all(accepts(DynamoConfig, "dynamo_mode", mode) for mode in constants.TORCH_DYNAMO_MODES)
    assert not accepts(DynamoConfig, "dynamo_mode", "fast")


def accelerate_reads(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment that accelerate's launcher makes of the operator's file for two devices."""
    file = tmp_path / "accelerate.yaml"
    file.write_text(accelerate_file(Accelerate.model_validate(config), devices=2))
    read, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(file), "script.py"]))
    read.main_process_port = 0
    environment: dict[str, str] = prepare_multi_gpu_env(read)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.mark.parametrize("synchronised", [False, True])
def test_accelerate_takes_a_file_whatever_it_says_about_an_option_of_fsdp_1(
    synchronised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "transformer_based_wrap",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_backward_prefetch": "BACKWARD_PRE",
        "fsdp_cpu_ram_efficient_loading": True,
        "fsdp_sync_module_states": synchronised,
    }
    found = accelerate_reads({"distributed_type": "FSDP", "fsdp_config": shards}, tmp_path, monkeypatch)
    assert (found["FSDP_VERSION"], found["FSDP_CPU_RAM_EFFICIENT_LOADING"]) == ("2", "true")
    assert FullyShardedDataParallelPlugin().fsdp_version == 2


def test_accelerate_takes_a_compiler_in_lower_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate_reads({"dynamo_config": {"dynamo_backend": "aot_eager"}}, tmp_path, monkeypatch)
    assert TorchDynamoPlugin().backend == DynamoBackend.AOT_EAGER


def options(**changes: object) -> argparse.Namespace:
    given: dict[str, object] = {
        "num_machines": 1,
        "num_processes": 1,
        "multi_gpu": False,
        "use_fsdp": False,
        "use_deepspeed": False,
        "use_megatron_lm": False,
        "tpu": False,
        "mixed_precision": "no",
        "dynamo_backend": "no",
        **changes,
    }
    return argparse.Namespace(**given)


@pytest.mark.parametrize(
    ("changes", "local", "says"),
    [
        ({"num_processes": 2}, True, "num_processes is 2, but accelerate starts one process for this distributed_type"),
        ({"num_machines": 2, "multi_gpu": True}, True, "this trainer runs on one machine"),
        ({}, False, "this trainer runs on one machine"),
        ({"use_deepspeed": True}, True, "set distributed_type to NO, MULTI_GPU or FSDP"),
        ({"mixed_precision": "fp8"}, True, "mixed_precision is fp8, and this environment has no library for it"),
    ],
)
def test_a_configuration_that_would_not_start_the_processes_it_names_is_refused(
    changes: dict[str, object], local: bool, says: str
) -> None:
    check_options(options(), local=True)
    with pytest.raises(JobError, match=says):
        check_options(options(**changes), local=local)
