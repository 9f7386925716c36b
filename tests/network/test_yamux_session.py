"""The yamux protocol, without input or output."""

import tracemalloc

import pytest

from hypha_network.wire.yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    INITIAL_WINDOW,
    MAX_UINT32,
    NORMAL,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    Limits,
    ProtocolError,
)
from hypha_network.wire.yamux_session import YamuxSession
from support.muxing import BLOB, Clock, exchange, frame, open_pair, output, receive_all, session


def test_a_frame_header_is_twelve_bytes_in_network_order() -> None:
    assert HEADER.pack(0, WINDOW_UPDATE, SYN | FIN, 0x01020304, 0x00040000).hex() == "000100050102030400040000"


def test_the_dialling_side_opens_odd_streams_and_the_other_one_even_streams() -> None:
    dialling, listening = session(is_initiator=True), session()
    assert [dialling.open().stream_id for _ in range(3)] == [1, 3, 5]
    assert [listening.open().stream_id for _ in range(3)] == [2, 4, 6]


def test_a_stream_is_announced_by_its_first_data() -> None:
    side = session(is_initiator=True)
    stream = side.open()
    side.send(stream, memoryview(b"hello"))
    assert output(side) == [(DATA, SYN, 1, 5, b"hello")]


def test_a_stream_without_data_is_announced_too() -> None:
    side = session(is_initiator=True)
    side.open()
    assert output(side) == [(WINDOW_UPDATE, SYN, 1, 0, b"")]


def test_a_stream_is_acknowledged_once_it_is_accepted() -> None:
    side = session()
    side.receive(frame(WINDOW_UPDATE, SYN, 1, 0))
    assert output(side) == []
    side.accept()
    assert output(side) == [(WINDOW_UPDATE, ACK, 1, 0, b"")]
    side.receive(frame(DATA, 0, 1, body=b"x"))
    assert output(side) == []


def test_credit_in_the_first_frame_of_a_stream_counts() -> None:
    side = session()
    side.receive(frame(WINDOW_UPDATE, SYN, 1, 1000))
    assert side.accept().send_window == INITIAL_WINDOW + 1000


def test_nothing_is_sent_beyond_the_peers_window_until_it_opens() -> None:
    side = session(is_initiator=True)
    stream = side.open()
    side.send(stream, memoryview(BLOB[: INITIAL_WINDOW + 5]))
    assert sum(length for *_, length, _ in output(side)) == INITIAL_WINDOW
    side.receive(frame(WINDOW_UPDATE, ACK, 1, 3))
    assert [length for *_, length, _ in output(side)] == [3]
    assert stream.sent_bytes == INITIAL_WINDOW + 3


def test_no_frame_is_larger_than_the_limit() -> None:
    side = session(is_initiator=True, limits=Limits(frame_bytes=1000))
    side.send(side.open(), memoryview(BLOB[:2500]))
    assert [length for *_, length, _ in output(side)] == [1000, 1000, 500]


def test_a_small_message_waits_for_at_most_one_frame_of_each_bulk_stream() -> None:
    side = session(is_initiator=True, limits=Limits(batch_bytes=1))
    for _ in range(3):
        side.send(side.open(), memoryview(BLOB[:INITIAL_WINDOW]))
    side.take_output()
    side.send(side.open(), memoryview(b"urgent"))
    assert [frames[2] for frames in output(side)[:4]] == [3, 5, 1, 7]


def test_half_closed_streams_still_receive() -> None:
    dialling, listening = session(is_initiator=True), session()
    near, far = open_pair(dialling, listening)
    dialling.send_eof(near)
    exchange(dialling, listening)
    assert far.fin_received
    listening.send(far, memoryview(b"answer"))
    listening.send_eof(far)
    exchange(dialling, listening)
    assert dialling.take(near) == b"answer"
    assert near.fin_received
    assert not dialling.streams
    assert not listening.streams


