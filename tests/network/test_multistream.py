import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_network.errors import NetworkError, RemoteRefused
from hypha_network.wire import multistream
from hypha_network.wire.multistream import encode_varint, prefixed, read_prefixed

pytestmark = pytest.mark.anyio


class Peer:
    """A channel whose other end said all it will say already."""

    def __init__(self, said: bytes) -> None:
        self.said = said
        self.heard = b""

    async def read_exactly(self, size_bytes: int) -> bytes:
        if len(self.said) < size_bytes:
            raise NetworkError("ended")
        data, self.said = self.said[:size_bytes], self.said[size_bytes:]
        return data

    async def write(self, data: bytes) -> None:
        self.heard += data


def lines(*texts: str) -> bytes:
    return b"".join(prefixed(text.encode() + b"\n") for text in texts)


HEADER = "/multistream/1.0.0"


async def test_the_first_accepted_proposal_is_selected_and_later_bytes_stay_unread() -> None:
    peer = Peer(lines(HEADER, "na", "/b/1") + b"rest")
    assert await multistream.select(peer, ["/a/1", "/b/1", "/c/1"]) == "/b/1"
    assert peer.heard == lines(HEADER, "/a/1", "/b/1")
    assert peer.said == b"rest"


async def test_a_peer_that_accepts_no_proposal_is_refused() -> None:
    with pytest.raises(RemoteRefused, match="/a/1 or /b/1"):
        await multistream.select(Peer(lines(HEADER, "na", "na")), ["/a/1", "/b/1"])


async def test_a_listener_answers_each_proposal() -> None:
    peer = Peer(lines(HEADER, "/x/1", "/a/1"))
    assert await multistream.accept(peer, {"/a/1"}) == "/a/1"
    assert peer.heard == lines(HEADER, "na", "/a/1")


async def test_a_listener_sends_its_header_to_a_dialer_that_waits_for_it() -> None:
    peer = Peer(b"")
    with pytest.raises(NetworkError, match="ended"):
        await multistream.accept(peer, {"/a/1"})
    assert peer.heard == lines(HEADER)


async def test_the_number_of_proposals_is_limited() -> None:
    with pytest.raises(NetworkError, match="proposed"):
        await multistream.accept(Peer(lines(HEADER, *["/x/1"] * 1000)), {"/a/1"})


@pytest.mark.parametrize(
    "said",
    [
        lines("/multistream/2.0.0"),
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x80\x80\x80\x80\x80\x80\x80",
        prefixed(b"/multistream/1.0.0"),
        lines(HEADER) + prefixed(bytes(2000)),
    ],
)
async def test_a_malformed_proposal_is_refused(said: bytes) -> None:
    with pytest.raises(NetworkError):
        await multistream.accept(Peer(said), {"/a/1"})
    with pytest.raises(NetworkError):
        await multistream.select(Peer(said), ["/a/1"])


@given(st.binary(max_size=500))
async def test_any_bytes_parse_as_a_proposal_or_are_refused(said: bytes) -> None:
    try:
        protocol = await multistream.accept(Peer(said), {"/a/1"})
    except NetworkError:
        return
    assert protocol == "/a/1"


@given(st.integers(0, 2**28 - 1))
def test_a_varint_has_the_shortest_form(value: int) -> None:
    encoded = encode_varint(value)
    assert sum((byte & 0x7F) << 7 * index for index, byte in enumerate(encoded)) == value
    assert len(encoded) == max(1, -(-value.bit_length() // 7))


@given(st.binary(max_size=1000))
async def test_a_prefixed_message_reads_back(message: bytes) -> None:
    assert await read_prefixed(Peer(prefixed(message)), 1000) == message


async def test_a_message_longer_than_allowed_is_refused_before_it_is_read() -> None:
    peer = Peer(prefixed(bytes(1001)))
    with pytest.raises(RemoteRefused, match="1000"):
        await read_prefixed(peer, 1000)
    assert len(peer.said) == 1001
