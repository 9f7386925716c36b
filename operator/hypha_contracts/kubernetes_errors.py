"""The errors of the API server, and the answers that mean them."""

import re
from http import HTTPStatus
from typing import Any, Final


class ApiError(Exception):
    """The API server did not carry out a request.

    Attributes:
        status: the HTTP status; 0 if there was no answer.
        reason: the API's reason for programs, such as AlreadyExists.
        message: the API's message for people.
    """

    def __init__(self, call: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"{call}: {message or reason or f'HTTP status {status}'}")
        self.status, self.reason, self.message = status, reason, message


class Refused(ApiError):  # noqa: N818 - a kind of ApiError
    """The API server refused; the same request will be refused again."""


class NotFound(Refused):
    """There is no such object, or no such kind."""


class Conflict(Refused):
    """The object exists already, or has another uid or a newer version than expected."""


class Forbidden(Refused):
    """The client lacks a permission, or a quota or an admission policy refused."""


class Gone(Refused):
    """The resource version is too old to continue from."""


class Invalid(Refused):
    """The API server rejects the object."""


class Unavailable(ApiError):  # noqa: N818 - a kind of ApiError
    """There was no usable answer in time, so the outcome is unknown. Another attempt may succeed."""


def is_terminating(error: ApiError) -> bool:
    """Whether the API server refused to create an object because its namespace is being deleted."""
    return isinstance(error, Forbidden) and "being terminated" in error.message


_NO_OBJECT: Final = "failed to create typed patch object"
"""The message, with status 500, if an applied object has an unknown field or names an item of a list twice."""
_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    HTTPStatus.BAD_REQUEST: Invalid,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.GONE: Gone,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: Invalid,
    HTTPStatus.UNPROCESSABLE_ENTITY: Invalid,
    HTTPStatus.TOO_MANY_REQUESTS: Unavailable,
}


_LACKS_RIGHT: Final = re.compile(
    r"cannot \w+ resource|cannot set blockOwnerDeletion|attempting to grant RBAC permissions"
)
"""Refusals of a client that lacks rights."""
_DENIED: Final = re.compile(r"admission webhook .* denied the request|ValidatingAdmissionPolicy .* denied request")


def is_admission(error: ApiError) -> bool:
    """Whether admission refused the object, rather than RBAC, the object's schema or an overloaded API server.

    Webhooks and policies choose the status of their answer, so their words decide.
    """
    if isinstance(error, Unavailable):
        return "failed calling webhook" in error.message
    if isinstance(error, Forbidden):
        return not _LACKS_RIGHT.search(error.message)
    return bool(_DENIED.search(error.message))


def from_answer(call: str, status: int, body: Any) -> ApiError:
    """Return the error for an answer, whose body is a `metav1.Status` or, from proxies, anything else.

    Args:
        call: the request's method and path, for the message.
        status: the HTTP status of the answer.
        body: the answer's body.
    """
    answer = body if isinstance(body, dict) else {"message": str(body)[:500]}
    message = str(answer.get("message") or "")
    kind = Unavailable if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _BY_STATUS.get(status, Refused)
    return (Invalid if _NO_OBJECT in message else kind)(call, status, str(answer.get("reason") or ""), message)
