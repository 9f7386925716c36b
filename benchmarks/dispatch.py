"""The time from a HyphaJob to its executor's start on a real kubelet, alternating with bare Jobs of the same pod.

The benchmark makes and removes a cluster of its own, as root; the bridge's image comes from `make images`.
DISPATCH_RUNS (50) sets the number of each.
"""

import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import httpx

from benchmarks.connector import job
from benchmarks.figures import Figure, percentile
from benchmarks.nodes import BenchmarkError
from benchmarks.reconcile_load import ROOT, Manifest, create, job_manifest, watch, worker_manifest
from benchmarks.reconcile_operator import Release, until
from e2e.cluster.cluster import Cluster
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.image import BUSYBOX
from e2e.cluster.network import Network
from e2e.cluster.processes import StartError
from e2e.cluster.tools import ToolError
from images.build import settings_of
from images.contexts import OUTPUT

SHARE_MS = 500
NAMESPACE = "benchmark"
_TIMEOUT_S = 120.0
_JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
_JOB_NAME = "batch.kubernetes.io/job-name"
_NOT_COPIED = ("controller-uid", "job-name", "batch.kubernetes.io/", "hypha.space/")


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        runs: Number of HyphaJobs, and of bare Jobs.
    """

    runs: int


FULL = Scale(runs=int(os.environ.get("DISPATCH_RUNS", "50")))
SMALL = Scale(runs=1)


def run(scale: Scale) -> list[Figure]:
    """Return times in ms."""
    archive = OUTPUT / "bridge.tar"
    if not archive.exists():
        raise BenchmarkError(f"{archive} is missing: run `make images`")
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="hypha-benchmark-")))
            cluster = Cluster(directory / "cluster", Network("hypha-bench", 98))
            stack.callback(cluster.down)
            cluster.up()
            cluster.load(archive)
            release = Release(cluster.plane, f"--set=images.tag={settings_of(dict(os.environ)).tag}")
            stack.enter_context(release.operator(directory))
            client = stack.enter_context(cluster.plane.client())
            return Dispatches(client, cluster.plane).measured(scale)
    except (ToolError, StartError) as error:
        raise BenchmarkError(str(error)) from error


class Observed:
    """What the watches have reported: Jobs and starts of their executors, with times, and which Jobs have pods."""

    def __init__(self, plane: ControlPlane) -> None:
        self.job_s: dict[str, float] = {}
        self.started_s: dict[str, float] = {}
        self.pods: set[str] = set()
        watch(plane, _JOBS, "", self._on_job)
        watch(plane, f"/api/v1/namespaces/{NAMESPACE}/pods", _JOB_NAME, self._on_pod)

    def _on_job(self, _type: str, manifest: Manifest) -> None:
        self.job_s.setdefault(manifest["metadata"]["name"], time.monotonic())

    def _on_pod(self, type_: str, pod: Manifest) -> None:
        name = pod["metadata"]["labels"][_JOB_NAME]
        (self.pods.discard if type_ == "DELETED" else self.pods.add)(name)
        for status in pod.get("status", {}).get("containerStatuses", ()):
            if "running" in status["state"] or "terminated" in status["state"]:
                self.started_s.setdefault(name, time.monotonic())


class Dispatches:
    """Runs HyphaJobs and bare Jobs in turn."""

    def __init__(self, client: httpx.Client, plane: ControlPlane) -> None:
        self._client, self._observed = client, Observed(plane)
        client.post("/api/v1/namespaces", json={"metadata": {"name": NAMESPACE}}).raise_for_status()
        manifest = worker_manifest(NAMESPACE, "worker", {}, image=BUSYBOX, command=["sleep", "1"])
        manifest["spec"]["controller"]["template"] = {"spec": {"nodeSelector": {"benchmark": "nowhere"}}}
        self._worker = create(client, "hyphaworkers", manifest)
        account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/worker-job"
        until(lambda: client.get(account).is_success, "the jobs' service account exists", _TIMEOUT_S)

    def measured(self, scale: Scale) -> list[Figure]:
        """Run the benchmark; return its figures."""
        template = self._hypha_job()[2]  # a warm-up: unpacks the images and opens connections
        runs = [(self._hypha_job(), self._bare_job(template)) for _ in range(scale.runs)]
        made, ours = [run[0] for run, _ in runs], [run[1] for run, _ in runs]
        bare_made, bare = [run[0] for _, run in runs], [run[1] for _, run in runs]
        figures = []
        for percent in (50, 99):
            figures += [
                Figure(f"HyphaJob to executor started, p{percent}", percentile(ours, percent), "ms"),
                Figure(f"bare Job to executor started, p{percent}", percentile(bare, percent), "ms"),
                Figure(
                    f"difference, p{percent}",
                    percentile(ours, percent) - percentile(bare, percent),
                    "ms",
                    at_most=SHARE_MS,
                ),
                Figure(f"HyphaJob to its Job seen, p{percent}", percentile(made, percent), "ms", at_most=SHARE_MS),
                Figure(f"bare Job to itself seen, p{percent}", percentile(bare_made, percent), "ms"),
            ]
        return figures

    def _hypha_job(self) -> tuple[float, float, Manifest]:
        """Return the milliseconds until the Job is observed and until the executor has started; and the Job."""
        manifest = job_manifest(self._worker, uuid4())
        name = manifest["metadata"]["name"]
        path = f"{ROOT}/namespaces/{NAMESPACE}/hyphajobs"
        return self._timed(name, path, manifest)

    def _bare_job(self, template: Manifest) -> tuple[float, float, Manifest]:
        """Do the same with a copy of a Job that the operator made."""
        name = f"bare-{uuid4()}"
        manifest = json.loads(json.dumps(template).replace(template["metadata"]["name"], name))
        manifest["metadata"] = {"name": name}
        manifest.pop("status", None)
        manifest["spec"].pop("selector")
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        for label in [label for label in labels if label.startswith(_NOT_COPIED)]:
            del labels[label]
        return self._timed(name, _JOBS, manifest)

    def _timed(self, name: str, path: str, manifest: Manifest) -> tuple[float, float, Manifest]:
        self._make_secret(name)
        started_s = time.monotonic()
        self._client.post(path, json=manifest).raise_for_status()
        until(lambda: name in self._observed.started_s, f"the executor of {name} has started", _TIMEOUT_S, every_s=0.02)
        made: Manifest = self._client.get(f"{_JOBS}/{name}").raise_for_status().json()
        until(lambda: self._is_ended(name), f"{name} has ended", _TIMEOUT_S)
        self._client.delete(f"{path}/{name}", params={"propagationPolicy": "Background"}).raise_for_status()
        until(lambda: name not in self._observed.pods, f"the pod of {name} is gone", _TIMEOUT_S)
        to_job_s, to_start_s = self._observed.job_s[name] - started_s, self._observed.started_s[name] - started_s
        return to_job_s * 1000, to_start_s * 1000, made

    def _is_ended(self, name: str) -> bool:
        status = self._client.get(f"{_JOBS}/{name}").raise_for_status().json().get("status", {})
        return any(condition["type"] in {"Complete", "Failed"} for condition in status.get("conditions", ()))

    def _make_secret(self, name: str) -> None:
        text = job().spec.model_dump_json(by_alias=True, exclude_none=True)
        secret = {"metadata": {"name": name}, "stringData": {"job.json": text}}
        self._client.post(f"/api/v1/namespaces/{NAMESPACE}/secrets", json=secret).raise_for_status()
