"""A cache of the objects that the watches have shown. It may be stale, so ask the API server before you delete."""

import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from pydantic_core import from_json, to_json

from hypha_contracts.kinds import DEPLOYMENT, HYPHA_JOB, JOB, POD, POD_DISRUPTION_BUDGET, Kind, Manifest
from hypha_contracts.names import JOB_LABEL, WORKER_LABEL
from hypha_operator.machinery.ownership import CREATED, is_handed_over

_MAX_DELETED: Final = 10_000
_WINDOW: Final = -13  # raw deflate with 8 KiB, about the size of most trimmed objects
_SAMPLE_GROWTH: Final = 1.25
"""A text replaces the sample of its kind if it is longer by this factor."""
_UNNEEDED: Final = frozenset({"managedFields", "selfLink", "resourceVersion"})
_STATUS: Final[Mapping[Kind, tuple[str, ...]]] = {
    JOB: ("conditions", "startTime"),
    DEPLOYMENT: ("conditions", "observedGeneration"),
    POD_DISRUPTION_BUDGET: (),
}
"""The fields of a status that decisions need. The others, which count pods, change with each pod."""
_OF_DEPLOYMENTS: Final = frozenset({"Available", "ReplicaFailure"})
_Place: TypeAlias = tuple[str | None, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class _Entry:
    uid: str
    version: int
    worker: str | None
    job: str | None
    digest: int
    packed: bytes
    sample: bytes

    @property
    def manifest(self) -> Manifest:
        content = from_json(zlib.decompressobj(_WINDOW, zdict=self.sample).decompress(self.packed))
        content["metadata"]["resourceVersion"] = str(self.version)
        return content  # type: ignore[no-any-return]


class Store:
    """Objects by kind, namespace and name.

    The store drops fields that no decision needs, and compresses each object with another object of its kind as the
    dictionary, so tens of thousands fit into memory. Each call returns a new copy. The store ignores a change that is
    older than the known version, so events may come late, twice or in any order.
    """

    def __init__(self) -> None:
        self._entries: dict[Kind, dict[_Place, _Entry]] = defaultdict(dict)
        self._samples: dict[Kind, bytes] = defaultdict(bytes)
        self._deleted: OrderedDict[str, int] = OrderedDict()  # uid: last version
        self._children: dict[tuple[Kind, str, str | None, str], set[str]] = defaultdict(set)

    def put(self, kind: Kind, manifest: Manifest) -> bool:
        """Record the current version of an object.

        Returns False if this or a newer version is known, or if nothing has changed that a decision needs.
        """
        metadata = manifest["metadata"]
        place = (metadata.get("namespace"), metadata["name"])
        version = int(metadata["resourceVersion"])
        known = self._entries[kind].get(place)
        if self.is_deleted(metadata["uid"], version) or (known is not None and known.version >= version):
            return False
        labels = metadata.get("labels") or {}
        text = to_json(trimmed(kind, manifest))
        if known is not None and known.digest == hash(text):
            self._entries[kind][place] = replace(known, version=version)
            return False
        packed, sample = self._pack(kind, text)
        worker, job = labels.get(WORKER_LABEL), labels.get(JOB_LABEL)
        entry = _Entry(metadata["uid"], version, worker, job, hash(text), packed, sample)
        if known is not None:
            self._remove_labels(kind, place, known)
        self._entries[kind][place] = entry
        for label, value in ((WORKER_LABEL, entry.worker), (JOB_LABEL, entry.job)):
            if value is not None:
                self._children[kind, label, place[0], value].add(place[1])
        return True

    def _pack(self, kind: Kind, text: bytes) -> tuple[bytes, bytes]:
        """Return a compressed text and its dictionary, which is about the longest text of its kind so far."""
        if len(text) > len(self._samples[kind]) * _SAMPLE_GROWTH:
            self._samples[kind] = text
        sample = self._samples[kind]
        packer = zlib.compressobj(1, wbits=_WINDOW, memLevel=5, zdict=sample)
        return packer.compress(text) + packer.flush(), sample

    def remove(self, kind: Kind, manifest: Manifest) -> bool:
        """Record that an object was deleted, or lost the label that its watch selects.

        Returns False if the object is unknown, or if the store has a newer version or an object with another uid.
        """
        metadata = manifest["metadata"]
        uid, version = metadata["uid"], int(metadata["resourceVersion"])
        place = (metadata.get("namespace"), metadata["name"])
        self._deleted[uid] = max(version, self._deleted.get(uid, 0))
        while len(self._deleted) > _MAX_DELETED:
            self._deleted.popitem(last=False)
        known = self._entries[kind].get(place)
        if known is None or known.uid != uid or known.version > version:
            return False
        self._remove_labels(kind, place, known)
        del self._entries[kind][place]
        return True

    def _remove_labels(self, kind: Kind, place: _Place, entry: _Entry) -> None:
        for label, value in ((WORKER_LABEL, entry.worker), (JOB_LABEL, entry.job)):
            if value is not None:
                names = self._children[kind, label, place[0], value]
                names.discard(place[1])
                if not names:
                    del self._children[kind, label, place[0], value]

    def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Return an object in its last known version."""
        entry = self._entries[kind].get((namespace, name))
        return None if entry is None else entry.manifest

    def of_worker(self, kind: Kind, namespace: str | None, worker: str) -> list[Manifest]:
        """Return the objects with this worker's label, ordered by name. They include the children of its jobs."""
        return self._labelled(kind, WORKER_LABEL, namespace, worker)

    def count_of_worker(self, kind: Kind, namespace: str | None, worker: str) -> int:
        """Return the number of objects with this worker's label."""
        return len(self._children.get((kind, WORKER_LABEL, namespace, worker), ()))

    def of_job(self, kind: Kind, namespace: str, job: str) -> list[Manifest]:
        """Return the objects with this HyphaJob's label, ordered by name."""
        return self._labelled(kind, JOB_LABEL, namespace, job)

    def _labelled(self, kind: Kind, label: str, namespace: str | None, value: str) -> list[Manifest]:
        names = self._children.get((kind, label, namespace, value), set())
        return [self._entries[kind][namespace, name].manifest for name in sorted(names)]

    def places(self, kind: Kind) -> Iterator[tuple[str | None, str, str]]:
        """Yield namespace, name and uid of all objects of a kind."""
        for (namespace, name), entry in self._entries[kind].items():
            yield namespace, name, entry.uid

    def is_deleted(self, uid: str, version: int) -> bool:
        """Whether this object is among the recently deleted ones, at this version or a later one."""
        return self._deleted.get(uid, 0) >= version

    def version(self, kind: Kind, namespace: str | None, name: str) -> int | None:
        """Return the known resource version of an object."""
        entry = self._entries[kind].get((namespace, name))
        return entry.version if entry else None

    def count(self, kind: Kind) -> int:
        """Return the number of known objects of a kind."""
        return len(self._entries[kind])


def trimmed(kind: Kind, manifest: Manifest) -> Manifest:
    """Return an object without its version and without the fields that no decision needs."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key not in _UNNEEDED}
    if not is_handed_over(manifest):
        metadata["managedFields"] = CREATED
    kept = {**manifest, "metadata": metadata}
    if kind in (POD, JOB):  # pod templates are immutable, so nothing compares them
        kept["spec"] = _selected(manifest.get("spec"), "nodeName", "suspend")
    elif kind == HYPHA_JOB:
        kept["spec"] = {key: value for key, value in manifest["spec"].items() if key != "config"}
    elif kind == DEPLOYMENT:
        annotations = metadata.get("annotations") or {}
        metadata["annotations"] = {k: v for k, v in annotations.items() if not k.startswith("deployment.kubernetes.io")}
    if kind in _STATUS:
        kept["status"] = _selected(manifest.get("status"), *_STATUS[kind])
    if kind == DEPLOYMENT and "conditions" in kept["status"]:
        conditions = kept["status"]["conditions"]
        kept["status"]["conditions"] = [found for found in conditions if found["type"] in _OF_DEPLOYMENTS]
    return kept


def _selected(content: Mapping[str, Any] | None, *keys: str) -> dict[str, Any]:
    return {key: content[key] for key in keys if key in content} if content else {}
