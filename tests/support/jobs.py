"""Jobs for tests: specifications, a bridge and executors that are a few lines of Python."""

import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from hypha_messages.job import JobSpec
from hypha_messages.types import Resources
from hypha_worker.job import Job
from hypha_worker.runtimes.process.launch import ExecutorCommand, ProcessConfig

SCHEDULER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
PARAMETER_SERVER = "12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq"
DATA_NODE = "12D3KooWRndVhVZPCiQwHBBBdg769GyrPUW13zxwqQyf9r3ANaba"
STRANGER = "12D3KooWPT98FXMfDQYavZm66EeVjTqP9Nnehn1gyaydqV8L8BQw"

BRIDGE = """
import json, signal, socket, sys, time
config = json.load(open(sys.argv[sys.argv.index("--config") + 1]))
listener = socket.socket(socket.AF_UNIX)
listener.bind(config["socket"])
listener.listen()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    signal.pause()
"""


def train_spec(job_id: UUID | None = None, **changes: Any) -> JobSpec:
    """A training job: data from the scheduler, updates to the parameter server and back."""
    parameter_server = {"type": "peers", "peers": [PARAMETER_SERVER], "strategy": {"type": "All"}}
    config = {
        "model": {
            "task": "image-classification",
            "artifact": {"type": "huggingface", "repository": "org/model", "filenames": ["model.safetensors"]},
            "input-names": ["pixel_values"],
        },
        "data": {"type": "scheduler", "peer": SCHEDULER, "dataset": "digits"},
        "updates": parameter_server,
        "results": parameter_server,
        "optimizer": {"learning-rate": 0.001},
        "batch_size": 8,
    }
    executor = {"class": "train", "descriptor": {"name": "test"}, "config": config | changes}
    return JobSpec.model_validate({"job_id": str(job_id or uuid4()), "executor": executor})


def aggregate_spec(senders: list[str], job_id: UUID | None = None) -> JobSpec:
    """A parameter server's job: updates from the senders, results back to them."""
    peers = {"type": "peers", "peers": senders, "strategy": {"type": "All"}}
    config = {"updates": peers, "results": peers, "optimizer": {"learning-rate": 0.7, "momentum": 0.9}}
    executor = {"class": "aggregate", "descriptor": {"name": "test"}, "config": config}
    return JobSpec.model_validate({"job_id": str(job_id or uuid4()), "executor": executor})


def inference_spec(receivers: list[str], job_id: UUID | None = None) -> JobSpec:
    """An inference job: data from the scheduler, predictions to the receivers."""
    training = train_spec().executor.config
    config = {
        "model": training.model,
        "data": training.data,
        "batch_size": 8,
        "results": {"type": "peers", "peers": receivers, "strategy": {"type": "All"}},
    }
    executor = {"class": "inference", "descriptor": {"name": "test"}, "config": config}
    return JobSpec.model_validate({"job_id": job_id or uuid4(), "executor": executor})


def job(spec: JobSpec | None = None, lease_s: float = 60, **resources: float) -> Job:
    """A job whose lease lasts for a minute."""
    deadline = time.time() + lease_s
    amounts = Resources(**{"cpu": 2, "memory": 4, "storage": 4} | resources)
    return Job(uuid4(), uuid4(), SCHEDULER, spec or train_spec(), amounts, deadline)


def config(work_dir: Path, executor: str, bridge: str = BRIDGE, **changes: Any) -> ProcessConfig:
    """A process runtime whose executor and bridge are these Python programs."""
    args = (sys.executable, "-c", executor, "{SOCKET_PATH}", "{WORK_DIR}", "{JOB_FILE}")
    options: dict[str, Any] = {"kill_after_s": 0.5, "grace_s": 0.3, "drain_s": 5.0}
    executors = {"train/test": ExecutorCommand(args), "aggregate/test": ExecutorCommand(args)}
    return ProcessConfig(work_dir, executors, (sys.executable, "-c", bridge), **options | changes)
