"""The one place that reports why the processing of a peer's input failed."""

import logging

import trio

from hypha_messages.cbor import DecodeError
from hypha_network.errors import NetworkError
from hypha_network.rate_limited_log import RateLimitedLogger

logger = logging.getLogger(__name__)
_failure_log = RateLimitedLogger(logger)
_EXPECTED = (NetworkError, DecodeError, trio.TooSlowError)


def report_failure(peer_id: str, what: str, error: Exception) -> None:
    """Log a failure. One that nobody expected is a warning in one line, because a peer may cause it again and again."""
    if _expected(error):
        logger.debug("%s with %s: %s", what, peer_id, error or "it took too long")
        return
    _failure_log.warning(
        peer_id, "%s failed: %s: %s. The log level debug shows the traceback.", what, type(error).__name__, error
    )
    logger.debug("%s with %s failed", what, peer_id, exc_info=error)


def _expected(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(map(_expected, error.exceptions))
    return isinstance(error, _EXPECTED)


def only(error: BaseException) -> BaseException:
    """Return a single exception without the groups that nurseries wrapped it in."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
