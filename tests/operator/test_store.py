"""The store stays correct if events arrive late, twice or out of order."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_contracts.kinds import CONFIG_MAP, DEPLOYMENT, HYPHA_JOB, JOB, POD, POD_DISRUPTION_BUDGET, Kind
from hypha_operator.machinery.store import Store, trimmed


def thing(name: str = "a", version: int = 1, uid: str = "u", **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"version": str(version)}}


def of(worker: str = "w", job: str | None = None) -> dict[str, str]:
    return {"hypha.space/worker": worker} | ({"hypha.space/job": job} if job else {})


def names(store: Store, kind: Kind = CONFIG_MAP, worker: str = "w") -> list[str]:
    return [item["metadata"]["name"] for item in store.of_worker(kind, "ns", worker)]


def test_an_older_event_changes_nothing():
    store = Store()
    assert store.put(CONFIG_MAP, thing(version=2))
    assert not store.put(CONFIG_MAP, thing(version=1))
    assert not store.put(CONFIG_MAP, thing(version=2))
    found = store.get(CONFIG_MAP, "ns", "a")
    assert found
    assert found["data"] == {"version": "2"}


def test_an_event_about_a_deleted_object_is_ignored():
    store = Store()
    store.put(CONFIG_MAP, thing(version=1))
    assert store.remove(CONFIG_MAP, thing(version=3))
    assert not store.put(CONFIG_MAP, thing(version=2))
    assert store.get(CONFIG_MAP, "ns", "a") is None
    assert store.put(CONFIG_MAP, thing(version=3, uid="another"))


def test_an_object_that_regains_its_label_is_stored_again():
    """A watch reports an object that loses its label as deleted."""
    store = Store()
    store.put(CONFIG_MAP, thing(version=1))
    store.remove(CONFIG_MAP, thing(version=2))
    assert store.is_deleted("u", 2)
    assert not store.is_deleted("u", 3)
    assert store.put(CONFIG_MAP, thing(version=3))
    assert not store.remove(CONFIG_MAP, thing(version=2)), "comes late"
    assert store.get(CONFIG_MAP, "ns", "a")


def test_the_deletion_of_an_object_keeps_its_successor_of_the_same_name():
    store = Store()
    store.put(CONFIG_MAP, thing(version=1, uid="first"))
    store.put(CONFIG_MAP, thing(version=2, uid="second"))
    assert not store.remove(CONFIG_MAP, thing(version=1, uid="first"))
    assert store.get(CONFIG_MAP, "ns", "a")


def test_children_are_found_by_their_current_labels():
    store = Store()
    store.put(CONFIG_MAP, thing("a", 1, "ua", **of()))
    store.put(CONFIG_MAP, thing("b", 2, "ub", **of(job="j")))
    store.put(CONFIG_MAP, thing("c", 3, "uc", **of("other")))
    assert names(store) == ["a", "b"]
    assert [item["metadata"]["name"] for item in store.of_job(CONFIG_MAP, "ns", "j")] == ["b"]
    store.put(CONFIG_MAP, thing("a", 4, "ua", **of("other")))
    store.remove(CONFIG_MAP, thing("b", 5, "ub"))
    assert names(store) == []
    assert names(store, worker="other") == ["a", "c"]


def test_a_returned_object_is_a_copy():
    store = Store()
    store.put(CONFIG_MAP, thing())
    first = store.get(CONFIG_MAP, "ns", "a")
    assert first
    first["data"]["version"] = "changed"
    second = store.get(CONFIG_MAP, "ns", "a")
    assert second
    assert second["data"] == {"version": "1"}


def test_fields_that_no_decision_needs_are_not_kept():
    pod = {
        "metadata": {"name": "p", "managedFields": [{"manager": "kubelet"}], "labels": {"a": "b"}},
        "spec": {"containers": [{}], "nodeName": "n"},
        "status": {"phase": "Running"},
    }
    kept = trimmed(POD, pod)
    assert kept == {"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"nodeName": "n"}, "status": pod["status"]}
    job = {"metadata": {"name": "j"}, "spec": {"config": {"large": 1}, "executor": {}}}
    assert trimmed(HYPHA_JOB, job)["spec"] == {"executor": {}}
    assert "config" in job["spec"]


def thing_of(kind: Kind, version: int, **content: Any) -> dict[str, Any]:
    metadata = {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": str(version)}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **content}


def status(type_: str, **counts: Any) -> dict[str, Any]:
    return {"conditions": [{"type": type_, "status": "True"}], **counts}


COUNTS: dict[str, tuple[Kind, dict[str, Any], dict[str, Any]]] = {
    "a Job counts its ready pods": (JOB, status("Suspended", active=1), status("Suspended", active=1, ready=1)),
    "a Deployment makes progress": (DEPLOYMENT, status("Available", replicas=1), status("Available", replicas=2)),
    "a budget counts the pods of jobs": (POD_DISRUPTION_BUDGET, {"currentHealthy": 1}, {"currentHealthy": 2}),
}
CHANGES: dict[str, tuple[Kind, dict[str, Any], dict[str, Any]]] = {
    "a Job is complete": (JOB, {"active": 1}, status("Complete", active=1)),
    "a Deployment becomes available": (DEPLOYMENT, status("Progressing"), status("Available")),
    "a pod runs": (POD, {"phase": "Pending"}, {"phase": "Running"}),
}


@pytest.mark.parametrize(("kind", "before", "after"), COUNTS.values(), ids=COUNTS)
def test_a_change_that_no_decision_needs_is_only_a_new_version(
    kind: Kind, before: dict[str, Any], after: dict[str, Any]
):
    store = Store()
    assert store.put(kind, thing_of(kind, 1, status=before))
    assert not store.put(kind, thing_of(kind, 2, status=after))
    assert store.version(kind, "ns", "a") == 2
    found = store.get(kind, "ns", "a")
    assert found
    assert found["metadata"]["resourceVersion"] == "2"


@pytest.mark.parametrize(("kind", "before", "after"), CHANGES.values(), ids=CHANGES)
def test_a_change_that_a_decision_needs_is_one(kind: Kind, before: dict[str, Any], after: dict[str, Any]):
    store = Store()
    store.put(kind, thing_of(kind, 1, status=before))
    assert store.put(kind, thing_of(kind, 2, status=after))


changes = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["w", "v", None]), st.booleans()), max_size=30)


@given(changes, st.randoms(use_true_random=False))
def test_any_order_and_repetition_of_changes_gives_the_same_store(
    history: list[tuple[str, str | None, bool]], random: Any
):
    events = []
    for version, (name, worker, _) in enumerate(history, start=1):
        events.append(thing(name, version, f"uid-{name}", **(of(worker) if worker else {})))
    in_order, shuffled = Store(), Store()
    for event in events:
        in_order.put(CONFIG_MAP, event)
    disorder = events * 2
    random.shuffle(disorder)
    for event in disorder:
        shuffled.put(CONFIG_MAP, event)
    for worker in ("w", "v"):
        assert in_order.of_worker(CONFIG_MAP, "ns", worker) == shuffled.of_worker(CONFIG_MAP, "ns", worker)
    assert sorted(in_order.places(CONFIG_MAP), key=str) == sorted(shuffled.places(CONFIG_MAP), key=str)


@given(st.lists(st.text(max_size=40_000), min_size=1, max_size=8))
def test_objects_of_any_size_are_returned_unchanged(texts: list[str]) -> None:
    store = Store()
    things = [thing(str(number), uid=str(number)) | {"data": {"text": text}} for number, text in enumerate(texts)]
    for made in things:
        store.put(CONFIG_MAP, made)
    assert [store.get(CONFIG_MAP, "ns", made["metadata"]["name"]) for made in things] == things
