"""A part of `benchmarks/gpu_check.sh`: `gpu_job devices`, or `gpu_job train` with options of the trainer's launcher.

`devices` prints what PyTorch sees, and fails without a GPU. `train` runs a job of two rounds through the launcher. With
ACCELERATE_USE_CPU=true, both use the CPU.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.trainer import Scale, job_for, make_files
from benchmarks.trainer_bridge import Bridge

GPU = Scale(layers=12, width=768, length=512, batch_size=16, batches=20, turns=2)
CPU = Scale(layers=2, width=64, length=32, batch_size=4, batches=5, turns=2)


def main() -> int:
    """Run one part; return the exit code."""
    what, *options = sys.argv[1:]
    on_cpu = os.environ.get("ACCELERATE_USE_CPU") == "true"
    return _devices(on_cpu) if what == "devices" else _train(CPU if on_cpu else GPU, options)


def _devices(on_cpu: bool) -> int:
    from hypha_trainer.devices import find_devices  # noqa: PLC0415  # imports torch

    devices = find_devices()
    print(devices)
    return 0 if devices.names or on_cpu else 1


def _train(scale: Scale, options: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name:
        directory, work = Path(name), Path(name, "work")
        bridge = Bridge(work, make_files(directory, scale), scale.batches, scale.turns)
        launch = [sys.executable, "-m", "hypha_trainer.launch", "--num_machines", "1", "--num_processes", "1", *options]
        where = ["--socket", str(bridge.server_address), "--work-dir", str(work), "--job", json.dumps(job_for(scale))]
        environment = {**os.environ, "LEASE_GPUS": "0" if scale is CPU else "1"}
        cpu = ["--cpu"] if scale is CPU else []
        with (
            bridge,
            subprocess.Popen([*launch, *cpu, "-m", "hypha_trainer.training", *where], env=environment) as trainer,
        ):
            for _ in range(scale.turns):
                bridge.wait_for_round(trainer)
                bridge.release()
            code = trainer.wait()
            bridge.shutdown()
        return code


if __name__ == "__main__":
    sys.exit(main())
