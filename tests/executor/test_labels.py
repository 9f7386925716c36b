"""The labels of exchanged files."""

import pytest

from hypha_executor.errors import MalformedFileError
from hypha_executor.labels import Labels, parse_labels


@pytest.mark.parametrize(
    "labels", [Labels(), Labels("id", 1), Labels("id", 2, 8), Labels(samples=2**53), Labels(dataset="d", slice_index=0)]
)
def test_labels_are_parsed_as_they_were_written(labels: Labels) -> None:
    assert parse_labels(labels.to_metadata()) == labels


@pytest.mark.parametrize("text", ["-1", "1.5", "", "nan", "\u0663", "9" * 17, str(2**53 + 1), "1_000", " 1"])
@pytest.mark.parametrize("name", ["round", "samples", "slice_index"])
def test_a_label_that_is_not_a_count_is_refused(name: str, text: str) -> None:
    with pytest.raises(MalformedFileError, match=f"has {name}"):
        parse_labels({name: text})
