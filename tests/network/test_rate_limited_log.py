import logging

import pytest

from hypha_network import rate_limited_log as quiet
from hypha_network.rate_limited_log import Quiet


def test_one_line_per_peer_and_interval_that_counts_the_rest(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(quiet.time, "monotonic", lambda: now)
    quietly = Quiet(logging.getLogger("test"), interval_s=10)
    for _ in range(5):
        quietly.warning("A", "sends %s", "garbage")
    quietly.warning("B", "sends %s", "garbage")
    now = 111.0
    quietly.warning("A", "sends %s", "more")
    assert [record.getMessage() for record in caplog.records] == [
        "peer A: sends garbage",
        "peer B: sends garbage",
        "peer A: sends more (4 more like this were not logged)",
    ]


def test_what_is_remembered_of_peers_is_bounded() -> None:
    quietly = Quiet(logging.getLogger("test"))
    for number in range(5000):
        quietly.warning(str(number), "x")
    assert len(quietly._peers) <= 1024
