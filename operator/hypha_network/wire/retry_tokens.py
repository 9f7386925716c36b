"""Tokens that prove that a peer receives at its address. The listener keeps nothing to check them, but a key."""

import hmac
import secrets
import struct
from typing import Final

import trio

VALID_S: Final = 10
"""How many seconds a peer has to come back with a token."""
_TIME = struct.Struct("!Q")
_MAC_BYTES: Final = 16
_MAX_ID_BYTES: Final = 20


class RetryTokens:
    """Makes and checks the tokens of a listener."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def make(self, remote: tuple[object, ...], first: bytes, current: bytes) -> bytes:
        """Return a token for a peer that sent a datagram to the connection id `first`, and must go on to `current`."""
        made = _TIME.pack(int(trio.current_time()))
        return made + self._mac(made, remote, first, current) + first

    def check(self, token: bytes, remote: tuple[object, ...], current: bytes) -> bytes | None:
        """Return the connection id that the peer sent to first; None if the token is not valid."""
        made, mac = token[: _TIME.size], token[_TIME.size : _TIME.size + _MAC_BYTES]
        first = token[_TIME.size + _MAC_BYTES :]
        if len(mac) < _MAC_BYTES or len(first) > _MAX_ID_BYTES:
            return None
        if not hmac.compare_digest(mac, self._mac(made, remote, first, current)):
            return None
        return first if trio.current_time() - _TIME.unpack(made)[0] <= VALID_S else None

    def _mac(self, made: bytes, remote: tuple[object, ...], first: bytes, current: bytes) -> bytes:
        peer = f"{remote[0]} {remote[1]} {first.hex()} {current.hex()}".encode()
        return hmac.digest(self._key, made + peer, "sha256")[:_MAC_BYTES]
