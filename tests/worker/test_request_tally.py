from hypha_worker.market.evaluator import Refusal
from hypha_worker.market.request_tally import RequestTally


def test_only_the_last_hundred_requests_count() -> None:
    tally = RequestTally()
    tally.record(None)
    for _ in range(99):
        tally.record(Refusal("BidBelowFloor", "the bid is low"))
    assert (tally.considered, tally.refused) == (1, 99)
    tally.record(Refusal("NoExecutor", "it names no executor"))
    assert (tally.considered, tally.refused, tally.last_refusal) == (0, 100, ("NoExecutor", "it names no executor"))


def test_messages_of_peers_are_shortened_and_escaped() -> None:
    tally = RequestTally()
    tally.record(Refusal("ExecutorUnsupported", "executor train/\x1b[2J\n" + 10_000 * "x"))
    assert tally.last_refusal is not None
    assert tally.last_refusal.message.startswith(r"executor train/\x1b[2J\nx")
    assert len(tally.last_refusal.message) == 256
