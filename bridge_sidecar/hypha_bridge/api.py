"""The REST API for the executor, on the job's socket."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any, Final

import anyio.lowlevel
from fastapi import Body, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hypha_bridge.bridge import Bridge
from hypha_bridge.compatibility import FetchRequest, ReceiveRequest, SendRequest
from hypha_bridge.errors import BridgeError
from hypha_bridge.fetch import FetchedFile
from hypha_bridge.inbox import Emit, Pointer
from hypha_bridge.metrics import AnyProgress
from hypha_contracts.connector_api import ErrorBody
from hypha_contracts.job_telemetry import TelemetryBatch
from hypha_contracts.trace_context import HEADER
from hypha_executor.telemetry import Telemetry
from hypha_messages.progress import ProgressResponse
from hypha_messages.validation import describe

logger = logging.getLogger(__name__)

_MAX_BODY_BYTES: Final = 256 * 1024
"""A body holds a reference of the job's specification, or progress. Decoded, it may take thirty times the memory."""

_ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {"model": ErrorBody, "description": "the bridge refuses the request as it is"},
    "5XX": {"model": ErrorBody, "description": "the node, a peer, a server or the storage failed"},
}
_TRACEPARENT: Final = HEADER.encode()

_STOCK_PEERS: Final = {"type": "peers", "peers": ["12D3KooW..."], "strategy": {"type": "All"}}
_PEERS: Final = {"type": "Peers", "peers": ["12D3KooW..."], "strategy": "All"}
_FETCH: Final[dict[str, Any]] = {
    "documented": {
        "value": {"fetch": {"type": "HuggingFace", "repository": "a/b", "filenames": ["c.json"]}, "out_dir": "models"}
    },
    "stock": {"value": {"type": "scheduler", "peer": "12D3KooW...", "dataset": "digits"}},
}
_SEND: Final[dict[str, Any]] = {
    "documented": {"value": {"send": _PEERS, "path": "output/gradients.safetensors"}},
    "stock": {"value": {"resource": _STOCK_PEERS, "path": "output/gradients.safetensors"}},
}
_RECEIVE: Final[dict[str, Any]] = {
    "documented": {"value": {"receive": _PEERS, "out_dir": "incoming"}},
    "stock": {"value": {"resource": _STOCK_PEERS, "path": "incoming"}},
}
_EVENTS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {"text/event-stream": {"schema": Pointer.model_json_schema()}},
        "description": "one event for each push",
    },
}
_ANSWER: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": {"application/json": {"schema": ProgressResponse.model_json_schema()}},
        "description": "the answer of the scheduler",
    },
}
_PROGRESS: Final[dict[str, Any]] = {
    "a batch is done": {"value": {"status": {"batch_size": 32}}},
    "a slice is predicted": {"value": {"predicted": {"index": 7, "samples": 128}}},
    "a round's metrics": {"value": {"metrics": {"round": 1, "metrics": {"loss": 0.5}}}},
    "a stage": {"value": "update", "description": "or `updated`, `update-received`"},
}


def create_app(bridge: Bridge) -> FastAPI:
    """Build the API of a bridge, which is open as long as the API runs."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with bridge:
            yield

    app = FastAPI(
        title="Hypha job bridge",
        summary="Resources, peers and progress for one job. Paths are relative to the job's work directory.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=_ERRORS,
    )
    app.add_middleware(LimitBody)
    app.add_middleware(Traced, telemetry=bridge.telemetry)
    app.add_exception_handler(BridgeError, _bridge_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Answer when the bridge is ready."""
        return {"status": "ok"}

    @app.post("/resources/fetch")
    async def fetch(request: Annotated[FetchRequest, Body(openapi_examples=_FETCH)]) -> list[FetchedFile]:
        """Fetch files into the work directory. The answer follows when they are complete."""
        return await bridge.fetcher.fetch(request.fetch, request.out_dir)

    @app.post("/resources/send", response_class=Response)
    async def send(request: Annotated[SendRequest, Body(openapi_examples=_SEND)]) -> Response:
        """Send a file to peers in the background. After the answer, the executor may change or delete the file."""
        await bridge.outbox.send(request.send, request.path, wait=request.wait)
        return Response()

    @app.post("/resources/receive", response_class=Response, responses=_EVENTS)
    async def receive(
        request: Annotated[ReceiveRequest, Body(openapi_examples=_RECEIVE)],
        last_event_id: Annotated[int | None, Header()] = None,
    ) -> Response:
        """Stream an event (SSE) for each file that a peer pushes. Last-Event-ID repeats the events after that one."""
        return EventStream(bridge.inbox.listen(request.receive, request.out_dir, last_event_id))

    @app.post("/status/send", response_class=Response, responses=_ANSWER)
    async def status(progress: Annotated[AnyProgress, Body(openapi_examples=_PROGRESS)]) -> Response:
        """Report progress to the scheduler and return its answer."""
        return Response(await bridge.report(progress), media_type="application/json")

    @app.post("/telemetry", response_class=Response, status_code=HTTPStatus.NO_CONTENT)
    async def telemetry(batch: TelemetryBatch) -> Response:
        """Take finished spans and metrics of the executor. The bridge sends them to the worker, or loses them."""
        bridge.pass_on(batch)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    return app


class EventStream(Response):
    """Server-sent events, until the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, write_events: Callable[[Emit], Awaitable[None]]) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["Content-Length"]
        self._write_events = write_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Write events until the client disconnects or the bridge closes."""

        async def emit(event: bytes) -> None:
            await send({"type": "http.response.body", "body": event, "more_body": True})
            await anyio.lowlevel.checkpoint()  # lets a disconnect cancel this task

        async def until_disconnected() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(until_disconnected)
            try:
                await self._write_events(emit)
            except BridgeError as error:  # the next listener gets the push
                logger.error("ending an event stream: %s", error)  # noqa: TRY400 - not a defect of the bridge
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b""})


class LimitBody:
    """Refuses request bodies above the limit, whether or not the client declares their length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count the bytes of its body."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > _MAX_BODY_BYTES:
                raise HTTPException(413, f"a request body has at most {_MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, counted, send)


class Traced:
    """Makes what a request causes a descendant of the span that its header `traceparent` names."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        named = next((value for name, value in scope.get("headers", ()) if name == _TRACEPARENT), b"")
        with self._telemetry.within(named.decode("latin-1")):
            await self._app(scope, receive, send)


async def _bridge_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BridgeError)  # noqa: S101 - registered for it
    logger.warning("%s: %s: %s", request.url.path, error.code, error.detail)
    return _answer(error.status, error.code, error.detail)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return _answer(error.status_code, code, f"{error.detail}; GET /openapi.json describes requests")


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    reasons = describe([{**detail, "loc": detail["loc"][1:]} for detail in error.errors()], "body")
    logger.warning("%s: invalid_request: %s", request.url.path, reasons)
    return _answer(400, "invalid_request", f"{reasons}; GET /openapi.json describes requests")


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.exception("%s failed", request.url.path, exc_info=error)
    return _answer(500, "internal_error", f"{type(error).__name__}: {error}; the bridge's log has the details")


def _answer(status: int, code: str, detail: str) -> Response:
    return JSONResponse(ErrorBody(error=code, detail=detail).model_dump(), status)
