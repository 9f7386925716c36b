"""What the benchmark of the operator counts in the API server's audit log."""

import json
from pathlib import Path

from benchmarks.reconcile_plane import Audit


def line(verb: str, resource: str, query: str = "") -> str:
    event = {"stage": "ResponseComplete", "verb": verb, "objectRef": {"resource": resource}, "requestURI": f"/x{query}"}
    return json.dumps(event) + "\n"


def test_a_dry_run_counts_as_a_check_and_not_as_a_write(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(line("create", "jobs", "?dryRun=All&timeout=15s") + line("create", "jobs") + line("patch", "leases"))
    assert Audit(log).calls() == {("check", "jobs"): 1, ("create", "jobs"): 1}
