"""What can go wrong with the API server.

ApiError
├── NotFound       there is no such object, or no such kind
├── Conflict       it exists already, or is another one or newer than was said
├── Forbidden      the role lacks something, or a quota or an admission policy refused
├── Invalid        the API server does not take the object
└── Unavailable    no answer in time, too many requests, or an error of the server: worth another try
"""

from typing import Any


class ApiError(Exception):
    """The API server refused or did not answer.

    Attributes:
        status: the HTTP status; 0 if there was no answer.
        reason: the API's word for it, such as AlreadyExists.
        message: the API's sentence.
    """

    def __init__(self, call: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"{call}: {message or reason or status}")
        self.status, self.reason, self.message = status, reason, message


class NotFound(ApiError):  # noqa: N818 - a kind of ApiError
    """There is no such object, or no such kind."""


class Conflict(ApiError):  # noqa: N818 - a kind of ApiError
    """It exists already, or is another one (uid) or newer (resourceVersion) than was said."""


class Forbidden(ApiError):  # noqa: N818 - a kind of ApiError
    """The operator's role lacks something, or a quota or an admission policy refused."""


class Invalid(ApiError):  # noqa: N818 - a kind of ApiError
    """The API server does not take the object; trying again does not help."""


class Unavailable(ApiError):  # noqa: N818 - a kind of ApiError
    """No answer in time, too many requests, or an error of the server: worth another try."""


_NO_OBJECT = "failed to create typed patch object"
"""Said with status 500, though no fault of the server: it has a field that is none, or a list names an item twice."""

_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    415: Invalid,
    422: Invalid,
    429: Unavailable,
}


def from_answer(call: str, status: int, body: Any) -> ApiError:
    """Return the error that an answer means; the body is a `metav1.Status` or, from proxies, anything else."""
    answer = body if isinstance(body, dict) else {"message": str(body)[:500]}
    message = answer.get("message") or ""
    kind = Unavailable if status >= 500 else _BY_STATUS.get(status, ApiError)
    if _NO_OBJECT in message:
        kind = Invalid
    return kind(call, status, answer.get("reason") or "", message)
