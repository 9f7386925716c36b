"""Rounds that close without some members, over the bridge's API."""

import time

import numpy as np

from support.parameter_server import MEMBERS, WAIT_S, contributions, tensors, update
from support.waiting import until

A, B, C = MEMBERS


def test_a_round_closes_without_a_straggler_whose_late_file_is_dropped(bridge, start):
    server = start("--deadline-s", "0.2", "--quorum", "0.6", momentum=0.0)
    for peer in (A, B):
        bridge.push_tensors(peer, tensors(1), round=1)
    assert update(bridge)[1]["bias"].tolist() == [1] * 4
    assert f"Round 1 closes without {C}" in server.log
    bridge.push_tensors(C, tensors(100), round=1)
    server.logs("is late: it is for round 1, and round 2 is being collected")
    for peer in MEMBERS:
        bridge.push_tensors(peer, tensors(2), round=2)
    assert update(bridge)[1]["bias"].tolist() == [2] * 4
    until(lambda: contributions(bridge) == [])


def test_the_late_file_of_a_trainer_that_labels_no_round_is_dropped_and_its_next_one_counts(bridge, start):
    server = start("--deadline-s", "0.2", "--quorum", "0.6", momentum=0.0)
    for peer in (A, B):
        bridge.push_tensors(peer, tensors(1))
    assert update(bridge)[1]["bias"].tolist() == [1] * 4
    bridge.push_tensors(C, tensors(100))
    server.logs("is late: it names no round, and its sender missed the last one")
    bridge.push_tensors(C, tensors(7))
    server.logs("from 12D3KooWC: round unknown")
    for peer in (A, B):
        bridge.push_tensors(peer, tensors(4))
    np.testing.assert_allclose(update(bridge)[1]["bias"], [5] * 4, rtol=1e-2)


def measured(bridge, name):
    """Return the values of a metric in the order of their arrival, with its attributes."""
    metrics = [metric for batch in list(bridge.telemetry) for metric in batch["metrics"] if metric["name"] == name]
    return [(metric["attributes"], metric["value"]) for metric in metrics]


def test_log_and_metrics_say_when_a_round_closes_who_is_missing_and_what_became_of_each_file(bridge, start):
    began = time.time()
    server = start("--deadline-s", "1.5", "--quorum", "0.6", momentum=0.0)
    bridge.push_tensors(A, tensors(1), round=1)
    server.logs(f"the round waits until {time.strftime('%Y-%m-%dT%H:', time.gmtime(began))}")
    assert f"Z for {B}, {C}" in server.log
    bridge.push_tensors(B, tensors(1), round=1)
    server.logs(f"Z for {C}")
    update(bridge)
    bridge.push_tensors(C, tensors(1), round=1)
    server.logs("is late")
    bridge.push_tensors(C, tensors(np.nan), round=2)
    server.logs("has nan")
    wanted = {"merged": 2, "late": 1, "refused": 1}
    deadline = time.monotonic() + WAIT_S
    while (found := counted(bridge)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    assert measured(bridge, "hypha.job.round.missing")
    assert began + 1.5 <= measured(bridge, "hypha.job.round.deadline")[0][1] <= time.time() + 1.5


def counted(bridge):
    total = {}
    for attributes, value in measured(bridge, "hypha.job.pseudo_gradients"):
        total[attributes["outcome"]] = total.get(attributes["outcome"], 0) + value
    return {outcome: value for outcome, value in total.items() if value}


def test_below_the_quorum_the_round_waits_past_the_deadline(bridge, start):
    server = start("--deadline-s", "0.05", "--quorum", "0.6", momentum=0.0)
    bridge.push_tensors(A, tensors(1), round=1)
    server.logs("the round closes with 2")
    assert bridge.updates.empty()
    bridge.push_tensors(B, tensors(2), round=1)
    assert update(bridge)[1]["bias"].tolist() == [1.5] * 4
