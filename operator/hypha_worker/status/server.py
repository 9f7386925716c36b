"""Serves the state of the node: at a socket for its owner, and as a page if that is configured."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from hypha_contracts.addresses import parse_listen_address
from hypha_contracts.connector_api import ErrorCode
from hypha_contracts.node_config import StatusPageConfig
from hypha_worker.connector.http_server import Exchange, Handler, HttpError, listen_unix, serve_plain, serve_unix
from hypha_worker.errors import NodeError
from hypha_worker.status import access, page
from hypha_worker.status.model import STATUS_PATH

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 10.0
"""How long a viewer may take to receive an answer."""
_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json"


@asynccontextmanager
async def serving_status(config: StatusPageConfig, socket: Path, state: Callable[[], bytes]) -> AsyncIterator[None]:
    """Serve the state while the block runs.

    Args:
        config: where to serve the page.
        socket: where to serve the state to processes of this user.
        state: returns the state as JSON.

    Raises:
        NodeError: it is impossible to listen.
    """
    listeners = await _listen(config.listen) if config.listen is not None else []
    try:
        private = listen_unix(socket)
    except OSError as error:
        raise NodeError(
            f"{socket}: cannot listen: {error.strerror or error}. If the file is yours, choose another work_dir."
        ) from error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_unix, private, partial(_answer_owner, state))
        if listeners:
            nursery.start_soon(serve_plain, listeners, page_handler(config.hosts, state))
            logger.info("the status page is at %s", _url(listeners))
        yield
        nursery.cancel_scope.cancel()


async def _listen(address: str) -> Sequence[trio.SocketListener]:
    host, port = parse_listen_address(address)
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise NodeError(f"status_page.listen {address}: {error.strerror}. Choose another address or port.") from error


def _url(listeners: Sequence[trio.SocketListener]) -> str:
    host, port = listeners[0].socket.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def page_handler(names: Sequence[str], state: Callable[[], bytes]) -> Handler:
    """Return the handler of the page and of the state that it asks for. `names` are those of `status_page.hosts`."""

    async def handle(exchange: Exchange) -> None:
        exchange.answer_headers = page.HEADERS
        access.check(exchange.method, exchange.path, exchange.headers, names)
        with trio.fail_after(ANSWER_TIMEOUT_S):
            if exchange.path == access.PAGE_PATH:
                await exchange.answer(page.PAGE, _HTML)
            elif exchange.path == STATUS_PATH:
                await exchange.answer(state(), _JSON)
            else:
                raise HttpError(ErrorCode.NO_SUCH_CALL, f"only {access.PAGE_PATH} and {STATUS_PATH} are served here")

    return handle


async def _answer_owner(state: Callable[[], bytes], exchange: Exchange) -> None:
    if (exchange.method, exchange.path) != ("GET", STATUS_PATH):
        raise HttpError(ErrorCode.NO_SUCH_CALL, f"only GET {STATUS_PATH} is served here")
    with trio.fail_after(ANSWER_TIMEOUT_S):
        await exchange.answer(state(), _JSON)
