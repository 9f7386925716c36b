import base58
from hypothesis import given
from hypothesis import strategies as st

from hypha_messages.types import encode_base58, peer_id_from_ed25519, peer_id_to_bytes


@given(st.builds(lambda zeros, rest: bytes(zeros) + rest, st.integers(0, 4), st.binary(max_size=60)))
def test_any_bytes_are_encoded_as_the_base58_library_encodes_them(data: bytes) -> None:
    assert encode_base58(data) == base58.b58encode(data).decode()


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_reads_back_as_the_multihash_it_was_made_from(public_key: bytes) -> None:
    assert peer_id_to_bytes(peer_id_from_ed25519(public_key))[6:] == public_key
