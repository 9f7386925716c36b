"""Runs one process of the trainer with accelerate's way to spread a model, which it keeps for GPUs, forced onto CPUs.

Arguments: the way (a key of ENVIRONMENT), then the trainer's own. The ways `from-file` take the rest of the environment
from the launcher, which has it from a configuration file.
"""

import os
import sys

import accelerate
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

WAY = sys.argv[1]
FSDP = {
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
}
REGIONS = {"ACCELERATE_DYNAMO_BACKEND": "EAGER", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "true"}
ENVIRONMENT = {
    "ddp": {},
    "ddp-compiled": {"ACCELERATE_DYNAMO_BACKEND": "EAGER", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"},
    "fsdp": FSDP,
    "fsdp-compiled": {**FSDP, **REGIONS, "FSDP_ACTIVATION_CHECKPOINTING": "true"},
    "fsdp-from-file": {},
    "tensor-parallel-from-file": {},
    "fsdp1": {"FSDP_VERSION": "1"},
    "tensor-parallel": {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
}


class Accelerator(accelerate.Accelerator):
    """Reports its CPUs as the devices that the way needs."""

    def __init__(self) -> None:
        super().__init__()
        if WAY.startswith("fsdp"):
            self.state.fsdp_plugin = FullyShardedDataParallelPlugin()
            self.state.distributed_type = DistributedType.FSDP
        elif WAY.startswith("tensor-parallel"):
            self.state.distributed_type = DistributedType.MULTI_GPU


def main() -> None:
    """Run the trainer."""
    os.environ.update(ENVIRONMENT[WAY])
    ParallelismConfig._validate_accelerator = lambda *_: None
    accelerate.Accelerator = Accelerator
    sys.argv = sys.argv[:1] + sys.argv[2:]

    import runpy  # noqa: PLC0415

    runpy.run_module("hypha_trainer.training", run_name="__main__")


if __name__ == "__main__":
    main()
