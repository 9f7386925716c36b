from typing import Any

import pytest

from support.api_server import ApiServer
from support.resources import install_definitions


class Objects:
    """Sends objects to the API server and says what it answered."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server

    def apply(self, manifest: dict[str, Any], manager: str = "user", status: bool = False) -> dict[str, Any]:
        """Apply an object; what comes back has `message` and `code` if it was refused."""
        metadata = manifest["metadata"]
        group = f"/apis/{manifest['apiVersion']}/namespaces/{metadata['namespace']}/{manifest['kind'].lower()}s"
        path = f"{group}/{metadata['name']}" + ("/status" if status else "")
        headers = {"Content-Type": "application/apply-patch+yaml"}
        with self.server.client() as client:
            query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
            return dict(client.patch(path, params=query, json=manifest, headers=headers).json())


@pytest.fixture
def objects(api_server: ApiServer) -> Objects:
    """Where HyphaWorkers and HyphaJobs are taken."""
    install_definitions(api_server)
    return Objects(api_server)
