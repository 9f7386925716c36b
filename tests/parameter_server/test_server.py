"""The parameter server as a process, over the bridge's API."""

import json
import os
import signal
import time

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from support.parameter_server import JOB_ID, MEMBERS, contributions, tensors, update

A, B, C = MEMBERS


def update_of(bridge, number):
    """Return the update of a round. An update that was sent just before a kill may arrive twice."""
    metadata, found, _ = update(bridge)
    while int(metadata["round"]) < number:
        metadata, found, _ = update(bridge)
    assert metadata["round"] == str(number)
    return found


def test_a_job_of_two_rounds_ends_when_the_scheduler_says_so(bridge, start):
    bridge.answers = [{"type": "Ok"}, {"type": "Done"}]
    server = start()
    for number, expected in [(1, 1.9 * 20 / 6), (2, 20 / 6 * (1 + 0.9 * 1.9))]:
        for value, peer in enumerate(MEMBERS, 1):
            bridge.push_tensors(peer, tensors(value + 1), round=number, samples=value, job_id=JOB_ID)
        metadata, found, _ = update(bridge)
        assert metadata == {"job_id": JOB_ID, "round": str(number), "statistics": "mean"}
        np.testing.assert_allclose(found["weight"], np.full((3, 2), expected), rtol=1e-6)
        np.testing.assert_allclose(found["bias"], np.full(4, expected), rtol=1e-3)
    assert server.exit_status() == 0
    assert bridge.statuses == ["updated", "updated"]
    assert contributions(bridge) == []
    assert not any((bridge.work_dir / "incoming").iterdir())


def test_trainers_without_metadata_are_served(bridge, start):
    start(momentum=0.0)
    for value in (1, 5):
        for peer in MEMBERS:
            bridge.push_tensors(peer, tensors(value))
        assert update(bridge)[1]["bias"].tolist() == [value] * 4


def truncated(path):
    save_file(tensors(1), path, {"round": "1"})
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (truncated, "is truncated"),
        (lambda path: path.write_bytes(b""), "is truncated"),
        (
            lambda path: save_file({**tensors(1), "bias": np.full(4, np.nan, np.float16)}, path),
            "has nan in tensor 'bias'",
        ),
        (
            lambda path: save_file({**tensors(1), "bias": np.full(4, np.inf, np.float16)}, path),
            "has inf in tensor 'bias'",
        ),
        (lambda path: save_file({"weight": tensors(1)["weight"]}, path), "lacks tensor 'bias'"),
        (lambda path: save_file({**tensors(1), "more": np.ones(1)}, path), "has a tensor 'more'"),
        (lambda path: save_file({**tensors(1), "bias": np.ones(5, np.float16)}, path), "has tensor 'bias' as"),
        (lambda path: save_file({**tensors(1), "bias": np.ones(4, np.float32)}, path), "has tensor 'bias' as"),
        (lambda path: save_file(tensors(1), path, {"samples": "-1"}), "which is not a count"),
        (lambda path: save_file(tensors(1), path, {"job_id": "another"}), "is for another job"),
        (lambda path: path.symlink_to("/etc/passwd"), "cannot be opened"),
    ],
)
def test_an_unusable_file_is_deleted_and_the_round_continues(bridge, start, write, reason):
    server = start(momentum=0.0)
    for peer in MEMBERS:
        bridge.push_tensors(peer, tensors(1), round=1)
    update(bridge)
    bridge.push(A, write)
    server.logs(reason)
    for peer in (B, C):
        bridge.push_tensors(peer, tensors(4), round=2)
    assert update(bridge)[1]["bias"].tolist() == [4] * 4
    assert contributions(bridge) == []


def test_a_refused_peer_may_send_again(bridge, start):
    server = start(momentum=0.0)
    bridge.push_tensors(A, tensors(np.nan), round=1)
    server.logs("has nan")
    for peer in MEMBERS:
        bridge.push_tensors(peer, tensors(1), round=1)
    assert update(bridge)[1]["bias"].tolist() == [1] * 4
    assert "closes without" not in server.log


def test_a_second_file_of_the_same_round_is_refused(bridge, start):
    server = start(momentum=0.0)
    bridge.push_tensors(A, tensors(1), round=1)
    server.logs("(1 of 3)")
    bridge.push_tensors(A, tensors(100), round=1)
    server.logs("is its second for this round")
    for peer in (B, C):
        bridge.push_tensors(peer, tensors(1), round=1)
    assert update(bridge)[1]["bias"].tolist() == [1] * 4


