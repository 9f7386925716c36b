"""One HyphaJob on a real control plane, reconciled step by step by an operator whose clock the tests control."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from hypha_contracts.kinds import EVENT, HYPHA_JOB, POD, WORKER, Kind
from hypha_operator.machinery.kinds import Key
from support.api_server import ApiServer
from support.operating import Operating, operating
from support.operator_objects import WORKER as WORKER_NAME
from support.operator_objects import hypha_job, worker_manifest


class Clock:
    """The machine's clock, which tests can advance. Sleeps are short."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.ahead_s)

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.05))


class JobWorld:
    """A namespace with a HyphaWorker and one HyphaJob."""

    def __init__(self, server: ApiServer, namespace: str, lives: AsyncExitStack) -> None:
        self.server, self.namespace = server, namespace
        self.clock = Clock()
        self.name = ""
        self.operating: Operating
        self._lives = lives

    async def restart(self) -> None:
        """Start a new operator with an empty store."""
        await self._lives.aclose()
        life = operating(self.server.kubeconfig, self.namespace, self.clock)
        self.operating = await self._lives.enter_async_context(life)

    @property
    def writes(self) -> list[str]:
        """Method and kind of this operator's writes, without Events."""
        calls = [write.split() for write in self.operating.cluster.writes]
        kinds = [(method, path.partition(f"/namespaces/{self.namespace}/")[2].split("/")[0]) for method, path in calls]
        return [f"{method} {kind}" for method, kind in kinds if kind != "events"]

    def make_worker(self, **changes: Any) -> None:
        """Create the worker, and the service account that its jobs need."""
        self.server.token(self.namespace, f"{WORKER_NAME}-job")
        manifest = worker_manifest(self.namespace, **changes)
        del manifest["metadata"]["uid"]
        self.call("POST", self.path(WORKER), manifest)

    def make_job(self, **spec: Any) -> None:
        """Create the HyphaJob, as a node does."""
        worker = self.call("GET", self.path(WORKER, WORKER_NAME))
        spec.setdefault("lease_s", 3600)
        lease = {"id": "44444444-4444-4444-4444-444444444444", "deadline": self.deadline(spec.pop("lease_s"))}
        manifest = hypha_job(self.namespace, worker_uid=worker["metadata"]["uid"], lease=lease, **spec)
        self.name = manifest["metadata"]["name"]
        for field in ("uid", "creationTimestamp", "generation"):
            del manifest["metadata"][field]
        self.call("POST", self.path(HYPHA_JOB), manifest)

    def deadline(self, seconds: float) -> str:
        """Return a deadline this many seconds from now."""
        return (self.clock.now() + timedelta(seconds=seconds)).isoformat(timespec="seconds")

    def path(self, kind: Kind, name: str | None = None, subresource: str | None = None) -> str:
        return kind.path(self.namespace, name, subresource)

    def call(self, method: str, path: str, body: Any = None, *, patch: str = "merge-patch") -> dict[str, Any]:
        """Call the API server as its administrator."""
        content = f"application/{patch}+json" if method == "PATCH" else "application/json"
        with self.server.client() as client:
            answer = client.request(method, path, content=json.dumps(body), headers={"Content-Type": content})
        assert answer.is_success, answer.text
        return dict(answer.json())

    def items(self, kind: Kind) -> list[dict[str, Any]]:
        return list(self.call("GET", self.path(kind))["items"])

    @property
    def status(self) -> dict[str, Any]:
        """The HyphaJob's status."""
        return dict(self.call("GET", self.path(HYPHA_JOB, self.name)).get("status") or {})

    @property
    def pods(self) -> list[dict[str, Any]]:
        return self.items(POD)

    def events(self) -> list[tuple[str, str]]:
        """Type and reason of the Events about the HyphaJob."""
        about = [event for event in self.items(EVENT) if event["involvedObject"]["kind"] == "HyphaJob"]
        return [(event["type"], event["reason"]) for event in about]

    def cancel(self, reason: str) -> None:
        """Set `spec.cancel`, as a node does."""
        self.call("PATCH", self.path(HYPHA_JOB, self.name), {"spec": {"cancel": {"reason": reason}}})

    def end_pod(self, exit_code: int = 0, **terminated: Any) -> None:
        """Write the end of the pod, as a kubelet does."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        pod = self.pods[0]
        common = {"image": "x", "imageID": "", "ready": False, "restartCount": 0}
        times = {"startedAt": now, "finishedAt": now}
        bridge = {"terminated": {"exitCode": 0, "reason": "Completed", **times}}
        executor = {"terminated": {"exitCode": exit_code, "reason": "Error", **times, **terminated}}
        status = {
            "phase": "Failed" if exit_code else "Succeeded",
            "initContainerStatuses": [{"name": "bridge", "state": bridge, **common}],
            "containerStatuses": [{"name": "executor", "state": executor, **common}],
        }
        self.call("PATCH", self.path(POD, pod["metadata"]["name"], "status"), {"status": status})

    async def step(self, *, observe: bool = True) -> float | None:
        """List all objects, unless `observe` is False, and reconcile once."""
        if observe:
            await self.operating.observe()
        return await self.operating.reconcile(Key(HYPHA_JOB, self.namespace, self.name))

    async def until(self, condition: Callable[[], object], timeout_s: float = 30) -> None:
        """Reconcile repeatedly until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {self.status} {self.writes}"
            await self.step()
            await asyncio.sleep(0.05)

    async def until_phase(self, *phases: str, timeout_s: float = 30) -> None:
        """Reconcile until the HyphaJob is in one of these phases."""
        await self.until(lambda: self.status.get("phase") in phases, timeout_s)


@asynccontextmanager
async def open_job_world(server: ApiServer, **worker: Any) -> AsyncIterator[JobWorld]:
    """A new namespace with a HyphaWorker, and an operator that the test drives."""
    async with AsyncExitStack() as lives:
        world = JobWorld(server, server.namespace(), lives)
        world.make_worker(**worker)
        await world.restart()
        yield world
