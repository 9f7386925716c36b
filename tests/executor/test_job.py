"""The job specification that an executor reads."""

import pytest

from hypha_executor.errors import JobError
from hypha_executor.job import parse_job


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"a":' * 100_000, "1" * 5000])
def test_a_text_that_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(JobError, match="the job is not JSON"):
        parse_job(text, "train")
