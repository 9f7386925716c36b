"""Which changes of HyphaJobs and HyphaWorkers refresh their Application. ArgoCD's own cache of live objects decides."""

import json
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from time import time
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from documentation.commands import as_written
from e2e.cluster.tools import ROOT, ToolError, manifests, tool
from hypha_contracts.names import IGNORE_UPDATES_ANNOTATION, job_name
from hypha_resources.job import Progress
from hypha_worker.runtimes.kubernetes.api import open_api
from hypha_worker.runtimes.kubernetes.jobs import HyphaJobs
from support import jobs
from support.api_server import PrivateApiServer
from support.hypha_jobs import PEER_ID, WORKER, Cluster, make_cluster, until
from support.resources import worker_manifest

pytestmark = pytest.mark.anyio

APPLICATION = "hypha-workers"
COMMAND = "tests/chart/test_docs.py::test_the_command_for_argocd_adds_the_health_checks_and_the_fields_to_ignore"
KINDS = {"applications.argoproj.io", "hyphajobs.hypha.space", "hyphaworkers.hypha.space"}
CHANGES = 5
TIMEOUT_S = 60

Object = dict[str, Any]


class ArgoCD:
    """ArgoCD's settings, and an Application with a worker that has two jobs.

    Attributes:
        annotated: A job as controllers create it.
        bare: A job without the annotation.
    """

    def __init__(self, program: str, cluster: Cluster, hypha_jobs: HyphaJobs, output: Path) -> None:
        self.cluster = cluster
        self.jobs = hypha_jobs
        self.annotated = uuid4()
        self.bare = uuid4()
        self._command = [program, f"--kubeconfig={cluster.server.kubeconfig}"]
        self._output = output

    async def create_objects(self) -> None:
        """Write the status of the worker, and create its jobs, which run."""
        self._merge("hyphaworkers", WORKER, {"metadata": self._tracking(WORKER)})
        await self.write_worker_status(ready=True)
        self.annotated, self.bare = [await self._create_job() for _ in range(2)]
        self._merge("hyphajobs", job_name(self.bare), {"metadata": {"annotations": {IGNORE_UPDATES_ANNOTATION: None}}})
        for task_id in (self.annotated, self.bare):
            self.cluster.say(task_id, "Running")

    async def renew(self, task_id: UUID) -> None:
        """Renew the lease of a job several times, as its controller does."""
        for number in range(CHANGES):
            deadline = time() + 60 + number
            assert await self.jobs.extend(task_id, lambda deadline=deadline: deadline)

    async def report_progress(self, task_id: UUID) -> None:
        """Write the progress of a job several times, as its controller does."""
        for number in range(CHANGES):
            assert await self.jobs.write_progress(task_id, Progress(round=number))

    async def fail(self, task_id: UUID) -> None:
        """Let a job fail, as the operator does."""
        self.cluster.say(task_id, "Failed", reason="OutOfMemory")

    async def write_worker_status(self, *, ready: bool, **status: Any) -> None:
        """Write the status of the worker, as the operator does."""
        at = {"observedGeneration": self.cluster.worker()["metadata"]["generation"]}
        why = {"reason": "Test", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        body = {"conditions": [{"type": "Ready", "status": str(ready), **why, **at}], **at, **status}
        self._merge("hyphaworkers", f"{WORKER}/status", {"status": body})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the cache, which reads ArgoCD's settings when it starts."""
        with self._output.open("wb") as output:
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(trio.run_process, self._command, stdout=output))
                with trio.fail_after(TIMEOUT_S):
                    await until(self._lines)
                yield
                nursery.cancel_scope.cancel()

    async def refreshes(self, change: Awaitable[None]) -> int:
        """Return how many refreshes a change of HyphaJobs or HyphaWorkers causes.

        The cache handles the changes of one kind in order, and a new object always causes a refresh. So once it has
        requested the refresh for a new object, it has handled all earlier changes of that kind.
        """
        before = len(self._lines())
        await change
        worker = worker_manifest(self.cluster.namespace, f"new-{uuid4()}")
        worker["metadata"] |= self._tracking(worker["metadata"]["name"])
        self.cluster.call("POST", self.cluster.path("hyphaworkers"), worker)
        new = {worker["metadata"]["name"], job_name(await self._create_job())}
        with trio.fail_after(TIMEOUT_S):
            await until(lambda: new <= {line["name"] for line in self._lines()[before:]})
        lines = self._lines()[before:]
        assert {line["application"] for line in lines} == {APPLICATION}
        assert all(line["managed"] == (line["kind"] == "HyphaWorker") for line in lines)
        return len([line for line in lines if line["name"] not in new])

    async def _create_job(self) -> UUID:
        job = jobs.job()
        await self.jobs.create(job)
        return job.task_id

    def _tracking(self, worker: str) -> Object:
        """Return the metadata with which ArgoCD marks a worker as a part of the Application."""
        identity = f"{APPLICATION}:hypha.space/HyphaWorker:{self.cluster.namespace}/{worker}"
        return {"annotations": {"argocd.argoproj.io/tracking-id": identity}}

    def _merge(self, kind: str, name: str, body: Object) -> None:
        self.cluster.call("PATCH", self.cluster.path(kind, name), body, "application/merge-patch+json")

    def _lines(self) -> list[Object]:
        complete = [line for line in self._output.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in complete]


