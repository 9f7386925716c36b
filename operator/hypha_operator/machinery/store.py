"""What the watches have shown so far: a cache to decide by, never the truth to destroy by."""

import json
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hypha_contracts.names import JOB_LABEL, WORKER_LABEL
from hypha_operator.machinery.kinds import DEPLOYMENT, HYPHA_JOB, JOB, POD, Kind, Manifest

_MOST_GONE = 10_000
_WINDOW: Final = -13  # 8 KiB, as long as what is kept of most objects; no header
_GROWN: Final = 1.25
_Place = tuple[str | None, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class _Entry:
    uid: str
    version: int
    worker: str | None
    job: str | None
    packed: bytes
    sample: bytes

    @property
    def manifest(self) -> Manifest:
        return json.loads(zlib.decompressobj(_WINDOW, zdict=self.sample).decompress(self.packed))  # type: ignore[no-any-return]


class Store:
    """Objects by kind, namespace and name.

    They are kept without what no decision needs, and packed: what another one of the kind has too takes next to no
    room. So tens of thousands fit. Each call returns a copy of its own. A change that is older than what is known is
    ignored, so events may come late, twice or in any order.
    """

    def __init__(self) -> None:
        self._entries: dict[Kind, dict[_Place, _Entry]] = defaultdict(dict)
        self._samples: dict[Kind, bytes] = defaultdict(bytes)
        self._gone: OrderedDict[str, int] = OrderedDict()  # uids, each with its last version
        self._children: dict[tuple[Kind, str, str | None, str], set[str]] = defaultdict(set)

    def put(self, kind: Kind, manifest: Manifest) -> bool:
        """Note what an object is now; False if this or something newer of it is known."""
        metadata = manifest["metadata"]
        place = (metadata.get("namespace"), metadata["name"])
        version = int(metadata["resourceVersion"])
        known = self._entries[kind].get(place)
        if self.is_gone(metadata["uid"], version) or (known is not None and known.version >= version):
            return False
        labels = metadata.get("labels") or {}
        text = json.dumps(trimmed(kind, manifest), separators=(",", ":")).encode()
        packed, sample = self._pack(kind, text)
        entry = _Entry(metadata["uid"], version, labels.get(WORKER_LABEL), labels.get(JOB_LABEL), packed, sample)
        if known is not None:
            self._forget(kind, place, known)
        self._entries[kind][place] = entry
        for label, value in ((WORKER_LABEL, entry.worker), (JOB_LABEL, entry.job)):
            if value is not None:
                self._children[kind, label, place[0], value].add(place[1])
        return True

    def _pack(self, kind: Kind, text: bytes) -> tuple[bytes, bytes]:
        """Return what is left of a text beyond a sample of its kind, and the sample: whatever was the longest."""
        if len(text) > len(self._samples[kind]) * _GROWN:
            self._samples[kind] = text
        sample = self._samples[kind]
        packer = zlib.compressobj(1, wbits=_WINDOW, memLevel=5, zdict=sample)
        return packer.compress(text) + packer.flush(), sample

    def remove(self, kind: Kind, manifest: Manifest) -> bool:
        """Note that an object is gone, deleted or out of what is watched, and what it was last.

        False if it was not known, or if it is something newer or another one (another uid) by now.
        """
        metadata = manifest["metadata"]
        uid, version = metadata["uid"], int(metadata["resourceVersion"])
        place = (metadata.get("namespace"), metadata["name"])
        self._gone[uid] = max(version, self._gone.get(uid, 0))
        while len(self._gone) > _MOST_GONE:
            self._gone.popitem(last=False)
        known = self._entries[kind].get(place)
        if known is None or known.uid != uid or known.version > version:
            return False
        self._forget(kind, place, known)
        del self._entries[kind][place]
        return True

    def _forget(self, kind: Kind, place: _Place, entry: _Entry) -> None:
        for label, value in ((WORKER_LABEL, entry.worker), (JOB_LABEL, entry.job)):
            if value is not None:
                names = self._children[kind, label, place[0], value]
                names.discard(place[1])
                if not names:
                    del self._children[kind, label, place[0], value]

    def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """Return an object as it was last seen."""
        entry = self._entries[kind].get((namespace, name))
        return None if entry is None else entry.manifest

    def of_worker(self, kind: Kind, namespace: str | None, worker: str) -> list[Manifest]:
        """Return the objects labelled as this worker's (its jobs' children are among them), by name."""
        return self._labelled(kind, WORKER_LABEL, namespace, worker)

    def of_job(self, kind: Kind, namespace: str, job: str) -> list[Manifest]:
        """Return the objects labelled as this HyphaJob's, by name."""
        return self._labelled(kind, JOB_LABEL, namespace, job)

    def _labelled(self, kind: Kind, label: str, namespace: str | None, value: str) -> list[Manifest]:
        names = self._children.get((kind, label, namespace, value), set())
        return [self._entries[kind][namespace, name].manifest for name in sorted(names)]

    def places(self, kind: Kind) -> Iterator[tuple[str | None, str, str]]:
        """Yield namespace, name and uid of all objects of a kind."""
        for (namespace, name), entry in self._entries[kind].items():
            yield namespace, name, entry.uid

    def is_gone(self, uid: str, version: int) -> bool:
        """Whether this very object is known to have gone since this version, not too long ago."""
        return self._gone.get(uid, 0) >= version

    def version(self, kind: Kind, namespace: str | None, name: str) -> int | None:
        """Return the resource version in which an object is known."""
        entry = self._entries[kind].get((namespace, name))
        return entry.version if entry else None

    def count(self, kind: Kind) -> int:
        """Return how many objects of a kind are known."""
        return len(self._entries[kind])


def trimmed(kind: Kind, manifest: Manifest) -> Manifest:
    """Return an object without what no decision needs; what is left is not changed."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key not in ("managedFields", "selfLink")}
    kept = {**manifest, "metadata": metadata}
    if kind in (POD, JOB):  # pods' templates are immutable: nothing in them is ever compared
        spec = manifest.get("spec") or {}
        kept["spec"] = {key: spec[key] for key in ("nodeName", "suspend") if key in spec}
    elif kind == HYPHA_JOB:
        kept["spec"] = {key: value for key, value in manifest["spec"].items() if key != "config"}
    elif kind == DEPLOYMENT:
        annotations = metadata.get("annotations") or {}
        metadata["annotations"] = {k: v for k, v in annotations.items() if not k.startswith("deployment.kubernetes.io")}
    return kept
