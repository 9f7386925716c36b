"""What the trainer and the parameter server do while the job's bridge waits for its node."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import hypha_parameter_server.bridge
import hypha_trainer.bridge
from hypha_parameter_server.errors import BridgeError as ParameterServerBridgeError
from hypha_trainer.errors import BridgeError as TrainerBridgeError

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
    for module in (hypha_trainer.bridge, hypha_parameter_server.bridge):
        monkeypatch.setattr(module, "time", clock)
    return clock


Behaviour = Callable[[], httpx.Response]


class LateBridge:
    """Meets one request after another as it is told to; when nothing is left, nobody listens."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.behaviours: list[Behaviour] = []
        self.requests: list[httpx.Request] = []

    def answers(self, status: int, body: Any, after_s: float) -> None:
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


@pytest.fixture(params=["trainer", "parameter server"])
def report(request: pytest.FixtureRequest, tmp_path: Path, late: LateBridge) -> Iterator[Callable[[], object]]:
    """Tell the scheduler something, as one of the two does."""
    socket = tmp_path / "bridge.sock"
    socket.touch()
    if request.param == "trainer":
        trainer = hypha_trainer.bridge.Bridge(socket, tmp_path)
        yield lambda: trainer.report("update")
    else:
        yield hypha_parameter_server.bridge.Bridge(socket).report_updated


ERRORS = (TrainerBridgeError, ParameterServerBridgeError)


def test_an_answer_is_waited_for_as_long_as_any_bridge_waits_for_its_node(
    late: LateBridge, report: Callable[[], object]
) -> None:
    late.answers(200, {"type": "Ok"}, after_s=LONGEST_S)
    report()
    (request,) = late.requests
    assert request.extensions["timeout"]["read"] > LONGEST_S


def test_what_the_bridge_gives_up_on_after_long_is_not_asked_again(
    late: LateBridge, report: Callable[[], object]
) -> None:
    late.answers(503, {"error": "unavailable", "detail": "the node is away"}, after_s=LONGEST_S)
    with pytest.raises(ERRORS, match="the node is away"):
        report()
    assert len(late.requests) == 1


def test_a_bridge_that_dies_while_it_waits_is_asked_again_once_it_is_back(
    late: LateBridge, report: Callable[[], object]
) -> None:
    late.breaks_off(after_s=LONGEST_S)
    late.answers(200, {"type": "Ok"}, after_s=0)
    report()
    assert len(late.requests) == 2


def test_a_bridge_that_stays_away_is_given_up_within_minutes(
    late: LateBridge, clock: Clock, report: Callable[[], object]
) -> None:
    began = clock.now
    with pytest.raises(ERRORS):
        report()
    assert 50 < clock.now - began < 150
