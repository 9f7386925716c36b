"""`kubectl hypha` as a process, and a namespace as operator and nodes leave it."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from hypha_contracts.kinds import HYPHA_JOB, Manifest
from hypha_contracts.reasons import WorkerReason
from support.api_server import ApiServer
from support.people import User
from support.resources import PEER, job_manifest, worker_manifest

SCHEDULER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
TASK = UUID("6f3c0c1e-0000-4000-8000-000000000001")
FAILED_TASK = UUID("b2d94c77-0000-4000-8000-000000000002")


def kubectl_hypha(
    kubeconfig: Path | str, *arguments: str, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the plugin with a kubeconfig to its end."""
    command = [sys.executable, "-m", "hypha_kubectl", *arguments]
    environ = os.environ | {"KUBECONFIG": str(kubeconfig), "COLUMNS": "160"} | environment
    return subprocess.run(command, env=environ, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def ago(seconds: float) -> str:
    """Return a time in the past as the API has it."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


def condition(type_: str, status: bool, reason: str, message: str = "") -> dict[str, Any]:
    """Return a condition."""
    return {
        "type": type_,
        "status": str(status),
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


CONNECTED = {
    "peerId": PEER,
    "gateways": ["12D3KooWGateway"],
    "connectedGateways": 1,
    "circuits": ["/dns4/gateway.example.org/tcp/4001/p2p/12D3KooWGateway/p2p-circuit"],
    "healthy": True,
    "certificateExpires": "2031-05-01T00:00:00Z",
    "podName": "gpu-controller-1",
}
CAPACITY = {"cpu": 32.0, "memory": 137.4, "storage": 1099.5, "gpu": 103.1}


class Scene:
    """Writes workers and jobs of one namespace with their status, as operator and node do."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.server, self.namespace = server, namespace
        self.user = User(server, namespace)

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the plugin in the namespace as the administrator."""
        return kubectl_hypha(self.server.kubeconfig, *arguments, "-n", self.namespace, **options)

    def worker(self, name: str = "gpu", **spec: Any) -> Manifest:
        """Make a worker of which nobody has reported."""
        offer = {"strategy": "flexible", "price": 90, "floor": 80}
        return self.user.apply(worker_manifest(self.namespace, name, **{"offer": offer, **spec}))

    def serving(self, name: str = "gpu", *, node: Manifest | None = None, **spec: Any) -> Manifest:
        """Make a worker that makes offers."""
        worker = self.worker(name, **spec)
        self.say(
            worker, condition("Ready", True, WorkerReason.SERVING, "Connected to 1 gateway; the node makes offers.")
        )
        self.user.status(worker, "hypha-worker", node=CONNECTED | (node or {}))
        return worker

    def say(self, worker: Manifest, *conditions: Manifest, enabled: bool = True, **status: Any) -> None:
        """Write the operator's part of a worker's status."""
        observed = {"observedGeneration": worker["metadata"]["generation"], "capacity": CAPACITY}
        offering = {"enabled": enabled}
        self.user.status(
            worker, "hypha-operator", **{**observed, "conditions": conditions, "offering": offering, **status}
        )

    def job(self, worker: Manifest, phase: str, task_id: UUID = TASK, **status: Any) -> Manifest:
        """Make a job in a phase, whose lease began ten minutes ago."""
        lease = {
            "id": "00000000-0000-4000-8000-00000000000a",
            "deadline": ago(-25),
            "price": 100,
            "accepted": ago(600),
        }
        job = self.user.apply(job_manifest(self.namespace, worker, task_id, scheduler=SCHEDULER, lease=lease))
        self.phase(job, phase, **status)
        return job

    def phase(
        self, job: Manifest, phase: str, *conditions: Manifest, progress: Manifest | None = None, **status: Any
    ) -> None:
        """Write the status of a job: the operator's part, and the node's progress."""
        started = {} if phase in ("Pending", "Starting") else {"startTime": ago(500)}
        over = {"completionTime": ago(100)} if phase in ("Succeeded", "Failed") else {}
        written = {"phase": phase, "conditions": conditions, "podName": f"{job['metadata']['name']}-x7k2p"}
        self.user.status(job, "hypha-operator", **{**written, **started, **over, **status})
        if progress:
            self.user.status(job, "hypha-worker", progress=progress)

    def jobs(self) -> list[Manifest]:
        """Return the HyphaJobs of the namespace."""
        with self.server.client() as client:
            return list(client.get(HYPHA_JOB.path(self.namespace)).json()["items"])


def account(scheduler: str, leases: int, seconds: float, earned: float) -> dict[str, Any]:
    """Return the account of a scheduler."""
    return {"scheduler": scheduler, "leases": leases, "leasedSeconds": seconds, "earned": earned}


def furnish(scene: Scene) -> None:
    """Make a worker with a job that runs and one that failed, a suspended one, and one that cannot start."""
    vacant = {
        "id": "00000000-0000-4000-8000-00000000000b",
        "scheduler": SCHEDULER,
        "requestId": "00000000-0000-4000-8000-00000000000c",
        "executors": [{"class": "aggregate", "name": "parameter-server"}],
        "resources": {"cpu": 4, "memory": 16, "storage": 50, "gpu": 0},
        "price": 85,
        "accepted": ago(20),
    }
    node = {
        "allocated": {"cpu": 8, "memory": 32, "storage": 100, "gpu": 51.5},
        "activeLeases": 2,
        "activeJobs": 1,
        "leases": [vacant],
        "accounts": [account(SCHEDULER, 12, 15_120, 1_512_000), account(PEER, 1, 60, 4_800)],
        "requests": {"considered": 34, "refused": 66},
    }
    gpu = scene.serving(node=node)
    progress = {"round": 12, "batches": 480, "samples": 61_440, "samplesPerSecond": 131.5, "metrics": {"loss": 0.03125}}
    scene.job(gpu, "Running", progress=progress, nodeName="node-1", reason="ExecutorRuns")
    failed = scene.job(gpu, "Failed", FAILED_TASK, reason="OutOfMemory")
    message = "The executor needed more than the 16 GB of its lease."
    scene.phase(failed, "Failed", condition("Ready", False, "OutOfMemory", message), reason="OutOfMemory")
    resting = scene.serving("resting", suspend=True)
    scene.say(resting, condition("Ready", True, WorkerReason.SUSPENDED, "The node makes no new offers."))
    broken = scene.worker("broken")
    missing = WorkerReason.SECRET_MISSING
    scene.say(broken, condition("Ready", False, missing, f"Secret broken-identity is missing. {missing.remedy}"))
