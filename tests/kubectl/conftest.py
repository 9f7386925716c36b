import pytest

from support.api_server import ApiServer
from support.kubectl import Scene
from support.resources import install_definitions


@pytest.fixture(scope="session")
def served(api_server: ApiServer) -> ApiServer:
    """The API server, which serves HyphaWorkers and HyphaJobs."""
    install_definitions(api_server)
    return api_server


@pytest.fixture
def scene(served: ApiServer, namespace: str) -> Scene:
    """A namespace for workers and jobs."""
    return Scene(served, namespace)
