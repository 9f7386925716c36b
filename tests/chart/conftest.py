"""What the chart's tests share."""

from pathlib import Path

import pytest

from e2e.cluster.tools import ROOT
from support.api_server import ApiServer

FOREIGN = Path(__file__).parent / "foreign_crds.yaml"


@pytest.fixture(scope="session")
def definitions(api_server: ApiServer) -> ApiServer:
    """The API server of the run, serving our resources and those of others that examples use."""
    for path in (ROOT / "crds", FOREIGN):
        api_server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    api_server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return api_server
