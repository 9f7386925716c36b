"""What the bridge answers when it cannot do what was asked: a status, a code for programs, a text for people."""


class BridgeError(Exception):
    """An error with its HTTP form, `{"error": code, "detail": text}`."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


class ConnectorError(BridgeError):
    """The node, or a peer behind it, did not do what was asked; `retryable` if asking again may help."""

    def __init__(self, status: int, code: str, detail: str, *, retryable: bool) -> None:
        super().__init__(status, code, detail)
        self.retryable = retryable


def invalid_request(detail: str) -> BridgeError:
    """The request itself is wrong."""
    return BridgeError(400, "invalid_request", detail)


def forbidden(detail: str) -> BridgeError:
    """The request is well formed and not for this job to make."""
    return BridgeError(403, "forbidden", detail)


def storage_exceeded(detail: str) -> BridgeError:
    """The job's storage, or the disk, is full."""
    return BridgeError(507, "storage_exceeded", detail)


def source_failed(detail: str) -> BridgeError:
    """Something that was to be fetched from answered with an error, or with nonsense."""
    return BridgeError(502, "source_failed", detail)
