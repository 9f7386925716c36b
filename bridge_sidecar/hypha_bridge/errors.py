"""Errors that the bridge answers with: a status, a code for programs, a text for people."""

from hypha_contracts.text import escaped


class BridgeError(Exception):
    """An error with its HTTP form, `{"error": code, "detail": text}`."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        self.status = status
        self.code = code
        self.detail = escaped(detail)  # the executor logs it, and it may quote a URL or a peer
        super().__init__(self.detail)


class ConnectorError(BridgeError):
    """The node, or a peer behind it, failed or refused; `retryable` if another attempt may succeed."""

    def __init__(self, status: int, code: str, detail: str, *, retryable: bool) -> None:
        super().__init__(status, code, detail)
        self.retryable = retryable


def invalid_request(detail: str) -> BridgeError:
    """Return the error for an invalid request."""
    return BridgeError(400, "invalid_request", detail)


def forbidden(detail: str) -> BridgeError:
    """Return the error for a valid request that this job may not make."""
    return BridgeError(403, "forbidden", detail)


def storage_exceeded(detail: str) -> BridgeError:
    """Return the error for a full disk, or for a job that would exceed its storage."""
    return BridgeError(507, "storage_exceeded", detail)


def source_failed(detail: str) -> BridgeError:
    """Return the error for a source that answered with an error or with invalid data."""
    return BridgeError(502, "source_failed", detail)
