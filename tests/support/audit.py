"""What the API server's audit log says about who wrote what while which replica of the operator led."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WRITES = ("create", "update", "patch", "delete")


def policy(*users: str) -> str:
    """Return an audit policy that records the writes of these users."""
    rule = {"level": "Metadata", "users": list(users), "verbs": list(WRITES)}
    rules = [rule, {"level": "None"}]
    return json.dumps(
        {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": rules}
    )


@dataclass(frozen=True)
class Write:
    """A write that succeeded. Times are in the API server's format, which sorts by time."""

    verb: str
    resource: str
    namespace: str
    name: str
    replica: str
    received: str
    done: str


def writes(log: Path) -> list[Write]:
    """Return the writes that succeeded, in the order of completion, without those that were dry runs."""
    found = [_write(event) for event in map(json.loads, log.read_text().splitlines()) if _succeeded(event)]
    return sorted(found, key=lambda write: write.done)


def _succeeded(event: dict[str, Any]) -> bool:
    done = event["stage"] == "ResponseComplete" and event["responseStatus"]["code"] < 300 and "objectRef" in event
    return done and "dryRun=" not in event["requestURI"]


def _write(event: dict[str, Any]) -> Write:
    of = event["objectRef"]
    replica = re.search(r"\((.+)\)$", event.get("userAgent", ""))
    return Write(
        event["verb"],
        of["resource"],
        of.get("namespace", ""),
        of.get("name", ""),
        replica[1] if replica else event["user"]["username"],
        event["requestReceivedTimestamp"],
        event["stageTimestamp"],
    )


def out_of_turn(found: Iterable[Write], lease: str, others: Iterable[str]) -> list[Write]:
    """Return the writes of replicas that did not hold the Lease when the API server began or ended them."""
    known = list(found)
    terms = [(write.done, write.replica) for write in known if (write.resource, write.name) == ("leases", lease)]

    def leader_at(time: str) -> str:
        return next((who for since, who in reversed(terms) if since <= time), "")

    checked = (write for write in known if write.resource != "leases" and write.replica not in others)
    return [write for write in checked if {leader_at(write.received), leader_at(write.done)} != {write.replica}]


def created(found: Iterable[Write], resource: str) -> Counter[str]:
    """Return how often an object of each name was created."""
    return Counter(write.name for write in found if (write.verb, write.resource) == ("create", resource))
