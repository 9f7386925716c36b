"""The program of `helm test`: check that the API server serves both resources and that the operator is healthy."""

import json
import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

ACCOUNT = Path(os.environ.get("ACCOUNT_DIR", "/var/run/secrets/kubernetes.io/serviceaccount"))
GROUP = "/apis/hypha.space/v1alpha1"
NEEDED = {"hyphaworkers", "hyphajobs", "hyphaworkers/status", "hyphajobs/status"}
DEADLINE_S = 10


def missing() -> set[str]:
    """Return the needed resources that the API server does not serve."""
    tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"])
    server = HTTPSConnection(host, port, timeout=DEADLINE_S, context=tls)
    server.request("GET", GROUP, headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"})
    answer = server.getresponse()
    if answer.status == 404:
        return NEEDED
    if answer.status != 200:
        raise HTTPException(f"GET {GROUP}: {answer.status} {answer.reason}")
    return NEEDED - {resource["name"] for resource in json.load(answer)["resources"]}


def check_health() -> None:
    """Raise OSError or HTTPException if the operator is not healthy."""
    operator = HTTPConnection(os.environ["OPERATOR"], timeout=DEADLINE_S)
    operator.request("GET", "/healthz")
    answer = operator.getresponse()
    if answer.status != 200:
        raise HTTPException(f"GET /healthz: {answer.status} {answer.read(1000).decode(errors='replace')}")


def main() -> str | None:
    """Return the first problem, or None."""
    try:
        if lacking := missing():
            return (
                f"the API server lacks {', '.join(sorted(lacking))}. "
                "Install this version's definitions with crds.install=true."
            )
    except (OSError, HTTPException) as error:
        return f"the API server: {error}"
    try:
        check_health()
    except (OSError, HTTPException) as error:
        return f"the operator at {os.environ['OPERATOR']}: {error}. Look at its log."
    print("HyphaWorkers and HyphaJobs are served, and the operator is healthy")
    return None


sys.exit(main())
