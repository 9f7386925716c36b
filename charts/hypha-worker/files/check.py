"""The program of `helm test`: check that the API server serves both resources and that the operator is ready."""

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


def readiness() -> str:
    """Return whether the replica that answers leads or stands by. OSError or HTTPException if it is not ready."""
    operator = HTTPConnection(os.environ["OPERATOR"], timeout=DEADLINE_S)
    operator.request("GET", "/readyz")
    answer = operator.getresponse()
    text = answer.read(1000).decode(errors="replace")
    if answer.status != 200:
        raise HTTPException(f"GET /readyz: {answer.status} {text}")
    return text


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
        state = readiness()
    except (OSError, HTTPException) as error:
        return f"the operator at {os.environ['OPERATOR']}: {error}. Look at its log."
    print(f"HyphaWorkers and HyphaJobs are served, and the operator is ready: it {state}")
    return None


sys.exit(main())
