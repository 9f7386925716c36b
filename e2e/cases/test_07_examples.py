"""GitOps: fields that users own keep their values."""

from typing import Any

import pytest
import yaml

from e2e.kube import Kube, Object, consistently, eventually
from e2e.settings import ROOT, Settings

_USER = "gitops"


def owned_by_the_user(item: Object) -> Any:
    """Return the fields that the user's last apply set, and the current spec."""
    fields = [
        entry["fieldsV1"]
        for entry in item["metadata"]["managedFields"]
        if (entry["manager"], entry["operation"]) == (_USER, "Apply")
    ]
    return fields, item["spec"], item["metadata"]["generation"], item["metadata"].get("annotations")


def others_in_spec(item: Object) -> list[str]:
    """Return the managers, other than the user, that own any field beyond status and finalizers."""
    managers = []
    for entry in item["metadata"]["managedFields"]:
        metadata = set(entry["fieldsV1"].get("f:metadata", {})) - {"f:finalizers"}
        if entry["manager"] != _USER and ("f:spec" in entry["fieldsV1"] or metadata):
            managers.append(entry["manager"])
    return managers


@pytest.mark.long
def test_examples_applied_twice_and_reconciled_change_no_field_that_the_user_owns(
    kube: Kube, operator: None, settings: Settings
) -> None:
    examples = [
        item
        for path in sorted((ROOT / "examples").glob("*.yaml"))
        for item in yaml.safe_load_all(path.read_text())
        if item and item["kind"] in ("Namespace", "HyphaWorker")
    ]
    workers = [item["metadata"] for item in examples if item["kind"] == "HyphaWorker"]
    assert len(workers) > 3
    examples.sort(key=lambda item: item["kind"] != "Namespace")

    def observed() -> dict[str, Object]:
        found = {meta["name"]: kube.get("hyphaworkers", meta["namespace"], meta["name"]) for meta in workers}
        return {name: item for name, item in found.items() if item is not None}

    try:
        kube.apply(*examples, manager=_USER)
        eventually(
            "all are reconciled",
            lambda: all(item.get("status", {}).get("conditions") for item in observed().values()),
            120,
        )
        first = {name: owned_by_the_user(item) for name, item in observed().items()}
        kube.apply(*examples, manager=_USER)

        def same() -> bool:
            now = observed()
            return {name: owned_by_the_user(item) for name, item in now.items()} == first

        consistently("the users' fields are as they were", same, settings.reconcile_s, 5)
        assert {name: others_in_spec(item) for name, item in observed().items()} == {name: [] for name in first}
    finally:
        for meta in workers:
            kube.delete("hyphaworkers", meta["namespace"], meta["name"])
        eventually("the examples are gone", lambda: not observed(), 120)
        for item in examples:
            if item["kind"] == "Namespace":
                kube.delete("namespaces", None, item["metadata"]["name"])