def test_data_that_arrived_before_a_reset_can_be_taken() -> None:
    side = session()
    side.receive(frame(DATA, SYN, 1, body=BLOB[:1000]) + frame(DATA, 0, 1, body=BLOB[1000:3000]) + frame(DATA, RST, 1))
    stream = side.accept()
    assert side.take(stream) == BLOB[:3000]
    assert stream.failure == "reset by the peer"
    assert not side.streams


def test_a_stream_that_this_node_resets_is_reset_once_and_removed() -> None:
    side = session()
    side.receive(frame(DATA, SYN, 1, body=b"unread"))
    stream = side.accept()
    output(side)
    side.reset(stream, "no")
    side.reset(stream, "no")
    assert output(side) == [(WINDOW_UPDATE, RST, 1, 0, b"")]
    assert side.take(stream) is None
    side.receive(frame(DATA, 0, 1, body=b"late") + frame(WINDOW_UPDATE, 0, 1, 9) + frame(DATA, FIN, 1))
    assert output(side) == []


def test_a_stream_ends_only_after_its_complete_last_frame() -> None:
    side = session()
    last = frame(DATA, SYN | FIN, 1, body=b"abcdef")
    side.receive(last[:-1])
    stream = side.accept()
    assert side.take(stream) == b"abcde"
    assert not stream.readable
    side.receive(last[-1:])
    assert side.take(stream) == b"f"
    assert stream.fin_received


def test_a_stream_reset_before_its_announcement_is_never_announced() -> None:
    side = session(is_initiator=True)
    stream = side.open()
    side.send(stream, memoryview(b"never mind"))
    side.reset(stream, "no")
    assert output(side) == []
    assert not side.streams


def test_the_window_is_renewed_once_half_of_it_was_taken() -> None:
    clock = Clock()
    side = session(clock=clock)
    half = INITIAL_WINDOW // 2
    side.receive(frame(DATA, SYN, 1, body=BLOB[:half]))
    stream = side.accept()
    assert output(side) == [(WINDOW_UPDATE, ACK, 1, 0, b"")]
    clock.now_s = 60
    side.take(stream, half - 1)
    assert output(side) == []
    side.take(stream)
    assert output(side) == [(WINDOW_UPDATE, 0, 1, half, b"")]


def test_a_slow_stream_keeps_its_window() -> None:
    clock = Clock()
    dialling, listening = session(is_initiator=True), session(clock=clock)
    near, far = open_pair(dialling, listening)
    for _ in range(20):
        dialling.send(near, memoryview(BLOB[:INITIAL_WINDOW]))
        exchange(dialling, listening)
        clock.now_s += 1
        listening.take(far)
        exchange(dialling, listening)
    assert far.max_window == INITIAL_WINDOW


def test_a_fast_stream_gets_a_larger_window_up_to_the_limit() -> None:
    dialling, listening = session(is_initiator=True), session(limits=Limits(max_window_bytes=3 * 1024 * 1024))
    near, far = open_pair(dialling, listening)
    for _ in range(20):
        dialling.send(near, memoryview(BLOB[: 1024 * 1024]))
        exchange(dialling, listening)
        listening.take(far)
        exchange(dialling, listening)
    assert far.max_window == 3 * 1024 * 1024
    assert near.send_window <= far.receive_window <= far.max_window


def test_streams_share_the_growth_of_windows_and_return_it() -> None:
    limits = Limits(growth_bytes=1024 * 1024)
    dialling, listening = session(is_initiator=True), session(limits=limits)
    pairs = [open_pair(dialling, listening) for _ in range(4)]
    for _ in range(10):
        for near, far in pairs:
            dialling.send(near, memoryview(BLOB[: 1024 * 1024]))
            exchange(dialling, listening)
            listening.take(far)
            exchange(dialling, listening)
    assert sum(far.max_window - INITIAL_WINDOW for _, far in pairs) == limits.growth_bytes
    for near, far in pairs:
        dialling.reset(near, "done")
        exchange(dialling, listening)
        assert far.failure
    near, far = open_pair(dialling, listening)
    dialling.send(near, memoryview(BLOB[:INITIAL_WINDOW]))
    exchange(dialling, listening)
    listening.take(far)
    exchange(dialling, listening)
    assert far.max_window > INITIAL_WINDOW


