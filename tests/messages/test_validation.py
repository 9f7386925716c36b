import pytest
from pydantic import BaseModel, ValidationError, field_validator

from hypha_messages.validation import MAX_PROBLEM_CHARACTERS, MAX_PROBLEMS, describe


class Inner(BaseModel, extra="forbid"):
    count: int = 0

    @field_validator("count")
    @classmethod
    def _is_small(cls, count: int) -> int:
        if count > 9:
            raise ValueError("choose\na digit")
        return count


class Outer(BaseModel):
    inners: list[Inner]


def refused(value: object) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    return caught.value


def test_a_problem_names_its_key_and_stays_in_one_line() -> None:
    error = refused({"inners": [{}, {"count": 10}]})
    assert describe(error, "message") == "inners.1.count: choose a digit"
    assert describe(error, "spec", prefix="spec.") == "spec.inners.1.count: choose a digit"


def test_a_problem_of_the_complete_value_names_the_value() -> None:
    assert describe(refused(1), "message").startswith("message: Input should be a valid dictionary")


def test_the_text_is_bounded_and_counts_further_problems() -> None:
    text = describe(refused({"inners": [dict.fromkeys((f"{n}" * 1000 for n in range(9)), 0)]}), "message")
    assert text.endswith(f"(and {9 - MAX_PROBLEMS} more)")
    assert len(text) < (MAX_PROBLEMS + 1) * MAX_PROBLEM_CHARACTERS
