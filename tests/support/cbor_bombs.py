"""Inputs on which a general CBOR decoder computes for hours, fills the memory or returns values that no message has."""

import cbor2


def array_of(count: int, member: bytes) -> bytes:
    return b"\x9a" + count.to_bytes(4, "big") + member * count


BOMBS = {
    "decimal fraction with a huge exponent": bytes.fromhex("c4821a3b9aca0001"),
    "big float with a huge exponent": bytes.fromhex("c5821a3b9aca0001"),
    "bignum": bytes.fromhex("c2590400") + b"\xff" * 1024,
    "negative bignum": bytes.fromhex("c3590400") + b"\xff" * 1024,
    "bignum keys that collide": cbor2.dumps({n * (2**61 - 1): 0 for n in range(2**4, 2**9)}),
    "integer keys": cbor2.dumps({1: 2}),
    "byte string keys": cbor2.dumps({b"a": 2}),
    "array as a key": b"\xa1\x80\x00",
    "regular expression": cbor2.dumps(cbor2.CBORTag(35, "(a+)+$")),
    "rational number": cbor2.dumps(cbor2.CBORTag(30, [1, 3])),
    "date and time": cbor2.dumps(cbor2.CBORTag(0, "2026-01-01T00:00:00Z")),
    "MIME message": cbor2.dumps(cbor2.CBORTag(36, "From: nobody")),
    "shared value": bytes.fromhex("d81c82d81d0000"),
    "string references": bytes.fromhex("d9010082616161d81900"),
    "set": cbor2.dumps({1, 2, 3}),
    "self-described CBOR": bytes.fromhex("d9d9f700"),
    "unknown tag": cbor2.dumps(cbor2.CBORTag(2**63, 0)),
    "deep arrays": b"\x81" * 100_000 + b"\x00",
    "deep arrays of indefinite length": b"\x9f" * 100_000,
    "deep maps": b"\xa1\x61a" * 100_000 + b"\x00",
    "deep maps of indefinite length": b"\xbf\x61a" * 100_000,
    "an array of 2^62 items": bytes.fromhex("9b4000000000000000"),
    "a map of 2^62 items": bytes.fromhex("bb4000000000000000"),
    "a text of 2^62 bytes": bytes.fromhex("7b4000000000000000"),
    "bytes of 2^62 bytes": bytes.fromhex("5b4000000000000000"),
    "a million small integers": array_of(1_000_000, b"\x00"),
    "a million empty maps": array_of(1_000_000, b"\xa0"),
    "a million empty texts of indefinite length": b"\x9f" + b"\x60" * 1_000_000 + b"\xff",
    "a text in a million chunks": b"\x7f" + b"\x60" * 1_000_000 + b"\xff",
    "a million simple values": array_of(1_000_000, b"\xf0"),
    "undefined": b"\xf7",
    "a break without a beginning": b"\xff",
    "the same key twice": b"\xa2\x61a\x00\x61a\x00",
    "text that is not UTF-8": b"\x62\xc3\x28",
    "reserved lengths": b"\x5c\x00",
}