def test_a_file_from_a_peer_that_is_not_a_member_is_deleted(bridge, start):
    server = start(momentum=0.0)
    path = bridge.push_tensors("12D3KooWX", tensors(100), round=1)
    server.logs("'12D3KooWX', which is not a member of this job")
    for peer in MEMBERS:
        bridge.push_tensors(peer, tensors(1), round=1)
    assert update(bridge)[1]["bias"].tolist() == [1] * 4
    assert not path.exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside", "incoming/../../outside", ".."])
@pytest.mark.parametrize("peer", [A, "12D3KooWX"])
def test_no_path_leads_out_of_the_work_directory(bridge, start, path, peer):
    outside = bridge.work_dir.parent / "outside"
    outside.write_text("mine")
    server = start()
    bridge.announce(peer, path)
    server.logs("has a path outside the work directory")
    assert outside.read_text() == "mine"
    outside.unlink()


@pytest.mark.parametrize(("options", "expected"), [(["--clip-factor", "1"], 1), ([], 4 / 3)])
def test_an_outlier_is_clipped(bridge, start, options, expected):
    start(*options, momentum=0.0)
    for peer, value in zip(MEMBERS, (1, 1, 1000), strict=True):
        bridge.push_tensors(peer, tensors(value), round=1)
    np.testing.assert_allclose(update(bridge)[1]["weight"], np.full((3, 2), expected), rtol=1e-5)


def test_one_of_ten_members_that_lies_about_everything_moves_the_model_little(bridge, start):
    members = tuple(f"12D3KooW{letter}" for letter in "ABCDEFGHIJ")
    server = start(members=members, momentum=0.0)
    for number in (1, 2):
        hostile = {"weight": np.full((3, 2), -3e38, np.float32), "bias": np.full(4, -6e4, np.float16)}
        bridge.push_tensors(members[0], hostile, round=0 if number == 1 else 2, samples=2**53)
        if number == 1:
            server.logs("is for round 0, and a job begins with a round from 1")
            bridge.push_tensors(members[0], hostile, round=7, samples=2**53)
        for peer in members[1:]:
            bridge.push_tensors(peer, tensors(1), **({} if number == 1 else {"round": 2, "samples": 10}))
        found = update(bridge)[1]["weight"]
        assert (found > 0.3).all()
        assert (found <= 1).all()
    assert "ahead" not in server.log
    assert "is early" not in server.log


def test_a_member_that_never_sends_delays_the_first_round_but_not_the_next(bridge, start):
    server = start("--deadline-s", "3", momentum=0.0)
    for number, waits in ((1, True), (2, False)):
        began = time.monotonic()
        for peer in (A, B):
            bridge.push_tensors(peer, tensors(1), round=number)
        assert update(bridge)[1]["bias"].tolist() == [1] * 4
        assert (time.monotonic() - began >= 2.9) is waits
    assert server.log.count(f"closes without {C}") == 2


@pytest.mark.parametrize(
    ("entry", "count", "verdict"),
    [
        (b'"%0119d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', 90_000, "(2 of 3)"),
        (b'"%06d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}', 260_000, "Refused"),
    ],
    ids=["long names", "more tensors than allowed"],
)
def test_a_header_of_many_tensors_costs_the_parameter_server_little_memory(bridge, start, entry, count, verdict):
    server = start(momentum=0.0)
    bridge.push_tensors(A, tensors(1), round=1)
    server.logs("(1 of 3)")
    before = server.peak_mib()
    header = b"{" + b",".join(entry % number for number in range(count)) + b"}"
    assert 14_000_000 < len(header) < 16 << 20
    bridge.push(B, lambda path: path.write_bytes(len(header).to_bytes(8, "little") + header))
    server.logs(verdict)
    assert server.peak_mib() - before < 160


def test_momentum_and_unmerged_files_survive_a_kill(bridge, start):
    server = start(momentum=0.5)
    for peer in MEMBERS:
        bridge.push_tensors(peer, tensors(1), round=1)
    assert update(bridge)[1]["bias"].tolist() == [1.5] * 4
    for number, peer in enumerate((A, B), 1):
        bridge.push_tensors(peer, tensors(1), round=2)
        server.logs(f"round 2, unknown samples, length 3.162 ({number} of 3)")
    server.kill()
    server = start(momentum=0.5)
    server.logs("(2 of 3)")
    bridge.push_tensors(C, tensors(1), round=2)
    # m = 0.5 * 1 + 1; update = 0.5 * m + 1
    assert update_of(bridge, 2)["bias"].tolist() == [0.5 * 1.5 + 1] * 4
    assert bridge.statuses == ["updated"]


