"""The labels of an exchanged file, in the `__metadata__` of its SafeTensors header."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hypha_executor.errors import MalformedFileError

_MAX_COUNT: Final = 2**53


@dataclass(frozen=True)
class Labels:
    """The labels of a pseudo-gradient, an update or predictions. The reference implementation's trainers write none.

    Attributes:
        job_id: The job's UUID.
        round: The round, from 1.
        samples: How many samples the pseudo-gradient or the predictions were made from.
        statistics: "mean" if an update's statistics and integers are the mean of the trainers' changes.
        dataset: The dataset whose slice was predicted.
        slice_index: The place of that slice in its dataset.
    """

    job_id: str | None = None
    round: int | None = None
    samples: int | None = None
    statistics: str | None = None
    dataset: str | None = None
    slice_index: int | None = None

    def to_metadata(self) -> dict[str, str]:
        """Return the labels that are set, as text."""
        return {name: str(value) for name, value in vars(self).items() if value is not None}


def parse_labels(metadata: Mapping[str, str]) -> Labels:
    """Parse the labels in a file's metadata.

    Raises:
        MalformedFileError: A round, a number of samples or an index is not a natural number up to 2**53.
    """
    return Labels(
        job_id=metadata.get("job_id"),
        round=_count(metadata, "round"),
        samples=_count(metadata, "samples"),
        statistics=metadata.get("statistics"),
        dataset=metadata.get("dataset"),
        slice_index=_count(metadata, "slice_index"),
    )


def _count(metadata: Mapping[str, str], name: str) -> int | None:
    text = metadata.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise MalformedFileError(f"has {name} {text[:40]!r} in its metadata, which is not a count")
    if int(text) > _MAX_COUNT:
        raise MalformedFileError(f"has {name} {text} in its metadata, which is beyond {_MAX_COUNT}")
    return int(text)
