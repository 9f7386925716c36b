"""The events of a node, on its standard output and in its log."""

import io
import json
import logging

import pytest

from hypha_devnet.events import Events


def test_the_log_shows_each_round_and_with_debug_each_batch(caplog: pytest.LogCaptureFixture) -> None:
    written = io.StringIO()
    caplog.set_level(logging.DEBUG, "hypha_devnet")
    events = Events(written)
    for _ in range(40):
        events.emit("batch", peer="a", samples=32)
    events.emit("round", round=1, of=20)
    shown = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert (shown, len(caplog.records)) == (["round round=1 of=20"], 41)
    assert len([json.loads(line) for line in written.getvalue().splitlines()]) == 41
