"""Fixtures of the chart's tests."""

from pathlib import Path

import pytest

from e2e.cluster.tools import ROOT
from support.api_server import ApiServer

FOREIGN = Path(__file__).parent / "foreign_crds.yaml"


@pytest.fixture(scope="session")
def definitions(api_server: ApiServer) -> ApiServer:
    """The API server of the test run, with the definitions of this project and the foreign ones that examples use."""
    for path in (ROOT / "crds", FOREIGN):
        api_server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    api_server.wait_for_definitions()
    return api_server
