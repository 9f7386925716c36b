"""The demo's files, nodes and their configurations."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tomlkit

from hypha_devnet.demo.models import DIGITS, DemoModel
from hypha_network.identity import Identity

TRAINERS: Final = ("trainer-1", "trainer-2")
SERVER: Final = "parameter-server"
WORKERS: Final = (*TRAINERS, SERVER)
SHOWN: Final = TRAINERS[0]
"""The worker whose status page the demo turns on."""
NODES: Final = ("gateway", "data", "scheduler", "inference", *WORKERS, "demo")
NEEDED: Final = {"cpu": 1, "memory": 4, "storage": 2, "gpu": 0}
"""The resources that a job needs of each worker, in cores and GB."""
_OPTIONS: Final = ("--socket", "{SOCKET_PATH}", "--work-dir", "{WORK_DIR}", "--job-file", "{JOB_FILE}")


class Files:
    """The paths in the output directory.

    Attributes:
        certificates: Certificates, keys and revocation lists.
        configurations: One TOML file for each node.
        logs: One file for each process.
        dataset: The slices to train on; the directory's name is the dataset's.
        held_out: The slices of held-out samples, with their labels.
        predictions: What the inference job says about them.
        hub: The model hub's repositories.
        model: The demo's model.
        untrained: The untrained model in the hub.
        alone: The model that the single process has trained.
        plot: The plot of the losses.
    """

    def __init__(self, root: Path, model: DemoModel = DIGITS) -> None:
        self.root = root
        self.model = model
        self.certificates = root / "certificates"
        self.configurations = root / "configurations"
        self.logs = root / "logs"
        self.dataset = root / "data" / model.name
        self.held_out = root / "data" / f"{model.name}-held-out"
        self.predictions = root / "predictions"
        self.hub = root / "hub"
        self.untrained = self.hub / model.repository
        self.alone = root / "models" / "single-process"
        self.plot = root / "loss.png"

    def trained(self, trainer: str) -> Path:
        """Return where a trainer saves its model, in a directory named after the job."""
        return self.root / "models" / trainer


def certificate_keys(files: Files, node: str) -> dict[str, str]:
    """Return the keys of a node's configuration that name its certificates."""
    paths = {key: str(files.certificates / f"{node}-{key}.pem") for key in ("cert", "key", "trust")}
    return {f"{key}_pem": path for key, path in paths.items()} | {"crls_pem": str(files.certificates / "crls.pem")}


def load_identity(files: Files, node: str) -> Identity:
    """Load a node's identity."""
    cert, key, trust, crls = map(Path, certificate_keys(files, node).values())
    return Identity.load(cert, key, trust, crls)


def node_config(files: Files, node: str, gateway: str | None) -> dict[str, Any]:
    """Return the configuration of a node: on loopback, at a port that the system chooses."""
    gateways = {"gateway_addresses": [gateway]} if gateway else {}
    return {
        **certificate_keys(files, node),
        **gateways,
        "listen_addresses": ["/ip4/127.0.0.1/tcp/0"],
        "exclude_cidr": [],  # the demo's network is on loopback
    }


def worker_config(files: Files, worker: str, gateway: str, work_dir: Path, page: str | None = None) -> dict[str, Any]:
    """Return the configuration of a worker, as its owner would write it. `page` is where it serves its status page."""
    if worker == SERVER:
        executors = [{"class": "aggregate", "name": "parameter-server", "runtime": "parameter-server"}]
    else:
        kept = ["--output-dir", str(files.trained(worker))]
        restarted = ["-m", "hypha_executor.restart", "-m", "hypha_trainer.training"]
        executors = [
            _program("train", "diloco-transformer", [*restarted, *_OPTIONS, *kept]),
            _program("inference", "transformers", ["-m", "hypha_trainer.inference", *_OPTIONS]),
        ]
    return {
        **node_config(files, worker, gateway),
        "work_dir": str(work_dir),
        "resources": {"cpu": 1, "memory": 8, "storage": 10},
        # The model hub is on loopback, too. Control groups would outlive a killed worker.
        "jobs": {"allow_private_addresses": True, "limits": False},
        "executors": executors,
        **({"status_page": {"listen": page}} if page else {}),
    }


def _program(class_: str, name: str, args: list[str]) -> dict[str, Any]:
    program = {"runtime": "process", "cmd": sys.executable, "args": args, "env": {"OMP_NUM_THREADS": "1"}}
    return {"class": class_, "name": name, **program}


def job_config(model: DemoModel = DIGITS) -> dict[str, Any]:
    """Return the job that the scheduler runs."""
    tokenizer = {
        "type": "tokenizer",
        "repository": model.repository,
        "filenames": ["tokenizer.json", "tokenizer_config.json"],
        "input_names": ["text"],
    }
    return {
        "type": "diloco",
        "dataset": {"dataset": model.name},
        "model": {
            "type": model.type,
            "repository": model.repository,
            "filenames": ["config.json", "model.safetensors"],
            "input_names": list(model.input_names),
        },
        **({"preprocessor": tokenizer} if model.tokenized else {}),
        "rounds": {
            "update_rounds": model.rounds,
            "avg_samples_between_updates": model.samples_per_round,
            "max_batch_size": model.batch_size,
        },
        "inner_optimizer": {"learning-rate": model.learning_rate},
        "outer_optimizer": {"learning-rate": model.outer_learning_rate, "momentum": model.outer_momentum},
        "schedule": {
            "type": "cosine-with-warmup",
            "warmup_steps": model.warmup_steps,
            "training_steps": model.steps(model.batch_size * len(TRAINERS)),
        },
        "resources": {"num_workers": len(TRAINERS), "worker": NEEDED, "parameter_server": NEEDED},
    }


def write_config(files: Files, node: str, values: Mapping[str, Any]) -> Path:
    """Write a node's configuration file."""
    files.configurations.mkdir(exist_ok=True)
    path = files.configurations / f"{node}.toml"
    path.write_text(tomlkit.dumps(values))
    return path
