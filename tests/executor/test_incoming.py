"""The files that peers push, over an event stream that may break."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hypha_executor.bridge import MAX_EVENT_BYTES, parse_events
from hypha_executor.bridge import Bridge as Client
from hypha_executor.errors import BridgeError
from hypha_executor.incoming import Incoming, Received, parse_event
from support.parameter_server import Bridge

WAIT_S = 20
PEERS = {"type": "peers", "peers": ["A"]}


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[Bridge]:
    bridge = Bridge(tmp_path)
    yield bridge
    bridge.close()


def listening(bridge: Bridge) -> Incoming:
    incoming = Incoming(Client(bridge.socket, bridge.work_dir), PEERS)
    incoming.wait_open()
    return incoming


def test_files_come_over_a_subscription_that_broke_and_was_opened_again(bridge: Bridge) -> None:
    incoming = listening(bridge)
    bridge.break_stream()
    bridge.announce("A", "incoming/A.1")
    assert incoming.next(WAIT_S) == Received("A", "incoming/A.1")


def test_without_a_file_the_wait_ends_after_its_time(bridge: Bridge) -> None:
    assert listening(bridge).next(timeout_s=0.01) is None


def test_a_bridge_that_is_gone_ends_the_wait(bridge: Bridge) -> None:
    incoming = listening(bridge)
    bridge.socket.unlink()
    bridge.break_stream()
    with pytest.raises(BridgeError, match="/resources/receive"):
        incoming.next(WAIT_S)


def test_a_subscription_that_never_opens_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match=r"opened no /resources/receive within 0 s"):
        Incoming(Client(tmp_path / "bridge.sock", tmp_path), PEERS).wait_open(timeout_s=0)


def test_an_event_announces_one_file_or_several() -> None:
    assert list(parse_event('{"from_peer": "A", "path": "x", "size": 1}')) == [Received("A", "x")]
    assert list(parse_event('[{"from_peer": "A", "path": "x"}, {"from_peer": "B", "path": "y"}]')) == [
        Received("A", "x"),
        Received("B", "y"),
    ]


@pytest.mark.parametrize(
    "data",
    ["", "{", "null", "{}", "[" * 100_000, "1" * 5000, '{"path": "x"}', '{"from_peer": 1, "path": "x"}', '["x"]'],
)
def test_an_event_that_announces_no_file_is_ignored(data: str) -> None:
    assert list(parse_event(data)) == []


def test_paths_outside_the_work_directory_are_refused(tmp_path: Path) -> None:
    client = Client(tmp_path / "bridge.sock", tmp_path)
    assert client.inside("artifacts/x") == tmp_path / "artifacts/x"
    for path in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(BridgeError, match="outside the work directory"):
            client.inside(path)


def test_an_event_of_many_unusable_pointers_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_event("[" + "[]," * 10_000 + '{"from_peer": "A", "path": "x"}]') == [Received("A", "x")]
    (record,) = (record for record in caplog.records if record.name == "hypha_executor.incoming")
    assert len(record.getMessage()) < 400


def test_events_may_arrive_in_any_pieces() -> None:
    data = '{"from_peer": "A", "path": "a:\u2028b"}'
    stream = f": keepalive\n\nid: 1\r\ndata: {data}\r\n\r\nid\n\ndata:{data}\n\nid: 3\ndata: {{}}\n\n".encode()
    expected = [("1", data), ("", data)]
    assert list(parse_events([stream])) == expected
    assert list(parse_events([stream[at : at + 1] for at in range(len(stream))])) == expected


@pytest.mark.parametrize("line", [b"\n", b"id\n", b"id: 1\n", b"data\n", b"data: {}\n", b"data: {}\n\n", b":\n\n"])
def test_many_short_lines_of_an_event_stream_cost_next_to_nothing(line: bytes) -> None:
    stream = line * (128 * 1024 // len(line))
    with contextlib.suppress(httpx.HTTPError):
        list(parse_events([stream]))

    def measure_s() -> float:
        started = time.thread_time()
        with contextlib.suppress(httpx.HTTPError):
            list(parse_events([stream]))
        return time.thread_time() - started

    assert min(measure_s() for _ in range(5)) < 0.0074, "1 ms and 50 us per KiB"


def test_an_event_without_end_breaks_the_event_stream() -> None:
    taken = iter([b"data: " + b"x" * MAX_EVENT_BYTES] * 3)
    with pytest.raises(httpx.HTTPError, match="longer than"):
        list(parse_events(taken))
    assert len(list(taken)) == 2
