"""Entries of a SafeTensors header in other than the usual form, as the format's own library (Rust's serde) reads them.

It ignores unknown members of an entry, takes an entry's members as a list, and takes null for no `__metadata__`.
"""

import codecs
import json
import math
import re
from typing import Any, Final

from hypha_executor.errors import MalformedFileError

MAX_VALUE_BYTES: Final = 4 << 10
"""The length of an entry of another form."""
MAX_VALUES: Final = 1000
"""How many entries of a header may have another form. Each costs as much time as several usual ones."""
MAX_DEPTH: Final = 126
"""How deep lists and objects may be nested in an entry."""

Pairs = tuple[tuple[str, Any], ...]
"""A JSON object, in order and with duplicates. A JSON list is a list."""

_NOT_NESTED: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|[^"\[\]{}]++')


def parse_value(text: bytes, position: int) -> tuple[Any, int]:
    """Parse the JSON value at `position`, which is not white space; return it and the position after it.

    Raises:
        MalformedFileError: There is no value, or a longer or deeper one than the limits allow.
        ValueError: It is not UTF-8, or holds half of a surrogate pair.
    """
    part = text[position : position + MAX_VALUE_BYTES]
    decoded, _ = codecs.utf_8_decode(part, "strict", False)
    try:
        value, end = _DECODER.raw_decode(decoded)
    except (json.JSONDecodeError, RecursionError, _UnsoundNumberError):
        raise MalformedFileError(
            f"has a header whose byte {position} begins no JSON value of at most {MAX_VALUE_BYTES} bytes"
        ) from None
    found = decoded[:end]
    if "\\u" in found:
        json.dumps(value, ensure_ascii=False).encode()
    if found.count("[") + found.count("{") > MAX_DEPTH and _depth(found) > MAX_DEPTH:
        raise MalformedFileError(f"has a header with more than {MAX_DEPTH} levels at byte {position}")
    return value, position + (end if found.isascii() else len(found.encode()))


def tensor_members(value: Any) -> tuple[str, list[int], list[int]]:
    """Return the dtype, the shape and the data offsets in a tensor's entry.

    Raises:
        ValueError: One of them is missing, given twice, or of the wrong type.
    """
    members = value
    if isinstance(value, tuple):
        names = ("dtype", "shape", "data_offsets")
        known = [pair for pair in value if pair[0] in names]
        members = [dict(known)[name] for name in names] if sorted(dict(known)) == sorted(names) else None
        if len(known) > len(names):
            members = None
    if not isinstance(members, list) or len(members) != 3:
        raise ValueError("no tensor of dtype, shape and data_offsets")
    dtype, shape, offsets = members
    if isinstance(dtype, tuple) and len(dtype) == 1 and dtype[0][1] is None:
        dtype = dtype[0][0]
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError("no tensor of dtype, shape and data_offsets")
    return dtype, shape, offsets


def metadata_of(value: Any) -> dict[str, str]:
    """Return the `__metadata__` in its value.

    Raises:
        ValueError: It does not map text to text.
    """
    if value is None:
        return {}
    if not isinstance(value, tuple) or not all(isinstance(text, str) for _, text in value):
        raise ValueError("a __metadata__ that does not map text to text")
    return dict(value)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in _NOT_NESTED.sub("", text):
        depth += 1 if character in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


class _UnsoundNumberError(Exception):
    """A number is too large for a float64, or not a number of JSON."""


def _integer(text: str) -> int | float:
    if len(text) <= 18:
        return int(text) if text != "-0" else -0.0
    if len(text) <= 20 and -(2**63) <= int(text) < 2**64:
        return int(text)
    return _float(text)


def _float(text: str) -> float:
    if math.isinf(number := float(text)):
        raise _UnsoundNumberError(text[:40])
    return number


def _constant(text: str) -> float:
    raise _UnsoundNumberError(text)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
