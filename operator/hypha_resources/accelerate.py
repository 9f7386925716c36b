"""The content of an accelerate configuration file, as `accelerate config` writes it, in an executor of a HyphaWorker.

The keys are accelerate's own. The rules refuse what the trainer cannot run on one machine, each with the reason.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field

from hypha_resources.common import Passthrough, Schema, rules

Word = Annotated[str, Field(max_length=253)]
Size = Annotated[int, Field(ge=1, le=1024)]


def _one_of(*words: str) -> tuple[Any, ...]:
    """Return the checks of a text that must be one of accelerate's words, of which accelerate ignores the case."""
    remedy = f"write one of {', '.join(words)}"

    def check(word: str) -> str:
        if word.upper() not in words:
            raise ValueError(f"accelerate does not know {word!r}: {remedy}")
        return word

    return AfterValidator(check), Field(json_schema_extra=rules((f"self.upperAscii() in {[*words]}", remedy)))


DynamoBackend = Annotated[
    Word,
    *_one_of(
        "NO",
        "EAGER",
        "AOT_EAGER",
        "INDUCTOR",
        "AOT_TS_NVFUSER",
        "NVPRIMS_NVFUSER",
        "CUDAGRAPHS",
        "OFI",
        "FX2TRT",
        "ONNXRT",
        "TENSORRT",
        "AOT_TORCHXLA_TRACE_ONCE",
        "TORCHXLA_TRACE_ONCE",
        "TVM",
        "HPU_BACKEND",
        "NEURON",
    ),
]
AutoWrapPolicy = Annotated[Word, *_one_of("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")]
StateDictType = Annotated[Word, *_one_of("SHARDED_STATE_DICT", "FULL_STATE_DICT")]
BackwardPrefetch = Annotated[Word, *_one_of("BACKWARD_PRE", "BACKWARD_POST", "NO_PREFETCH")]


class AccelerateTable(Schema):
    """A table of the file, whose keys are accelerate's."""

    model_config = ConfigDict(alias_generator=None)


class DynamoConfig(AccelerateTable):
    """How torch.compile compiles the model."""

    dynamo_backend: DynamoBackend | None = Field(
        default=None, description="Compiler, such as INDUCTOR, which needs an image with a C compiler."
    )
    dynamo_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = Field(
        default=None, description="Mode of the compiler."
    )
    dynamo_use_fullgraph: bool | None = Field(default=None, description="Refuse breaks of the graph.")
    dynamo_use_dynamic: bool | None = Field(default=None, description="Compile for all shapes.")
    dynamo_use_regional_compilation: bool | None = Field(default=None, description="Compile equal layers once.")


class FsdpConfig(AccelerateTable):
    """How FSDP shards the model."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.fsdp_activation_checkpointing_offload) || !self.fsdp_activation_checkpointing_offload"
                    " || (has(self.fsdp_activation_checkpointing) && self.fsdp_activation_checkpointing)"
                ),
                "fsdp_activation_checkpointing_offload needs fsdp_activation_checkpointing: true",
            )
        )
    )

    fsdp_version: int | None = Field(default=None, description="Must be 2.")
    fsdp_auto_wrap_policy: AutoWrapPolicy | None = Field(
        default=None, description="TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP or NO_WRAP."
    )
    fsdp_transformer_layer_cls_to_wrap: Word | None = Field(default=None, description="Classes of layers, by commas.")
    fsdp_min_num_params: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="For SIZE_BASED_WRAP: parameters of a shard."
    )
    fsdp_reshard_after_forward: bool | None = Field(default=None, description="Save memory between both passes.")
    fsdp_offload_params: bool | None = Field(default=None, description="Keep shards in the memory of the CPU.")
    fsdp_cpu_ram_efficient_loading: bool | None = Field(default=None, description="Load the model in one process.")
    fsdp_sync_module_states: bool | None = Field(default=None, description="Of FSDP 1; FSDP 2 ignores it.")
    fsdp_state_dict_type: StateDictType | None = Field(default=None, description="Has no effect: no state is saved.")
    fsdp_activation_checkpointing: bool | None = Field(
        default=None, description="Compute activations again in the backward pass, also without FSDP."
    )
    fsdp_activation_checkpointing_offload: bool | None = Field(
        default=None, description="Keep the saved activations in the memory of the CPU."
    )
    fsdp_ignored_modules: Word | None = Field(default=None, description="Modules that are not sharded.")
    fsdp_backward_prefetch: BackwardPrefetch | None = Field(default=None, description="Of FSDP 1; FSDP 2 ignores it.")
    fsdp_forward_prefetch: bool | None = Field(default=None, description="Of FSDP 1; FSDP 2 ignores it.")
    fsdp_sharding_strategy: Word | None = Field(default=None, description="Of FSDP 1; FSDP 2 ignores it.")
    fsdp_use_orig_params: bool | None = Field(default=None, description="Of FSDP 1; FSDP 2 ignores it.")


class ParallelismConfig(AccelerateTable):
    """How processes share one model."""

    parallelism_config_tp_size: Size | None = Field(
        default=None,
        description="More than 1: tensor parallel over all processes of a job, however many it has. The model must "
        "have a plan for it.",
    )
    parallelism_config_dp_shard_size: Size | None = Field(default=None, description="Must be 1; use FSDP.")
    parallelism_config_dp_replicate_size: Size | None = Field(default=None, description="Must be 1.")
    parallelism_config_cp_size: Size | None = Field(default=None, description="Must be 1.")
    parallelism_config_sp_size: Size | None = Field(default=None, description="Must be 1.")


class DeepspeedConfig(AccelerateTable):
    """The two entries of DeepSpeed's table that the trainer reads, with every distributed_type."""

    gradient_accumulation_steps: Size | None = Field(
        default=None, description="Train each batch in this many parts, which need less memory."
    )
    gradient_clipping: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Norm to which the gradient of a batch is clipped."
    )


