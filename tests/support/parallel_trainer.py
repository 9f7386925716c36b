"""Runs one process of the trainer with accelerate's way to spread a model, which it keeps for GPUs, forced onto CPUs.

Arguments: the way (data-parallel, fsdp or tensor-parallel), then the trainer's own. The launcher, which has it from a
configuration file, states the rest.
"""

import sys

import accelerate
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

WAY = sys.argv[1]


class Accelerator(accelerate.Accelerator):
    """Reports its CPUs as the devices that the way needs."""

    def __init__(self) -> None:
        super().__init__()
        if WAY == "fsdp":
            self.state.fsdp_plugin = FullyShardedDataParallelPlugin()
            self.state.distributed_type = DistributedType.FSDP
        elif WAY == "tensor-parallel":
            self.state.distributed_type = DistributedType.MULTI_GPU


def main() -> None:
    """Run the trainer."""
    ParallelismConfig._validate_accelerator = lambda *_: None
    accelerate.Accelerator = Accelerator
    sys.argv = sys.argv[:1] + sys.argv[2:]

    import runpy  # noqa: PLC0415

    runpy.run_module("hypha_trainer.training", run_name="__main__")


if __name__ == "__main__":
    main()
