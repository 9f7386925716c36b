"""Decides which requests for the status page are answered. Pure functions.

The page needs no password, so every browser on the way to it could be made to ask for it by a page of a foreign site.
These checks, and the headers of each answer, keep such a page from reading anything:

- The header Host names an IP address, localhost or a configured name. A foreign site that lets its own name resolve to
  the node's address (DNS rebinding) sends that name.
- Browsers state in Sec-Fetch-Site where a request comes from. Requests of other sites and of other ports are refused,
  unless they lead the complete window to the page.
- No answer has a header of CORS, so that browsers do not show it to other origins.
"""

from collections.abc import Collection, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from hypha_contracts.connector_api import ErrorCode
from hypha_worker.connector.http_server import HttpError

PAGE_PATH: Final = "/"
_OWN: Final = ("same-origin", "none")
"""Requests of the page itself, and of people who entered its address."""
_TO_A_WINDOW: Final = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def check(method: str, path: str, headers: Mapping[str, str], names: Collection[str]) -> None:
    """Check that a request may be answered. HttpError if not.

    Args:
        method: of the request.
        path: of the request.
        headers: of the request, with their names in lower case.
        names: the names under which browsers may open the page, besides IP addresses and localhost.
    """
    if method != "GET":
        raise HttpError(
            ErrorCode.NO_SUCH_CALL, "the page can only be read, by GET", status=HTTPStatus.METHOD_NOT_ALLOWED
        )
    host = headers.get("host", "")
    if not is_own_host(host, names):
        raise HttpError(
            ErrorCode.FORBIDDEN,
            "the page is served at an IP address, at localhost, and at the names of status_page.hosts. Open it at one "
            "of them, or add this name.",
        )
    if "origin" in headers and headers["origin"].partition("://")[2] != host:
        raise HttpError(ErrorCode.FORBIDDEN, "the page answers no requests of other origins")
    if headers.get("sec-fetch-site", "none") not in _OWN and not _opens_a_window(path, headers):
        raise HttpError(ErrorCode.FORBIDDEN, "the page answers no requests of other sites. Open it in a window.")


def is_own_host(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names this node by an IP address, as localhost, or by one of these names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name in {known.lower() for known in names}:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _opens_a_window(path: str, headers: Mapping[str, str]) -> bool:
    return path == PAGE_PATH and all(headers.get(name) == value for name, value in _TO_A_WINDOW.items())
