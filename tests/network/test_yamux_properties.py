"""Whatever two cores do, in whatever pieces their bytes arrive: no byte is lost, doubled or reordered."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from hypha_network.wire.yamux_frames import HEADER, INITIAL_WINDOW, Limits, ProtocolError, StreamState
from hypha_network.wire.yamux_session import YamuxSession
from support.muxing import BLOB, Clock, session

LIMITS = Limits(
    max_window_bytes=2 * INITIAL_WINDOW,
    growth_bytes=3 * INITIAL_WINDOW,
    max_inbound_streams=4,
    max_outbound_streams=6,
    frame_bytes=40_000,
    batch_bytes=100_000,
)


@dataclass(eq=False)
class End:
    """One end of a stream, and what is known of it."""

    side: int
    stream: StreamState
    peer: "End | None" = None
    sent: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)
    dropped: bool = False
    """This end was reset or abandoned."""


class TwoSessions(RuleBasedStateMachine):
    ends = Bundle("ends")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.sides: tuple[YamuxSession, YamuxSession] = (
            session(is_initiator=True, limits=LIMITS, clock=self.clock),
            session(limits=LIMITS, clock=self.clock),
        )
        self.wires = (bytearray(), bytearray())
        """What is on its way from each side."""
        self.opened: dict[int, End] = {}
        self.all: list[End] = []

    @rule(target=ends, side=st.integers(0, 1))
    def open(self, side: int) -> object:
        if not self.sides[side].can_open:
            return multiple()
        end = End(side, self.sides[side].open())
        self.opened[end.stream.stream_id] = end
        self.all.append(end)
        return end

    @rule(target=ends, side=st.integers(0, 1))
    def accept(self, side: int) -> object:
        if not self.sides[side].incoming:
            return multiple()
        stream = self.sides[side].accept()
        end = End(side, stream, self.opened[stream.stream_id])
        self.opened[stream.stream_id].peer = end
        self.all.append(end)
        return end

    @rule(end=ends, size=st.integers(1, 600_000))
    def send(self, end: End, size: int) -> None:
        if not end.stream.eof and not end.stream.failure:
            start = len(end.sent) % 1000
            data = BLOB[start : start + size]
            self.sides[end.side].send(end.stream, memoryview(data))
            end.sent += data

    @rule(end=ends)
    def send_eof(self, end: End) -> None:
        if not end.stream.eof and not end.stream.failure:
            self.sides[end.side].send_eof(end.stream)

    @rule(end=ends, at_most=st.none() | st.integers(1, 300_000))
    def take(self, end: End, at_most: int | None) -> None:
        data = self.sides[end.side].take(end.stream, at_most)
        assert data is None or (data and (at_most is None or len(data) <= at_most))
        end.got += data or b""

    @rule(end=ends)
    def reset(self, end: End) -> None:
        self.sides[end.side].reset(end.stream, "test")
        end.dropped = True

    @rule(end=ends)
    def close(self, end: End) -> None:
        if not end.stream.eof and not end.stream.failure:
            self.sides[end.side].send_eof(end.stream)
        self.sides[end.side].abandon(end.stream)
        end.dropped = True

    @rule(side=st.integers(0, 1))
    def write(self, side: int) -> None:
        self.wires[side].extend(self.sides[side].take_output())

    @rule(side=st.integers(0, 1), size=st.integers(1, 200_000))
    def arrive(self, side: int, size: int) -> None:
        data = bytes(self.wires[side][:size])
        del self.wires[side][:size]
        self.sides[1 - side].receive(data)

    @rule(side=st.integers(0, 1), sizes=st.lists(st.integers(1, 20), max_size=30))
    def trickle(self, side: int, sizes: list[int]) -> None:
        for size in sizes:
            self.arrive(side, size)

    @rule(side=st.integers(0, 1))
    def ping(self, side: int) -> None:
        self.sides[side].ping()

    @rule(seconds=st.floats(0, 1))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def nothing_is_lost_doubled_or_reordered(self) -> None:
        for end in self.all:
            if end.peer is not None:
                assert end.peer.sent.startswith(end.got)

    @invariant()
    def windows_and_memory_are_bounded(self) -> None:
        for side in self.sides:
            streams = side.streams.values()
            for stream in streams:
                assert stream.send_window >= 0
                assert stream.receive_window >= 0
                assert stream.receive_window + len(stream.received) <= stream.max_window <= LIMITS.max_window_bytes
            grown = sum(stream.max_window - INITIAL_WINDOW for stream in streams)
            assert 0 <= grown == side._grown_bytes <= LIMITS.growth_bytes
            assert sum(stream.outbound for stream in streams) <= LIMITS.max_outbound_streams
            assert sum(not stream.outbound for stream in streams) <= LIMITS.max_inbound_streams

    @invariant()
    def nobody_may_send_more_than_the_other_side_takes(self) -> None:
        for end in self.all:
            if end.peer is not None and not end.stream.failure and not end.peer.stream.failure:
                assert end.stream.send_window <= end.peer.stream.receive_window

    def teardown(self) -> None:
        """Let everything arrive: what was not cut off is whole, and streams closed on both sides are forgotten."""
        for end in self.all:
            self.send_eof(end)
        for _ in range(1000):
            for side in (0, 1):
                self.write(side)
                self.arrive(side, 1 << 30)
                while self.sides[1 - side].incoming:
                    self.accept(1 - side)
            for end in self.all:
                self.take(end, None)
                self.send_eof(end)
            if not any(side.has_output for side in self.sides) and not any(self.wires):
                break
        for end in self.all:
            if end.stream.failure or end.dropped:
                continue
            assert end.peer is not None
            assert end.stream.fin_received
            assert end.got == end.peer.sent
        assert not any(side.streams for side in self.sides)


TestTwoSessions = TwoSessions.TestCase
TestTwoSessions.settings = settings(max_examples=60, stateful_step_count=40)


@given(data=st.binary(max_size=2000), sizes=st.lists(st.integers(1, 50), min_size=1))
def test_garbage_is_processed_or_raises_a_protocol_error(data: bytes, sizes: list[int]) -> None:
    check_robust(data, sizes)


frames = st.builds(
    lambda kind, flags, stream_id, body, length: HEADER.pack(0, kind, flags, stream_id, length or len(body)) + body,
    st.integers(0, 3),
    st.sampled_from([0, 0, 1, 2, 4, 8, 3, 5, 9, 12]),
    st.integers(0, 6),
    st.binary(max_size=40),
    st.none() | st.integers(0, 0xFFFF_FFFF),
)


@given(data=st.lists(frames, max_size=40).map(b"".join), sizes=st.lists(st.integers(1, 50), min_size=1))
def test_any_sequence_of_frames_is_processed_or_refused_within_bounds(data: bytes, sizes: list[int]) -> None:
    check_robust(data, sizes)


def check_robust(data: bytes, sizes: list[int]) -> None:
    side = session()
    mine = side.open()
    try:
        for i in range(len(data)):
            piece, data = data[: sizes[i % len(sizes)]], data[sizes[i % len(sizes)] :]
            if not piece:
                break
            side.receive(piece)
            if i % 3 == 0:
                side.take_output()
            if side.incoming and i % 2:
                side.accept()
    except ProtocolError as error:
        side.fail(str(error))
        assert mine.failure or mine.fin_received
    for stream in side.streams.values():
        assert 0 <= stream.receive_window + len(stream.received) <= stream.max_window


@pytest.mark.parametrize("sizes", [[1], [11], [12], [13], [1000], [1, 7, 30_000]])
def test_the_size_of_the_received_pieces_makes_no_difference(sizes: list[int]) -> None:
    sender, receiver = session(is_initiator=True), session()
    for size in (0, 1, 70_000):
        stream = sender.open()
        if size:
            sender.send(stream, memoryview(BLOB[:size]))
        sender.send_eof(stream)
    data = b"".join(iter(sender.take_output, b""))
    i = 0
    while data:
        receiver.receive(data[: sizes[i % len(sizes)]])
        data = data[sizes[i % len(sizes)] :]
        i += 1
    assert [bytes(receiver.accept().received) for _ in range(3)] == [b"", BLOB[:1], BLOB[:70_000]]
