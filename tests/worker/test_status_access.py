"""Which requests for the status page are answered."""

import pytest

from hypha_worker.connector.http_server import HttpError
from hypha_worker.status.access import PAGE_PATH, check, is_own_host
from hypha_worker.status.model import STATUS_PATH

HOST = {"host": "127.0.0.1:8081"}
OPENS = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


def refusal(path: str = STATUS_PATH, method: str = "GET", **headers: str) -> int | None:
    """The status with which a request is refused, or None."""
    try:
        check(method, path, HOST | {name.replace("_", "-"): value for name, value in headers.items()}, [])
    except HttpError as error:
        return int(error.status)
    return None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8081", "localhost:80", "LocalHost", "[::1]:8081", "10.1.2.3"])
def test_ip_addresses_and_localhost_are_names_of_the_node(host: str) -> None:
    assert is_own_host(host, [])


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            "evil.example",
            "evil.example:8081",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "127.0.0.1@evil",
        ),
        *("[::1", "[evil]", "::1", "127.0.0.1 evil", "127.1", "0x7f.1", "2130706433", "localhost\u200b"),
    ],
)
def test_other_names_are_not_because_they_may_resolve_to_its_address(host: str) -> None:
    assert not is_own_host(host, [])


def test_configured_names_are_names_of_the_node_in_any_case() -> None:
    assert is_own_host("Worker.Example.org:443", ["worker.example.ORG"])
    assert not is_own_host("other.example.org", ["worker.example.org"])


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get"])
def test_every_method_but_get_is_refused(method: str) -> None:
    assert refusal(method=method) == 405


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_page_itself_and_people_who_enter_the_address_are_answered(site: str) -> None:
    assert refusal(STATUS_PATH, sec_fetch_site=site) is None
    assert refusal(PAGE_PATH, sec_fetch_site=site) is None


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something new"])
def test_pages_of_other_origins_get_neither_the_state_nor_the_page(site: str) -> None:
    assert refusal(STATUS_PATH, sec_fetch_site=site, sec_fetch_mode="cors", sec_fetch_dest="empty") == 403
    assert refusal(PAGE_PATH, sec_fetch_site=site, sec_fetch_mode="no-cors", sec_fetch_dest="script") == 403
    assert refusal(PAGE_PATH, sec_fetch_site=site, sec_fetch_mode="navigate", sec_fetch_dest="iframe") == 403
    assert refusal(STATUS_PATH, sec_fetch_site=site, **{name.replace("-", "_"): OPENS[name] for name in OPENS}) == 403


def test_a_link_on_another_page_may_open_the_page_in_a_window() -> None:
    assert refusal(PAGE_PATH, sec_fetch_site="cross-site", sec_fetch_mode="navigate", sec_fetch_dest="document") is None


@pytest.mark.parametrize(
    "origin", ["null", "", "http://evil.example", "http://127.0.0.1:9", "http://127.0.0.1", "http://["]
)
def test_requests_of_another_origin_are_refused(origin: str) -> None:
    assert refusal(origin=origin) == 403


def test_requests_of_its_own_origin_are_answered() -> None:
    assert refusal(origin="http://127.0.0.1:8081") is None
