"""The reference implementation's gateway, data node and scheduler, from HYPHA_BIN, beside the devnet."""

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tomlkit

from e2e.devnet import NEEDED, Devnet
from e2e.kube import eventually
from e2e.processes import Process
from hypha_devnet.demo.models import DIGITS
from hypha_devnet.demo.settings import certificate_keys, job_config

DONE: Final = "Job is completed."
GPU: Final = {"count": 1, "memory": "32G"}
"""The reference scheduler's batch size: how often the GPU memory that a job requests fits into a worker's offer."""


@dataclass
class Reference:
    """The reference nodes, with certificates of the devnet's authority.

    Args:
        programs: the directory of hypha-gateway, hypha-data and hypha-scheduler.
        devnet: the devnet whose hub and slices they use.
    """

    programs: Path
    devnet: Devnet
    gateway: str = field(init=False)
    _processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        with socket.create_server((self.devnet.host, 0)) as free:
            self.gateway = f"/ip4/{self.devnet.host}/tcp/{free.getsockname()[1]}"

    def start(self) -> None:
        """Start gateway and data node."""
        addresses = {"listen_addresses": [self.gateway], "external_addresses": [self.gateway]}
        common = self._common("gateway")
        del common["gateway_addresses"], common["relay_circuit"]
        self._start("gateway", common | addresses)
        host, port = self.gateway.split("/")[2::2]
        eventually("the gateway listens", lambda: _listens(host, int(port)), 30)
        common = self._common("data")
        del common["external_addresses"]
        self._start("data", common | {"dataset_path": str(self.devnet.files.dataset)})

    def train(self, rounds: int) -> Process:
        """Start a job that trains the digits."""
        job = job_config()
        del job["schedule"]
        job["rounds"] |= {"update_rounds": rounds, "max_batch_size": DIGITS.batch_size}
        job["resources"] |= {
            "worker": NEEDED["trainer"] | {"gpu": 1.0},
            "parameter_server": NEEDED["server"] | {"gpu": 0.0},
        }
        return self._start("scheduler", self._common("scheduler") | {"scheduler": {"job": job}})

    def stop(self) -> None:
        """End all."""
        for process in reversed(self._processes):
            process.stop()

    def _common(self, name: str) -> dict[str, Any]:
        node = f"reference-{name}"
        self.devnet.certify(node)
        keys = certificate_keys(self.devnet.files, node)
        del keys["crls_pem"]
        return {
            **keys,
            "gateway_addresses": [self.gateway],
            "listen_addresses": [f"/ip4/{self.devnet.host}/tcp/0"],
            "external_addresses": [],
            "exclude_cidr": ["192.0.2.0/24"],
            "relay_circuit": True,
        }

    def _start(self, name: str, config: dict[str, Any]) -> Process:
        files = self.devnet.files
        path = files.configurations / f"reference-{name}.toml"
        path.write_text(tomlkit.dumps(config))
        command = [str(self.programs / f"hypha-{name}"), "run", "--config", str(path)]
        environment = {**os.environ, "RUST_LOG": "info", "NO_COLOR": "1"}
        process = Process(f"reference-{name}", command, files.logs, environment)
        self._processes.append(process)
        return process


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except OSError:
        return False
    return True
