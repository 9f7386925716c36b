"""Durations as people write and read them: `45s`, `3m8s`, `2h5m`, `3d4h`."""

import re
from typing import Final

_UNITS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION: Final = re.compile(r"(?:[0-9]{1,9}[dhms])+")


def short_duration(seconds: float) -> str:
    """Return a duration with its two largest units. A negative one counts as zero."""
    left = max(0, round(seconds))
    sizes = list(_UNITS.items())
    at = next((at for at, (_, size) in enumerate(sizes) if left >= size), len(sizes) - 1)
    parts = []
    for unit, size in sizes[at : at + 2]:
        amount, left = divmod(left, size)
        parts.append(f"{amount}{unit}")
    return "".join(parts)


def parse_duration(text: str) -> int:
    """Return the seconds of a duration such as 90s, 10m or 1h30m. ValueError for any other text."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"{text!r} is no duration. Write 90s, 10m, 1h30m or 2d.")
    return sum(int(amount) * _UNITS[unit] for amount, unit in re.findall(r"([0-9]+)([dhms])", text))
