"""The demo's numbers, files and configurations. The numbers come from experiments."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomlkit

from hypha_network.identity import Identity

TRAINERS: Final = ("trainer-1", "trainer-2")
SERVER: Final = "parameter-server"
WORKERS: Final = (*TRAINERS, SERVER)
NODES: Final = ("gateway", "data", "scheduler", *WORKERS, "demo")
REPOSITORY: Final = "hypha-demo/digits"


@dataclass(frozen=True)
class Settings:
    """How to train the digits. The network and the single process see the same number of samples.

    Attributes:
        held_out: The share of the images that no training sees.
        samples_per_round: Counted over all trainers.
        steps: The steps over which a trainer's learning rate decays.
        steps_alone: The same for the single process, whose steps are smaller.
    """

    seed: int = 0
    held_out: float = 0.2
    slices: int = 8
    batch_size: int = 32
    samples_per_round: int = 1280
    rounds: int = 20
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    steps: int = 420
    steps_alone: int = 820
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.5
    wanted_accuracy: float = 0.95
    wanted_closeness: float = 0.02


SETTINGS: Final = Settings()


class Files:
    """The paths in the output directory.

    Attributes:
        certificates: Certificates, keys and revocation lists.
        configurations: One TOML file for each node.
        logs: One file for each process.
        dataset: The slices; the directory's name is the dataset's.
        hub: The model hub's repositories.
        model: The untrained model in the hub.
        alone: The model that the single process has trained.
        plot: The plot of the losses.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.certificates = root / "certificates"
        self.configurations = root / "configurations"
        self.logs = root / "logs"
        self.dataset = root / "data" / "digits"
        self.hub = root / "hub"
        self.model = self.hub / REPOSITORY
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


def worker_config(files: Files, worker: str, gateway: str, work_dir: Path) -> dict[str, Any]:
    """Return the configuration of a worker, as its owner would write it."""
    executor: dict[str, Any]
    if worker == SERVER:
        executor = {"class": "aggregate", "name": "parameter-server", "runtime": "parameter-server"}
    else:
        executor = {
            "class": "train",
            "name": "diloco-transformer",
            "runtime": "process",
            "cmd": sys.executable,
            "args": [
                *("-m", "hypha_trainer.training", "--socket", "{SOCKET_PATH}", "--work-dir", "{WORK_DIR}"),
                *("--job-file", "{JOB_FILE}", "--output-dir", str(files.trained(worker))),
            ],
            "env": {"OMP_NUM_THREADS": "1"},
        }
    return {
        **node_config(files, worker, gateway),
        "work_dir": str(work_dir),
        "resources": {"cpu": 1, "memory": 8, "storage": 10},
        # The model hub is on loopback, too. Control groups would outlive a killed worker.
        "jobs": {"allow_private_addresses": True, "limits": False},
        "executors": [executor],
    }


def job_config() -> dict[str, Any]:
    """Return the job that the scheduler runs."""
    needed = {"cpu": 1, "memory": 4, "storage": 2, "gpu": 0}
    return {
        "type": "diloco",
        "dataset": {"dataset": "digits"},
        "model": {
            "type": "image-classification",
            "repository": REPOSITORY,
            "filenames": ["config.json", "model.safetensors"],
            "input_names": ["pixel_values", "labels"],
        },
        "rounds": {
            "update_rounds": SETTINGS.rounds,
            "avg_samples_between_updates": SETTINGS.samples_per_round,
            "max_batch_size": SETTINGS.batch_size,
        },
        "inner_optimizer": {"learning-rate": SETTINGS.learning_rate},
        "outer_optimizer": {"learning-rate": SETTINGS.outer_learning_rate, "momentum": SETTINGS.outer_momentum},
        "schedule": {
            "type": "cosine-with-warmup",
            "warmup_steps": SETTINGS.warmup_steps,
            "training_steps": SETTINGS.steps,
        },
        "resources": {"num_workers": len(TRAINERS), "worker": needed, "parameter_server": needed},
    }


def write_config(files: Files, node: str, values: Mapping[str, Any]) -> Path:
    """Write a node's configuration file."""
    files.configurations.mkdir(exist_ok=True)
    path = files.configurations / f"{node}.toml"
    path.write_text(tomlkit.dumps(values))
    return path
