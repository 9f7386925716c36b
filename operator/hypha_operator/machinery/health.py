"""The operator's HTTP server: /healthz for the kubelet, /metrics for Prometheus."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from hypha_operator.machinery.audit import LATE_S, Audit
from hypha_operator.machinery.kinds import HYPHA_JOB, WORKER, Key
from hypha_operator.machinery.queue import WorkQueue
from hypha_operator.machinery.store import Store

_STUCK_S: Final = 300.0
"""A reconcile makes a few dozen calls, each with a deadline, so a reconcile that takes longer than this is stuck."""
_BUCKETS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class PortTakenError(Exception):
    """The server cannot listen on its port."""


class Metrics:
    """The operator's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._seconds = Histogram(
            "hypha_operator_reconcile_seconds",
            "Duration of reconciles.",
            ["kind", "outcome"],
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self._calls = Counter(
            "hypha_operator_api_calls", "Calls to the API server.", ["method", "status"], registry=self.registry
        )

    def on_reconcile(self, key: Key, seconds: float, failed: bool) -> None:
        """Record the duration of a reconcile."""
        self._seconds.labels(key.kind.name, "failed" if failed else "done").observe(seconds)

    def on_call(self, method: str, status: int) -> None:
        """Count a call to the API server."""
        self._calls.labels(method, str(status)).inc()

    def track(self, store: Store, queue: WorkQueue, audit: Audit) -> None:
        """Read these components at every scrape."""
        objects = Gauge("hypha_operator_objects", "HyphaWorkers and HyphaJobs.", ["kind"], registry=self.registry)
        for kind in (WORKER, HYPHA_JOB):
            objects.labels(kind.name).set_function(partial(store.count, kind))
        self._gauge("hypha_operator_queue", "Objects that are ready to be reconciled.", lambda: queue.waiting)
        self._gauge("hypha_operator_watch_lag_seconds", "Age of the oldest change without an event.", audit.lag_s)

    def _gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        Gauge(name, description, registry=self.registry).set_function(read)


def problem(queue: WorkQueue, audit: Audit) -> str | None:
    """Return a problem that a restart of the operator would solve, or None."""
    if (late_s := audit.lag_s()) > LATE_S:
        return f"the watch has not shown a change that was listed {late_s:.0f} s ago"
    if (stuck_s := queue.longest_s()) > _STUCK_S:
        return f"a reconcile has been running for {stuck_s:.0f} s"
    return None


@asynccontextmanager
async def serving(port: int, metrics: Metrics, find_problem: Callable[[], str | None]) -> AsyncIterator[None]:
    """Serve both pages on all addresses while the block runs.

    Raises:
        PortTakenError: the port is not available.
    """

    async def healthz(_: web.Request) -> web.Response:
        found = find_problem()
        return web.Response(text=found or "ok", status=503 if found else 200)

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/metrics", show)])
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, None, port).start()
        except OSError as error:
            raise PortTakenError(f"port {port}: {error.strerror}. Choose another port with --port.") from error
        yield
    finally:
        await runner.cleanup()
