"""The status page over real HTTP, and the socket for the command line."""

import contextlib
import json
import re
import socket
import stat
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
import trio

from benchmarks.busy_node import BusyNode, open_networks, scheduler_ids
from hypha_contracts.node_config import StatusPageConfig
from hypha_worker.errors import NodeError
from hypha_worker.status import client, server
from hypha_worker.status.board import INTERVAL_S, Board
from hypha_worker.status.model import SCHEMA
from hypha_worker.status.page import PAGE
from hypha_worker.status.server import serving_status

pytestmark = pytest.mark.anyio

PATIENCE_S = 20
STATE = b'{"schema": 1}'


@asynccontextmanager
async def page(
    directory: Path, caplog: pytest.LogCaptureFixture, state: Callable[[], bytes] = lambda: STATE, hosts: str = ""
) -> AsyncIterator[int]:
    """Serve the page at a port that the system chooses."""
    caplog.set_level("DEBUG")
    config = StatusPageConfig(listen="127.0.0.1:0", hosts=hosts.split())
    with trio.fail_after(PATIENCE_S):
        async with serving_status(config, directory / "status.sock", state):
            found = re.search(r"the status page is at http://127\.0\.0\.1:(\d+)/", caplog.text)
            assert found
            yield int(found[1])


class Answer:
    """An answer of the page."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


async def ask(port: int, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    fields = {"Host": f"127.0.0.1:{port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1"))
        data = b""
        while piece := await stream.receive_some():
            data += piece
    return Answer(data)


async def test_the_page_and_its_state_are_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with page(tmp_path, caplog) as port:
        shown, state = await ask(port), await ask(port, "/status.json")
    assert (shown.status, shown.headers["content-type"], shown.body) == (200, "text/html; charset=utf-8", PAGE)
    assert (state.status, state.headers["content-type"], state.body) == (200, "application/json", STATE)


async def test_every_answer_has_the_headers_that_keep_other_sites_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with page(tmp_path, caplog) as port:
        answers = [
            await ask(port),
            await ask(port, "/status.json"),
            await ask(port, "/other"),
            await ask(port, method="POST"),
            await ask(port, method="OPTIONS", Origin="http://evil.example", Access_Control_Request_Method="GET"),
            await ask(port, Host="evil.example"),
            await ask(port, "/status.json", Sec_Fetch_Site="cross-site"),
        ]
    assert [answer.status for answer in answers] == [200, 200, 404, 405, 405, 403, 403]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert not [name for name in answer.headers if name.startswith("access-control")]
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "*" not in answer.headers["content-security-policy"]


async def test_a_head_request_is_refused_without_a_body(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with page(tmp_path, caplog) as port:
        answer = await ask(port, method="HEAD")
    assert (answer.status, answer.body) == (405, b"")


async def test_a_configured_name_opens_the_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with page(tmp_path, caplog, hosts="worker.example.org") as port:
        assert (await ask(port, Host="worker.example.org")).status == 200
        refused = await ask(port, Host="evil.example")
    assert refused.status == 403
    assert "status_page.hosts" in json.loads(refused.body)["detail"]


class Elements(HTMLParser):
    """The elements of the page, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(PAGE.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("tag", ["script", "style"])
async def test_the_policy_permits_exactly_the_script_and_the_style_of_the_page(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tag: str
) -> None:
    async with page(tmp_path, caplog) as port:
        policy = (await ask(port)).headers["content-security-policy"]
    (content,) = re.findall(rb"<%b>(.*?)</%b>" % (tag.encode(), tag.encode()), PAGE, re.DOTALL)
    assert [name for name, _ in Elements().found].count(tag) == 1
    assert f"{tag}-src 'sha256-{b64encode(sha256(content).digest()).decode()}'" in policy


def test_the_page_asks_nobody_else_and_runs_no_script_of_attributes() -> None:
    urls = set(re.findall(rb"https?://[^\s'\"]+", PAGE))
    assert urls == {b"http://www.w3.org/2000/svg"}, "a name of a format, which nobody asks for"
    for tag, attributes in Elements().found:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset")], tag
    assert not re.search(rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|Function\(", PAGE)


@pytest.fixture
async def busy() -> AsyncIterator[BusyNode]:
    """A node with jobs and leases."""
    async with open_networks() as (network, _):
        node = BusyNode(network, scheduler_ids(2), 4)
        node.job(0, seconds=400)
        node.lease(1)
        yield node


async def test_the_state_is_made_once_in_an_interval_however_many_look(
    busy: BusyNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = [], Board.snapshot
    monkeypatch.setattr(Board, "snapshot", lambda board: made.append(1) or make(board))
    assert busy.board.json() is busy.board.json()
    assert len(made) == 1
    busy.past.offset_s += INTERVAL_S
    busy.board.json()
    assert len(made) == 2


async def test_the_state_names_the_node_its_jobs_and_its_leases(busy: BusyNode) -> None:
    state = client.parse(busy.board.json().decode())
    assert (state.schema_, state.node.lack, state.node.silence) == (SCHEMA, None, None)
    assert (len(state.jobs), len(state.leases), state.peers_total) == (1, 2, 1)
    assert state.peers[0].role == "gateway"
    assert len(state.jobs[0].loss.y) == 10
    assert state.earnings.accruing > 0


async def test_silent_connections_keep_nobody_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with page(tmp_path, caplog) as port, contextlib.AsyncExitStack() as stack:
        for _ in range(200):
            await stack.enter_async_context(await trio.open_tcp_stream("127.0.0.1", port))
        assert (await ask(port)).status == 200


async def test_a_viewer_that_does_not_read_is_let_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "ANSWER_TIMEOUT_S", 0.1)
    async with page(tmp_path, caplog, lambda: bytes(64 << 20)) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(f"GET /status.json HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        while "GET /status.json: TooSlowError" not in caplog.text:  # noqa: ASYNC110 - the server lets go at its own time
            await trio.sleep(0.01)
        received = 0
        with contextlib.suppress(trio.BrokenResourceError):
            while piece := await stream.receive_some():
                received += len(piece)
        assert received < 64 << 20
        await stream.aclose()


async def test_only_the_owner_may_use_the_socket_and_it_goes_with_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with page(tmp_path, caplog):
        mode = (tmp_path / "status.sock").stat().st_mode
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
        assert await trio.to_thread.run_sync(client.fetch, tmp_path) == STATE.decode()
    assert not (tmp_path / "status.sock").exists()


async def test_without_a_configured_address_there_is_only_the_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with serving_status(StatusPageConfig(), tmp_path / "status.sock", lambda: STATE):
        assert await trio.to_thread.run_sync(client.fetch, tmp_path) == STATE.decode()
    assert "status page" not in caplog.text


async def test_an_address_that_is_taken_is_named_with_a_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        message = rf"status_page.listen {address}: Address already in use. Choose another address or port."
        with pytest.raises(NodeError, match=re.escape(message)):
            async with serving_status(StatusPageConfig(listen=address), tmp_path / "status.sock", lambda: STATE):
                pass
    assert not (tmp_path / "status.sock").exists()


async def test_a_file_in_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "status.sock").write_text("mine")
    with pytest.raises(NodeError, match="choose another work_dir"):
        async with serving_status(StatusPageConfig(), tmp_path / "status.sock", lambda: STATE):
            pass
    assert (tmp_path / "status.sock").read_text() == "mine"
