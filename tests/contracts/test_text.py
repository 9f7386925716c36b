import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_contracts.text import MAX_CHARS, escaped, escaped_lines
from support.hostile_text import HOSTILE


@pytest.mark.parametrize("character", HOSTILE, ids=ascii)
def test_a_hidden_character_is_shown_by_its_code(character: str) -> None:
    shown = escaped(f"a{character}b")
    assert shown.isprintable()
    assert shown.startswith("a\\")
    assert shown.endswith("b")


@pytest.mark.parametrize("text", ["", "plain text", "naïve Zürich", "東京", "Ελλάδα", "▁▂▃ 50%", "a\\b", "'quoted'"])
def test_text_that_people_can_read_stays(text: str) -> None:
    assert escaped(text) == text


@given(st.text(st.characters()))
def test_escaping_twice_changes_nothing(text: str) -> None:
    assert escaped(escaped(text)) == escaped(text)


def test_long_text_is_cut_and_its_length_is_shown() -> None:
    for text in ("x" * 1_000_000, "\x1b" * 1_000_000):
        shown = escaped(text)
        assert len(shown) == MAX_CHARS
        assert shown.endswith("... (1000000 characters)")


def test_the_longest_text_costs_no_more_than_its_maximum() -> None:
    text = "\x1b" * 10_000_000
    began = time.process_time()
    escaped(text)
    assert time.process_time() - began < 0.02


def test_of_many_lines_the_first_and_the_last_are_kept() -> None:
    lines = escaped_lines("\n".join(map(str, range(1000))), max_lines=4)
    assert lines == ["0", "1", "... (1000 lines)", "998", "999"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fetch of https://h.example/secret/x?sig=secret#secret failed", "fetch of https://h.example/... failed"),
        ("proxy http://me:secret@proxy:3128 refused", "proxy http://proxy:3128 refused"),
        ("'https://me:secret@[2001:db8::1]:8443/secret'", "'https://[2001:db8::1]:8443/...'"),
        ("https://a@secret@h/secret", "https://h/..."),
        ("HTTPS://h?secret", "HTTPS://h/..."),
        ("https://h/\u202esecret", "https://h/..."),
        ("see https://h and s3+x://bucket/secret", "see https://h and s3+x://bucket/..."),
        ("https://h/", "https://h/"),
        ("/dns4/h/tcp/4001", "/dns4/h/tcp/4001"),
    ],
)
def test_of_a_url_only_scheme_and_host_are_shown(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped(shown) == shown
