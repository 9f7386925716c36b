"""`kubectl hypha check`."""

import sys
from importlib.metadata import version
from typing import Final

from hypha_contracts import findings
from hypha_kubectl.access.api import Api
from hypha_kubectl.checks.checks import run
from hypha_kubectl.checks.facts import Cluster

SCHEMA_VERSION: Final = 1


def check(api: Api, namespace: str | None, *, before: bool, as_json: bool) -> int:
    """Print what the checks find, and return the exit code. ApiError."""
    results = run(Cluster(api, namespace, before=before))
    if as_json:
        facts = {"schema": SCHEMA_VERSION, "version": version("hypha-worker"), "namespace": namespace}
        print(findings.to_json(results, **facts))
    else:
        for line in findings.to_text(results, colour=sys.stdout.isatty()):
            print(line)
    return findings.exit_code(results)