_ONE_MACHINE: Final = "the trainer runs on one machine"


class Accelerate(AccelerateTable):
    """The content of an accelerate configuration file, with accelerate's own keys (docs/trainer.md)."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                ("!has(self.distributed_type) || self.distributed_type in ['NO', 'MULTI_CPU', 'MULTI_GPU', 'FSDP']"),
                (
                    "the trainer supports neither DeepSpeed nor Megatron-LM nor TPUs;"
                    " set distributed_type to NO, MULTI_GPU or FSDP"
                ),
            ),
            (
                (
                    "!has(self.distributed_type) || self.distributed_type != 'FSDP'"
                    " || (has(self.fsdp_config) && has(self.fsdp_config.fsdp_version)"
                    " && self.fsdp_config.fsdp_version == 2)"
                ),
                "the trainer shards by FSDP 2; set fsdp_config.fsdp_version: 2",
            ),
            (
                "!has(self.compute_environment) || self.compute_environment == 'LOCAL_MACHINE'",
                f"{_ONE_MACHINE}; set compute_environment: LOCAL_MACHINE",
            ),
            (
                (
                    "(!has(self.num_machines) || self.num_machines == 1)"
                    " && (!has(self.machine_rank) || self.machine_rank == 0)"
                ),
                f"{_ONE_MACHINE}; set num_machines: 1 and machine_rank: 0",
            ),
            (
                "!has(self.tpu_use_cluster) || !self.tpu_use_cluster",
                "the trainer does not support TPUs; set tpu_use_cluster: false",
            ),
            (
                "!has(self.gpu_ids) || self.gpu_ids == 'all'",
                "Kubernetes chooses the devices of a job; set gpu_ids: all, or leave it out",
            ),
            (
                (
                    "!has(self.parallelism_config) || ["
                    "has(self.parallelism_config.parallelism_config_dp_shard_size)"
                    " && self.parallelism_config.parallelism_config_dp_shard_size > 1,"
                    " has(self.parallelism_config.parallelism_config_dp_replicate_size)"
                    " && self.parallelism_config.parallelism_config_dp_replicate_size > 1,"
                    " has(self.parallelism_config.parallelism_config_cp_size)"
                    " && self.parallelism_config.parallelism_config_cp_size > 1,"
                    " has(self.parallelism_config.parallelism_config_sp_size)"
                    " && self.parallelism_config.parallelism_config_sp_size > 1].all(larger, !larger)"
                ),
                ("tensor parallelism takes all processes; of parallelism_config set parallelism_config_tp_size alone"),
            ),
            (
                (
                    "!has(self.parallelism_config) || !has(self.parallelism_config.parallelism_config_tp_size)"
                    " || self.parallelism_config.parallelism_config_tp_size == 1"
                    " || !has(self.distributed_type) || self.distributed_type != 'FSDP'"
                ),
                (
                    "the trainer either shards or runs tensor parallel; set distributed_type: MULTI_GPU,"
                    " or parallelism_config_tp_size: 1"
                ),
            ),
        )
    )

    compute_environment: Word | None = Field(default=None, description="Must be LOCAL_MACHINE.")
    distributed_type: Word | None = Field(
        default=None,
        description="FSDP shards the model, MULTI_GPU, MULTI_CPU and NO train data parallel. A job with one process "
        "trains it alone. DeepSpeed, Megatron-LM and TPUs are refused. Default: NO.",
    )
    num_processes: Size | None = Field(
        default=None,
        description="Processes of a job without devices. A job with devices has a process for each. Default: 1.",
    )
    num_machines: int | None = Field(default=None, description="Must be 1.")
    machine_rank: int | None = Field(default=None, description="Must be 0.")
    mixed_precision: Literal["no", "fp16", "bf16", "fp8"] = Field(
        default="no",
        description="Precision of training, and of the model in inference. fp8 needs an image with torchao or "
        "Transformer Engine.",
    )
    use_cpu: bool | None = Field(default=None, description="Train on the CPU although the job has devices.")
    fsdp_config: FsdpConfig | None = None
    parallelism_config: ParallelismConfig | None = None
    dynamo_config: DynamoConfig | None = None
    deepspeed_config: DeepspeedConfig | None = None
    fp8_config: Passthrough | None = Field(default=None, description="Settings of the library for fp8.")
    gpu_ids: Word | None = Field(default=None, description="Must be all.")
    debug: bool | None = Field(default=None, description="Check each operation between processes.")
    enable_cpu_affinity: bool | None = Field(default=None, description="Bind each process to cores near its device.")
    downcast_bf16: Word | None = Field(default=None, description="Has no effect: it is for TPUs.")
    main_training_function: Word | None = Field(default=None, description="Has no effect: it is for TPUs.")
    rdzv_backend: Word | None = Field(default=None, description="Has no effect: processes meet through a file.")
    same_network: bool | None = Field(default=None, description="Has no effect: it is for several machines.")
    tpu_env: Annotated[list[Word], Field(max_length=64)] | None = Field(
        default=None, description="Has no effect: it is for TPUs."
    )
    tpu_use_cluster: bool | None = Field(default=None, description="Must be false.")
    tpu_use_sudo: bool | None = Field(default=None, description="Has no effect: it is for TPUs.")
