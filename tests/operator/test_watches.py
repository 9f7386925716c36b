"""The keys that a change enqueues, whether a watch or a write showed it, and what remains of a watch event."""

import gc
from typing import Any
from weakref import ref

import kopf
import pytest
from kubernetes.aio.client import Configuration

from hypha_contracts.kinds import HYPHA_JOB, POD, WORKER, Kind, Manifest
from hypha_contracts.names import WORKER_LABEL
from hypha_operator.machinery.kinds import Key
from hypha_operator.machinery.store import Store
from hypha_operator.machinery.watches import Watches, kopf_registry
from support.operating import Pending


@pytest.fixture
def pending() -> Pending:
    return Pending()


@pytest.fixture
def watches(pending: Pending) -> Watches:
    return Watches(Store(), pending)  # type: ignore[arg-type]


def thing(kind: Kind, version: int, generation: int = 1, **status: Any) -> Manifest:
    metadata = {"name": "a", "namespace": "ns", "uid": "u", "resourceVersion": str(version), "generation": generation}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, "spec": {}, "status": status}


@pytest.mark.parametrize("kind", [WORKER, HYPHA_JOB])
def test_a_users_change_that_a_write_returns_enqueues_the_key(watches: Watches, pending: Pending, kind: Kind):
    watches.record(kind, thing(kind, 1))
    pending.keys.clear()
    watches.record_write(kind, thing(kind, 3, generation=2))
    assert list(pending.keys) == [Key(kind, "ns", "a")]
    pending.keys.clear()
    watches.record(kind, thing(kind, 2, generation=2))  # comes late
    assert not pending.keys


def test_a_nodes_status_that_a_write_returns_enqueues_the_key(watches: Watches, pending: Pending):
    watches.record(WORKER, thing(WORKER, 1, node={"healthy": False}))
    pending.keys.clear()
    watches.record_write(WORKER, thing(WORKER, 3, node={"healthy": True}))
    assert list(pending.keys) == [Key(WORKER, "ns", "a")]


@pytest.mark.parametrize("kind", [WORKER, HYPHA_JOB])
def test_a_status_write_of_the_operator_enqueues_nothing(watches: Watches, pending: Pending, kind: Kind):
    watches.record(kind, thing(kind, 1))
    pending.keys.clear()
    watches.record_write(kind, thing(kind, 2, phase="Running"))
    watches.record(kind, thing(kind, 2, phase="Running"))
    assert not pending.keys


def test_a_change_of_a_child_does_not_unpack_the_version_in_the_store(
    watches: Watches, monkeypatch: pytest.MonkeyPatch
):
    child = thing(POD, 1)
    child["metadata"]["labels"] = {WORKER_LABEL: "a"}
    watches.record(POD, child)
    monkeypatch.setattr(Store, "get", None)
    watches.record(POD, child | {"metadata": child["metadata"] | {"resourceVersion": "2"}})


class Part(dict[str, Any]):
    """A part of an object to which a weak reference is possible."""


@pytest.mark.anyio
async def test_an_object_that_kopf_has_shown_is_freed_without_a_search_for_garbage(watches: Watches):
    shown = {**thing(POD, 1), "spec": Part()}
    part = ref(shown["spec"])
    registry = kopf_registry(watches, Configuration())
    (handler,) = (handler for handler in registry._watching._handlers if handler.id == POD.plural)
    gc.disable()
    try:
        view = kopf.Body(shown)
        await handler.fn(event={"type": "ADDED", "object": shown})
        del view, shown
        assert part() is None
    finally:
        gc.enable()