def test_a_file_that_was_never_announced_is_found_at_the_start(bridge, start):
    for peer in (A, B):
        path = bridge.push(peer, lambda path: save_file(tensors(1), path), announce=False)
        path.rename(f"{path}.7")
    bridge.push(C, truncated, announce=False)
    start(momentum=0.0).logs("(2 of 3)")
    bridge.push_tensors(C, tensors(1.75))
    assert update(bridge)[1]["bias"].tolist() == [1.25] * 4


def test_a_broken_event_stream_is_resumed(bridge, start):
    server = start(momentum=0.0)
    bridge.push_tensors(A, tensors(1), round=1)
    server.logs("(1 of 3)")
    bridge.break_stream()
    for peer in (B, C):
        bridge.push_tensors(peer, tensors(1), round=1)
    assert update(bridge)[1]["bias"].tolist() == [1] * 4
    assert "the stream ended; trying again" in server.log


def test_an_update_that_was_not_sent_is_sent_by_the_next_process(bridge, start):
    server = start()
    for peer in MEMBERS:
        bridge.push_tensors(peer, tensors(1), round=1)
    first = update(bridge)
    server.kill()
    (bridge.work_dir / "parameter-server" / "delivery.json").unlink(missing_ok=True)
    start()
    again = update(bridge)
    assert again[0] == first[0]
    assert again[1]["bias"].tolist() == first[1]["bias"].tolist()


def test_files_already_merged_are_not_merged_again_by_the_next_process(bridge, start):
    server = start()
    for peer in MEMBERS:
        bridge.push_tensors(peer, tensors(1))
    update(bridge)
    server.kill()
    state = bridge.work_dir / "parameter-server"
    with safe_open(state / "momentum.safetensors", "numpy") as momentum:
        consumed = json.loads(momentum.metadata()["consumed"])
    for name in consumed:  # as if killed before they were deleted
        save_file(tensors(1), state / name)
    start().logs("Resuming after round 1")
    assert contributions(bridge) == []


def test_files_that_arrive_after_a_restart_survive_the_next_restart(bridge, start):
    server = start(momentum=0.0)
    for peer in MEMBERS:
        bridge.push_tensors(peer, tensors(1), round=1)
    update(bridge)
    server.kill()
    for number, peer in enumerate(MEMBERS, 1):  # each is taken by another process
        server = start(momentum=0.0)
        bridge.push_tensors(peer, tensors(number), round=2)
        server.logs(f"({number} of 3)")
        if number < len(MEMBERS):
            server.kill()
    assert update_of(bridge, 2)["bias"].tolist() == [2] * 4


def test_a_done_job_stays_done_after_a_restart(bridge, start):
    bridge.answers = [{"type": "Done"}]
    for _ in range(2):
        server = start()
        if not (bridge.work_dir / "parameter-server" / "momentum.safetensors").exists():
            for peer in MEMBERS:
                bridge.push_tensors(peer, tensors(1), round=1)
        assert server.exit_status() == 0
    assert bridge.updates.qsize() == 1


def test_a_kill_at_any_moment_of_a_round_does_not_change_the_updates(bridge, start):
    random = np.random.default_rng(int.from_bytes(os.urandom(4)))
    big = {"weight": np.ones(2_000_000, np.float32)}
    for number in (1, 2, 3):
        server = start(momentum=0.5)
        for peer in MEMBERS:
            bridge.push_tensors(peer, big, round=number)
        server.logs("(1 of 3)")
        time.sleep(float(random.uniform(0, 0.05)))
        server.kill()
        server = start(momentum=0.5)
        velocity = sum(0.5**power for power in range(number))
        assert set(update_of(bridge, number)["weight"].tolist()) == {0.5 * velocity + 1}
        server.kill()


def test_an_unusable_job_ends_with_exit_code_2(bridge, start):
    server = start(momentum=2)
    assert server.exit_status() == 2
    assert "momentum is 2.0; it must be at least 0 and below 1" in server.log


def test_sigterm_ends_the_parameter_server_at_once(bridge, start):
    server = start()
    bridge.push_tensors(A, tensors(1), round=1)
    server.logs("(1 of 3)")
    server.send_signal(signal.SIGTERM)
    assert server.exit_status() == -signal.SIGTERM
