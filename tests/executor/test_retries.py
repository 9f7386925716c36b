"""What an executor does while the job's bridge waits for its node, or is away."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import hypha_executor.bridge
from hypha_executor.bridge import Bridge
from hypha_executor.errors import BridgeError

LONGEST_S = 2 * 3600 + 60
"""How long a bridge waits for its node under the longest lease that a worker may give."""


class Clock:
    """The time that the executor sees."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, duration_s: float) -> None:
        self.now += duration_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(hypha_executor.bridge, "time", clock)
    return clock


Behaviour = Callable[[], httpx.Response]


class LateBridge:
    """Meets one request after another with the next behaviour; when none is left, it refuses connections."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.behaviours: list[Behaviour] = []
        self.requests: list[httpx.Request] = []

    def answers(self, status: int, body: Any, after_s: float = 0) -> None:
        def behave() -> httpx.Response:
            self.clock.sleep(after_s)
            return httpx.Response(status, json=body)

        self.behaviours.append(behave)

    def breaks_off(self, after_s: float) -> None:
        def behave() -> httpx.Response:
            self.clock.sleep(after_s)
            raise httpx.ReadError("connection reset")

        self.behaviours.append(behave)

    def meet(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if not self.behaviours:
            raise httpx.ConnectError("connection refused")
        return self.behaviours.pop(0)()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> LateBridge:
    bridge = LateBridge(clock)
    monkeypatch.setattr(httpx, "HTTPTransport", lambda uds: httpx.MockTransport(bridge.meet))
    return bridge


@pytest.fixture
def client(tmp_path: Path, late: LateBridge) -> Bridge:
    socket = tmp_path / "bridge.sock"
    socket.touch()
    return Bridge(socket, tmp_path)


UNAVAILABLE = {"error": "unavailable", "detail": "the node is away"}


def test_an_answer_is_waited_for_as_long_as_any_bridge_waits_for_its_node(late: LateBridge, client: Bridge) -> None:
    late.answers(200, {"type": "Ok"}, after_s=LONGEST_S)
    assert client.report("update") == {"type": "Ok"}
    (request,) = late.requests
    assert request.extensions["timeout"]["read"] > LONGEST_S


def test_a_request_that_the_bridge_abandons_after_long_is_not_retried(late: LateBridge, client: Bridge) -> None:
    late.answers(503, UNAVAILABLE, after_s=LONGEST_S)
    with pytest.raises(BridgeError, match="the node is away"):
        client.report("update")
    assert len(late.requests) == 1


def test_a_bridge_that_dies_while_it_waits_is_asked_again_once_it_is_back(late: LateBridge, client: Bridge) -> None:
    late.breaks_off(after_s=LONGEST_S)
    late.answers(200, {"type": "Ok"})
    client.report("update")
    assert len(late.requests) == 2


def test_a_bridge_that_stays_away_is_abandoned_within_minutes(late: LateBridge, clock: Clock, client: Bridge) -> None:
    began = clock.now
    with pytest.raises(BridgeError, match="ConnectError: connection refused"):
        client.report("update")
    assert 50 < clock.now - began < 150


def test_a_bridge_that_is_unavailable_for_a_moment_is_asked_again(late: LateBridge, client: Bridge) -> None:
    late.answers(503, UNAVAILABLE)
    late.answers(503, UNAVAILABLE)
    late.answers(200, None)
    client.report("update")
    assert len({request.content for request in late.requests}) == 1
    assert len(late.requests) == 3


def test_a_refusal_is_final_and_names_the_request(late: LateBridge, client: Bridge) -> None:
    late.answers(404, {"error": "not_found"})
    with pytest.raises(BridgeError, match=r"POST /status/send: answered 404"):
        client.report("update")


def test_a_socket_that_is_gone_ends_the_executor_at_once(late: LateBridge, tmp_path: Path) -> None:
    with pytest.raises(BridgeError, match="ConnectError"):
        Bridge(tmp_path / "gone.sock", tmp_path).report("update")
    assert len(late.requests) == 1


@pytest.mark.parametrize("answer", [None, [{"size": 1}], [1]])
def test_an_answer_to_a_fetch_without_files_is_refused(late: LateBridge, client: Bridge, answer: Any) -> None:
    late.answers(200, answer)
    with pytest.raises(BridgeError, match="lists no files"):
        client.fetch({"type": "scheduler"})