@pytest.fixture(scope="module")
def program() -> str:
    """The program that runs ArgoCD's cache."""
    try:
        return tool("argocd-refreshes")
    except ToolError as error:
        pytest.skip(str(error))


@pytest.fixture
async def argocd(program: str, private_api_server: PrivateApiServer, tmp_path: Path) -> AsyncIterator[ArgoCD]:
    """ArgoCD's definitions and the settings that it comes with, on an API server for this test."""
    server = private_api_server.api
    folder = manifests("argocd-refreshes")
    server.kubectl("apply", "--server-side", "-f", str(folder / "crds" / "application-crd.yaml"))
    cluster = make_cluster(server, tmp_path)
    with trio.fail_after(TIMEOUT_S):  # ArgoCD watches the kinds that it finds when it starts
        await until(lambda: set(server.kubectl("api-resources", "--output=name").split()) >= KINDS)
    server.kubectl("create", "namespace", "argocd")
    server.kubectl("apply", "-nargocd", "-k", str(folder / "base" / "config"))
    server.kubectl("apply", "-f", str(ROOT / "charts" / "argocd" / "workers.yaml"))
    async with open_api(cluster.access) as api:
        hypha_jobs = HyphaJobs(api, cluster.config, PEER_ID, keep_ended_s=3600)
        argocd = ArgoCD(program, cluster, hypha_jobs, tmp_path / "refreshes.jsonl")
        await argocd.create_objects()
        yield argocd


async def test_without_our_settings_each_renewal_refreshes_the_application_and_a_failure_does_not(
    argocd: ArgoCD,
) -> None:
    """ArgoCD's own settings ignore each status, but only of objects with the annotation."""
    async with argocd.running():
        assert await argocd.refreshes(argocd.renew(argocd.annotated)) == CHANGES
        assert await argocd.refreshes(argocd.renew(argocd.bare)) == CHANGES
        assert await argocd.refreshes(argocd.report_progress(argocd.annotated)) == 0
        assert await argocd.refreshes(argocd.report_progress(argocd.bare)) == CHANGES
        assert await argocd.refreshes(argocd.fail(argocd.annotated)) == 0
        assert await argocd.refreshes(argocd.write_worker_status(ready=False)) == 0


async def test_with_our_settings_only_a_change_of_health_refreshes_the_application(argocd: ArgoCD) -> None:
    (block,) = as_written(COMMAND)
    path = f"{Path(tool('kubectl')).parent}:{os.environ['PATH']}"
    environment = os.environ | {"KUBECONFIG": str(argocd.cluster.server.kubeconfig), "PATH": path}
    await trio.run_process(["bash", "-euo", "pipefail", "-c", block.text], cwd=ROOT, env=environment)
    async with argocd.running():
        assert await argocd.refreshes(argocd.renew(argocd.annotated)) == 0
        assert await argocd.refreshes(argocd.report_progress(argocd.annotated)) == 0
        assert await argocd.refreshes(argocd.fail(argocd.annotated)) == 1
        assert await argocd.refreshes(argocd.write_worker_status(ready=True, externalAddresses=["/dns4/a/tcp/1"])) == 0
        assert await argocd.refreshes(argocd.write_worker_status(ready=False)) == 1
        # Without the annotation, the settings have no effect.
        assert await argocd.refreshes(argocd.renew(argocd.bare)) == CHANGES
        assert await argocd.refreshes(argocd.report_progress(argocd.bare)) == CHANGES
