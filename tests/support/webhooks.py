"""Admission webhooks that do not answer."""

from collections.abc import Iterator
from contextlib import contextmanager

from support.api_server import ApiServer
from support.waiting import until


@contextmanager
def broken_webhook(server: ApiServer, namespace: str) -> Iterator[None]:
    """Prevent the creation of ConfigMaps and Jobs in a namespace with a webhook that does not answer."""
    rule = {"apiGroups": ["", "batch"], "apiVersions": ["v1"], "resources": ["configmaps", "jobs"]}
    webhook = {
        "name": "broken.example.org",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "rules": [rule | {"operations": ["CREATE"]}],
    }
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    with server.client() as client:
        client.post(path, json={"metadata": {"name": namespace}, "webhooks": [webhook]}).raise_for_status()
        probes = f"/api/v1/namespaces/{namespace}/configmaps?dryRun=All"
        probe = {"metadata": {"name": "probe"}}
        until(lambda: "failed calling webhook" in client.post(probes, json=probe).text)
        yield
        client.delete(f"{path}/{namespace}").raise_for_status()
