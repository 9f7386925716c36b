import pytest

from support.api_server import ApiServer
from support.people import User
from support.resources import install_definitions


@pytest.fixture
def anyio_backend() -> str:
    """The operator runs on asyncio."""
    return "asyncio"


@pytest.fixture
def served(api_server: ApiServer) -> ApiServer:
    """The API server, which serves HyphaWorkers and HyphaJobs."""
    install_definitions(api_server)
    return api_server


@pytest.fixture
def user(served: ApiServer, namespace: str) -> User:
    """A user who writes objects of the test's namespace."""
    return User(served, namespace)
