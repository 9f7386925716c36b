"""A network on this machine in which our trainer and the stock trainer train a causal language model together."""

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from e2e.processes import Process
from hypha_devnet import certs
from hypha_devnet.demo import language
from hypha_devnet.demo.models import LANGUAGE, DemoModel
from hypha_devnet.demo.settings import NODES, SERVER, Files, job_config, node_config, worker_config, write_config

OURS, STOCK = "trainer-1", "trainer-2"
ROUNDS = 3
SAMPLES_PER_ROUND = 640
_SLICES = 4


Job = TypeVar("Job", bound="MixedJob")


class MixedJob:
    """The job. `run` starts it."""

    MODEL: ClassVar[DemoModel] = LANGUAGE

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self.files = Files(root, self.MODEL)
        self._stack = stack
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "ACCELERATE_USE_CPU": "true",
        }
        for directory in (self.files.logs, self.files.hub, self.files.dataset, root / "models"):
            directory.mkdir(parents=True)
        certs.make(self.files.certificates, "mixed", NODES)
        self.write_model()
        self._gateway = ""

    def run(self, stock_python: str, reference_server: Path | None, stock: Collection[str] = (STOCK,)) -> Process:
        """Start every node; return the scheduler. The trainers named in `stock` are stock trainers."""
        gateway = self._start("gateway", [*_devnet("gateway"), self._config("gateway", {})])
        self._gateway = gateway.event("listening")["addresses"][0]
        hub = self._start("hub", [*_devnet("hub")[:-1], "--root", str(self.files.hub)])
        self._environment["HF_ENDPOINT"] = hub.event("listening")["url"]
        for name in (OURS, STOCK, SERVER):
            (self.files.root / name).mkdir()
        for name in (OURS, STOCK):
            self._worker(name, {"executors": [self._stock_executor(stock_python, name)]} if name in stock else {})
        if reference_server:
            self._reference_server(reference_server)
        else:
            self._worker(SERVER, {})
        data = self._config("data", {"dataset_path": str(self.files.dataset)})
        self._start("data", [*_devnet("data"), data]).event("announced")
        return self._start(
            "scheduler", [*_devnet("scheduler"), self._config("scheduler", {"scheduler": {"job": self.job()}})]
        )

    @property
    def our_weights(self) -> Path:
        """What our trainer keeps at the end."""
        (folder,) = self.files.trained(OURS).iterdir()
        return folder / "model.safetensors"

    @property
    def stock_weights(self) -> Path:
        """A copy of what the stock trainer has in its work directory at the end."""
        return self.copied_weights(STOCK)

    def copied_weights(self, name: str) -> Path:
        """Return where a stock trainer's weights are at the end."""
        return self.files.root / f"{name}.safetensors"

    def loss(self, weights: Path) -> float:
        """Return the loss of a model on the held-out text."""
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(self.files.untrained))
        model.load_state_dict(load_file(weights))
        return language.score(model.eval(), language.samples()[1])

    def write_model(self) -> None:
        """Write the untrained model and the slices."""
        language.save_untrained(self.files.untrained)
        # The stock trainer cannot send tied weights: SafeTensors refuses tensors that share memory.
        config = LlamaConfig.from_pretrained(self.files.untrained, tie_word_embeddings=False)
        LlamaForCausalLM(config).save_pretrained(self.files.untrained)
        train, _ = language.samples()
        for number, ids in enumerate(train["input_ids"].chunk(_SLICES)):
            save_file({"input_ids": ids.clone(), "labels": ids.clone()}, self.files.dataset / f"{number}.safetensors")

    def job(self) -> dict[str, Any]:
        """Return the scheduler's job."""
        job = job_config(LANGUAGE)
        del job["preprocessor"]  # the stock trainer passes text to tokenizers as tensors
        del job["schedule"]
        job["model"]["input_names"] = ["input_ids", "labels"]
        job["rounds"] |= {"update_rounds": ROUNDS, "avg_samples_between_updates": SAMPLES_PER_ROUND}
        return job

    def _stock_executor(self, python: str, name: str) -> dict[str, Any]:
        # The trainer takes the job as an argument only, and its work directory is deleted at its end.
        command = (
            f'{python} -m hypha.accelerate_executor.training --socket "$SOCKET_PATH" --work-dir "$WORK_DIR" '
            f'--job "$JOB_JSON" && cp "$WORK_DIR/0_global_weights.pt" {self.copied_weights(name)}'
        )
        executor = {"class": "train", "name": "diloco-transformer", "runtime": "process", "cmd": "sh"}
        return executor | {"args": ["-c", command]}

    def _worker(self, name: str, more: Mapping[str, Any]) -> None:
        config = worker_config(self.files, name, self._gateway, self.files.root / name) | dict(more)
        path = write_config(self.files, name, config)
        self._start(name, [sys.executable, "-m", "hypha_worker", "run", "--config", str(path)])

    def _reference_server(self, programs: Path) -> None:
        config = node_config(self.files, SERVER, self._gateway) | {
            "external_addresses": [],
            "exclude_cidr": ["192.0.2.0/24"],
            "relay_circuit": True,
            "work_dir": str(self.files.root / SERVER),
            "resources": {"cpu": 1, "memory": 8, "storage": 10, "gpu": 0},
            "offer": {"price": 1.0, "floor": 1.0, "strategy": {"type": "flexible"}},
            "executors": [{"class": "aggregate", "name": "parameter-server", "runtime": "parameter-server"}],
        }
        del config["crls_pem"]
        path = write_config(self.files, SERVER, config)
        self._start(SERVER, [str(programs / "hypha-worker"), "run", "--config", str(path)])

    def _config(self, name: str, more: Mapping[str, Any]) -> str:
        return str(write_config(self.files, name, {**node_config(self.files, name, self._gateway or None), **more}))

    def _start(self, name: str, command: list[str]) -> Process:
        process = Process(name, command, self.files.logs, self._environment)
        self._stack.callback(process.stop)
        return process


def _devnet(role: str) -> list[str]:
    return [sys.executable, "-m", "hypha_devnet", role, "--events", "--config"]


@contextmanager
def open_mixed_job(root: Path, kind: type[Job]) -> Iterator[Job]:
    """Prepare a job in an empty directory. All its processes end with the context."""
    with ExitStack() as stack:
        yield kind(root, stack)
