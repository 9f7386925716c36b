"""Async tests run on trio unless a folder's own conftest says otherwise."""

import pytest

pytest_plugins = ["support.api_server"]


@pytest.fixture
def anyio_backend() -> str:
    """The event loop under test."""
    return "trio"
