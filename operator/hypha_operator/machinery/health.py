"""The operator's HTTP server: /healthz and /readyz for the kubelet, /metrics for Prometheus."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from opentelemetry.metrics import Meter, Observation
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest

from hypha_contracts.kinds import HYPHA_JOB, WORKER
from hypha_operator.machinery.audit import LATE_S, Audit
from hypha_operator.machinery.election import Election
from hypha_operator.machinery.kinds import Key
from hypha_operator.machinery.queue import WorkQueue
from hypha_operator.machinery.store import Store
from hypha_telemetry import operator_metrics
from hypha_telemetry.instruments import PROMETHEUS_TEXT, Instruments
from hypha_telemetry.process_metrics import observe_process

_STUCK_S: Final = 300.0
"""A reconcile makes a few dozen calls, each with a deadline, so a reconcile that takes longer than this is stuck."""


class PortTakenError(Exception):
    """The server cannot listen on its port."""


class Metrics(Instruments):
    """The operator's metrics."""

    def __init__(self, meter: Meter | None) -> None:
        super().__init__(meter)
        self._seconds = self.histogram(operator_metrics.RECONCILE)
        self._calls = self.counter(operator_metrics.API_CALLS)
        observe_process(self)

    def on_reconcile(self, key: Key, seconds: float, failed: bool) -> None:
        """Record the duration of a reconcile."""
        self._seconds.record(seconds, {"kind": key.kind.name, "outcome": "failed" if failed else "done"})

    def on_call(self, method: str, status: int) -> None:
        """Count a call to the API server."""
        self._calls.add(1, {"method": method, "status": str(status)})

    def track(self, store: Store, queue: WorkQueue, audit: Audit, election: Election) -> None:
        """Export the state of these components. Of several replicas, only the one that leads reports objects."""

        def objects() -> list[Observation]:
            kinds = (WORKER, HYPHA_JOB) if election.leads else ()
            return [Observation(store.count(kind), {"kind": kind.name}) for kind in kinds]

        self.observe(operator_metrics.OBJECTS, objects)
        self.observe(operator_metrics.QUEUE, lambda: [Observation(queue.waiting)] if election.leads else [])
        self.observe(operator_metrics.LEADS, lambda: [Observation(int(election.leads))])
        self.observe(operator_metrics.WATCH_LAG, lambda: [Observation(audit.lag_s())])


class Health:
    """What the probes ask for.

    Attributes:
        missing: the custom resources that the API server does not serve.
        not_listed: why the first listing of all objects has not finished, or None once it has.
    """

    def __init__(self, queue: WorkQueue, audit: Audit, election: Election) -> None:
        self._queue, self._audit, self._election = queue, audit, election
        self.missing: list[str] = []
        self.not_listed: str | None = "the first listing of all objects has not finished"

    def sick(self) -> str | None:
        """Return a problem that a restart of the operator would solve, or None."""
        if (late_s := self._audit.lag_s()) > LATE_S:
            return f"the watch has not shown a change that was listed {late_s:.0f} s ago"
        if (stuck_s := self._queue.longest_s()) > _STUCK_S:
            return f"a reconcile has been running for {stuck_s:.0f} s"
        return None

    def unready(self) -> str | None:
        """Return why this replica neither leads nor could take over, or None."""
        if self.not_listed:
            return self.not_listed
        if self.missing:
            return f"the API server does not serve {', '.join(self.missing)}. Install the chart's definitions."
        return self._election.problem() or self.sick()

    def state(self) -> str:
        """Return whether this replica leads or stands by."""
        return self._election.state()


@asynccontextmanager
async def serving(port: int, page: Callable[[], bytes] | None, health: Health) -> AsyncIterator[None]:
    """Serve all pages on all addresses while the block runs.

    Args:
        port: where to serve.
        page: returns the operator's metrics.
        health: answers the probes.

    Raises:
        PortTakenError: the port is not available.
    """

    async def healthz(_: web.Request) -> web.Response:
        found = health.sick()
        return web.Response(text=found or "ok", status=503 if found else 200)

    async def readyz(_: web.Request) -> web.Response:
        found = health.unready()
        return web.Response(text=found or health.state(), status=503 if found else 200)

    async def show(_: web.Request) -> web.Response:
        body = await asyncio.to_thread(page) if page else b""
        return web.Response(body=body + generate_latest(process), headers={"Content-Type": PROMETHEUS_TEXT})

    process = CollectorRegistry()
    ProcessCollector(registry=process)  # under the names that Prometheus itself gives them

    application = web.Application()
    application.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show)])
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
