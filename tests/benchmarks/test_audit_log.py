"""What the benchmark of the operator counts in the API server's audit log."""

import json
from pathlib import Path

from benchmarks.reconcile_operator import USER
from benchmarks.reconcile_plane import Audit
from e2e.cluster.control_plane import ADMIN


def line(verb: str, resource: str, query: str = "", user: str = USER) -> str:
    event = {"stage": "ResponseComplete", "verb": verb, "objectRef": {"resource": resource}, "requestURI": f"/x{query}"}
    return json.dumps({**event, "user": {"username": user}}) + "\n"


def test_a_dry_run_counts_as_a_check_and_not_as_a_write(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(line("create", "jobs", "?dryRun=All&timeout=15s") + line("create", "jobs") + line("patch", "leases"))
    assert Audit(log).calls() == {("check", "jobs"): 1, ("create", "jobs"): 1}


def test_only_the_calls_of_the_operator_count(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(line("create", "jobs", user=ADMIN) + line("get", "jobs"))
    assert Audit(log).calls() == {("get", "jobs"): 1}
