"""Async tests run on trio unless a folder's own conftest says otherwise."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.pop("PYTHONUNBUFFERED", None)  # as on the machines of most people

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # a thread would send it, through the proxies of other tests
pytest_plugins = ["support.api_server"]
settings.register_profile("untimed", deadline=None)  # a loaded machine is no defect
settings.load_profile("untimed")


@pytest.fixture
def anyio_backend() -> str:
    """The event loop under test."""
    return "trio"


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Restore what a program that runs in this process changes of it: the environment, and the handler of SIGTERM."""
    handler, before = signal.getsignal(signal.SIGTERM), dict(os.environ)
    yield
    if signal.getsignal(signal.SIGTERM) is not handler:
        signal.signal(signal.SIGTERM, handler)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