def test_pings_are_answered_and_measured() -> None:
    clock = Clock()
    dialling, listening = session(is_initiator=True, clock=clock), session()
    dialling.ping()
    dialling.ping()
    ping = dialling.take_output()
    assert len(ping) == HEADER.size
    listening.receive(ping)
    clock.now_s = 0.25
    pong = listening.take_output()
    dialling.receive(pong)
    assert dialling.rtt_s == 0.25
    dialling.receive(pong)
    assert dialling.rtt_s == 0.25
    assert output(listening) == []


def test_go_away_follows_all_data_that_can_be_sent() -> None:
    side = session(is_initiator=True)
    stream = side.open()
    side.send(stream, memoryview(BLOB[:300_000]))
    side.close(NORMAL)
    frames = output(side)
    assert sum(length for kind, *_, length, _ in frames if kind == DATA) == INITIAL_WINDOW
    assert frames[-1] == (GO_AWAY, 0, 0, NORMAL, b"")
    assert side.closing


def test_after_the_peers_go_away_streams_continue_and_none_can_be_opened() -> None:
    side = session()
    side.receive(frame(DATA, SYN, 1, body=b"a") + frame(GO_AWAY, 0, 0, 0) + frame(DATA, FIN, 1, body=b"b"))
    assert side.closing
    stream = side.accept()
    assert side.take(stream) == b"ab"
    assert stream.fin_received


def test_when_the_connection_ends_streams_return_the_data_that_arrived() -> None:
    side = session()
    side.receive(frame(DATA, SYN, 1, body=b"abc") + frame(DATA, SYN | FIN, 3, body=b"whole"))
    part, whole = side.accept(), side.accept()
    side.fail("gone")
    assert side.take(part) == b"abc"
    assert part.failure == "gone"
    assert not part.fin_received
    assert side.take(whole) == b"whole"
    assert whole.fin_received


def test_an_abandoned_stream_is_reset_if_the_peer_sends_much_more() -> None:
    dialling, listening = session(is_initiator=True), session()
    near, far = open_pair(dialling, listening)
    listening.send(far, memoryview(b"enough"))
    listening.send_eof(far)
    listening.abandon(far)
    dialling.send(near, memoryview(BLOB[:1000]))
    exchange(dialling, listening)
    assert dialling.take(near) == b"enough"
    assert near.fin_received
    assert not near.failure
    dialling.send(near, memoryview(BLOB[: INITIAL_WINDOW * 2]))
    exchange(dialling, listening)
    assert near.failure == "reset by the peer"
    assert not listening.streams


def test_an_abandoned_stream_is_reset_if_the_peer_waits_for_its_window() -> None:
    dialling, listening = session(is_initiator=True), session()
    near, far = open_pair(dialling, listening)
    dialling.send(near, memoryview(BLOB[: INITIAL_WINDOW * 2]))
    exchange(dialling, listening)
    listening.send_eof(far)
    listening.abandon(far)
    exchange(dialling, listening)
    assert near.fin_received
    assert near.failure


OPEN = frame(WINDOW_UPDATE, SYN, 1, 0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(frame(DATA, SYN, 1, version=1), "version 1", id="version"),
        pytest.param(frame(4, 0, 1, 0), "type 4", id="type"),
        pytest.param(frame(DATA, 0x10, 1), "flags 0x0010", id="flags"),
        pytest.param(frame(DATA, SYN, 2), "not the peer's to open", id="our stream id"),
        pytest.param(frame(DATA, SYN, 0), "not the peer's to open", id="stream zero"),
        pytest.param(frame(DATA, 0, 0), "never opened", id="data on stream zero"),
        pytest.param(frame(DATA, 0, 2), "never opened", id="data on a stream we never opened"),
        pytest.param(OPEN + OPEN, "open already", id="opened twice"),
        pytest.param(frame(DATA, SYN, 1, INITIAL_WINDOW + 1), "window of 262144", id="first data over the window"),
        pytest.param(OPEN + frame(DATA, 0, 1, MAX_UINT32), "4294967295 bytes", id="4 GiB frame"),
        pytest.param(frame(DATA, 0, 1, MAX_UINT32), "which is closed", id="4 GiB frame on an unknown stream"),
        pytest.param(OPEN + frame(WINDOW_UPDATE, 0, 1, MAX_UINT32), "a window of", id="window overflow"),
        pytest.param(OPEN + frame(DATA, FIN, 1) + frame(DATA, 0, 1, body=b"x"), "after its end", id="data after FIN"),
        pytest.param(frame(PING, SYN, 0, 1) * 2000, "does not read the answers", id="ping flood"),
        pytest.param(
            b"".join(frame(DATA, SYN, 2 * i + 1) for i in range(2000)), "does not read the answers", id="SYN flood"
        ),
    ],
)
def test_frames_that_violate_the_protocol_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        receive_all(session(), data)


