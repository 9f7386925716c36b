"""Decodes a file that a server compressed although nobody asked, in pieces, so that a bomb does not fill the memory."""

import zlib
from collections.abc import Iterator
from typing import Final

_PIECE_BYTES: Final = 1024 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_ZLIB_METHOD: Final = 8  # the low half of the first byte


class EncodingError(Exception):
    """The data cannot be decoded. The text says why."""


class Decoder:
    """Decodes the body of one response.

    Args:
        encoding: the value of the header `Content-Encoding`.

    Raises:
        EncodingError: it is neither gzip nor deflate.
    """

    def __init__(self, encoding: str) -> None:
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise EncodingError(
                f"the server sends the file encoded ({encoding}), although the bridge asked for it as it is; the "
                "bridge decodes only gzip and deflate"
            )
        self._deflate = encoding == "deflate"
        self._member: zlib._Decompress | None = None
        self.complete = False
        """Whether the data may end here."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes stand for, at most a MiB at a time; EncodingError."""
        while data:
            if self._member is None:
                if self.complete and (self._deflate or data.startswith(b"\0")):
                    return  # padding after the end
                self._member, self.complete = zlib.decompressobj(self._format(data)), False
            yield from self._decode(self._member, data)
            if not self._member.eof:
                return
            data, self._member, self.complete = self._member.unused_data, None, True

    def _format(self, data: bytes) -> int:
        if not self._deflate:
            return _GZIP
        return _ZLIB if data[0] & 0x0F == _ZLIB_METHOD else _RAW  # some servers leave out the wrapper of zlib

    @staticmethod
    def _decode(member: "zlib._Decompress", data: bytes) -> Iterator[bytes]:
        piece = b""
        while data or len(piece) == _PIECE_BYTES:
            try:
                piece = member.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise EncodingError(f"the server's compressed data is damaged ({error})") from error
            if piece:
                yield piece
            data = b"" if member.eof else member.unconsumed_tail
