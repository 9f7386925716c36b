"""A control plane with raised client rate limits that logs the requests of the benchmark."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.reconcile_operator import USER, sample_sum
from e2e.cluster.control_plane import ADMIN, ControlPlane, reserved_ports
from e2e.cluster.processes import Processes

_QUICK = ("--kube-api-qps=2000", "--kube-api-burst=4000")
_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {{level: Metadata, users: ["{user}", "{admin}"]}}
- {{level: None}}
"""


class Audit:
    """The API server's audit log of the requests of operator, script and load, so that it costs all of them time."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._counted = 0
        self._calls: Counter[tuple[str, str]] = Counter()

    def arguments(self, policy: Path) -> tuple[str, ...]:
        """Return the API server's flags."""
        policy.write_text(_POLICY.format(user=USER, admin=ADMIN))
        return (f"--audit-policy-file={policy}", f"--audit-log-path={self.log}")

    def calls(self) -> Counter[tuple[str, str]]:
        """Return the number of the operator's calls so far, by verb and resource, without the renewals of Leases.

        A dry run, which writes nothing, has the verb `check`.
        """
        with self.log.open("rb") as log:
            log.seek(self._counted)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._counted += len(line)
                event = json.loads(line)
                by_operator = event["user"]["username"] == USER
                if by_operator and event["stage"] == "ResponseComplete" and "objectRef" in event:
                    of = event["objectRef"]
                    if of["resource"] == "leases":
                        continue
                    resource = "/".join(filter(None, (of["resource"], of.get("subresource"))))
                    verb = "check" if "dryRun=" in event["requestURI"] else event["verb"]
                    self._calls[verb, resource] += 1
        return self._calls.copy()


@contextmanager
def control_plane(directory: Path, audit: Audit) -> Iterator[ControlPlane]:
    directory.mkdir(mode=0o700)
    with reserved_ports() as ports:
        plane = ControlPlane(directory, ports=ports)
        more = {
            "kube-apiserver": audit.arguments(directory / "audit-policy.yaml"),
            "kube-controller-manager": (*_QUICK, f"--client-ca-file={plane.pki.ca}"),  # so that its metrics can be read
            "kube-scheduler": _QUICK,
        }
        programs = [replace(p, command=(*p.command, *more.get(p.name, ()))) for p in plane.programs()]
        processes = Processes(directory / "run", programs, die_with_parent=True)
        try:
            processes.up()
            yield plane
        finally:
            processes.down()


def queued(plane: ControlPlane) -> float:
    """Return how many objects wait in the queues of Kubernetes' controllers."""
    url = f"https://{plane.address}:{plane.ports.controller_manager}/metrics"
    with plane.client() as client:
        return sample_sum(client.get(url).raise_for_status().text, "workqueue_depth")