def test_data_over_the_window_of_an_open_stream_is_refused_before_it_is_stored() -> None:
    side = session()
    side.receive(frame(DATA, SYN, 1, body=BLOB[:INITIAL_WINDOW]))
    with pytest.raises(ProtocolError, match="window of 0"):
        side.receive(frame(DATA, 0, 1, body=b"x"))
    assert len(side.accept().received) == INITIAL_WINDOW


def test_more_streams_than_the_limit_are_reset() -> None:
    side = session(limits=Limits(max_inbound_streams=2))
    side.receive(b"".join(frame(DATA, SYN, stream_id, body=b"hi") for stream_id in (1, 3, 5)))
    assert output(side) == [(WINDOW_UPDATE, RST, 5, 0, b"")]
    side.reset(side.accept(), "done")
    side.receive(frame(DATA, SYN, 7))
    assert [frames[1:3] for frames in output(side)] == [(RST, 1)]
    assert set(side.streams) == {3, 7}


def test_streams_that_were_reset_at_once_do_not_pile_up_unaccepted() -> None:
    side = session(limits=Limits(max_inbound_streams=10))
    for i in range(1000):
        side.receive(frame(DATA, SYN, 2 * i + 1, body=b"x") + frame(DATA, RST, 2 * i + 1))
        side.take_output()
    assert len(side.incoming) == 10
    assert not side.streams


def test_no_more_streams_are_open_than_allowed() -> None:
    side = session(is_initiator=True, limits=Limits(max_outbound_streams=2))
    first, _ = side.open(), side.open()
    assert not side.can_open
    side.reset(first, "done")
    assert side.can_open


def test_a_million_frames_of_one_byte_cost_little_memory() -> None:
    side = session()
    side.receive(OPEN)
    many = frame(DATA, 0, 1, body=b"x") * 1000
    receive_all(side, many)
    tracemalloc.start()
    try:
        for _ in range(200):
            receive_all(side, many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * INITIAL_WINDOW


def test_a_flood_of_frames_is_processed_in_small_parts() -> None:
    side = session(limits=Limits(frames_at_once=100))
    flood = OPEN + frame(WINDOW_UPDATE, 0, 1, 0) * 150
    first = side.receive(flood)
    assert first == 100 * HEADER_BYTES
    assert side.receive(flood[first:]) == 51 * HEADER_BYTES


def test_bytes_that_arrive_one_by_one_are_parsed() -> None:
    side = session()
    for byte in frame(DATA, SYN, 1, body=b"hello") + frame(DATA, FIN, 1, body=b" world") + frame(PING, SYN, 0, 7):
        side.receive(bytes([byte]))
    stream = side.accept()
    assert side.take(stream) == b"hello world"
    assert stream.fin_received
    assert (PING, ACK, 0, 7, b"") in output(side)


def test_both_sessions_release_streams_that_are_closed() -> None:
    dialling: YamuxSession = session(is_initiator=True)
    listening: YamuxSession = session()
    for _ in range(1000):
        near, far = open_pair(dialling, listening)
        dialling.send_eof(near)
        listening.send_eof(far)
        exchange(dialling, listening)
    assert not dialling.streams
    assert not listening.streams
