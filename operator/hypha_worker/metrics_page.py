"""Serves the metrics to Prometheus."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from hypha_contracts.connector_api import ErrorCode
from hypha_telemetry.instruments import PROMETHEUS_TEXT
from hypha_worker.connector.http_server import Exchange, HttpError, serve_plain
from hypha_worker.errors import NodeError
from hypha_worker.telemetry import Telemetry


@asynccontextmanager
async def serving_metrics(telemetry: Telemetry) -> AsyncIterator[None]:
    """Serve `/metrics` at the configured address while the block runs, if there is one. NodeError if that fails."""
    if telemetry.page is None:
        yield
        return
    page, (host, port) = telemetry.page

    async def handle(exchange: Exchange) -> None:
        if (exchange.method, exchange.path) != ("GET", "/metrics"):
            raise HttpError(ErrorCode.NO_SUCH_CALL, "only GET /metrics is served here")
        await exchange.answer(await trio.to_thread.run_sync(page), PROMETHEUS_TEXT)

    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise NodeError(
            f"telemetry_prometheus {host or ''}:{port}: {error.strerror}. Choose another address or port."
        ) from error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_plain, listeners, handle)
        yield
        nursery.cancel_scope.cancel()
