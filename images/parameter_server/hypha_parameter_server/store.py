"""The state that outlives the process, in a directory of its own in the work directory.

    momentum.safetensors        the weights' momentum after the last round; its metadata has `round`, and in `consumed`
                                the files that it was made from
    update-<round>.safetensors  the last two updates, because the bridge may still be sending both
    delivery.json               the last round that was reported to the scheduler, its answer, and whether it was sent
    <peer>.<n>.safetensors      pseudo-gradients claimed from the bridge's directory, not yet part of a round

Renaming the momentum commits a round. Nothing is synced to the disk, because a killed process loses no written data,
and a machine that goes down ends the lease and so the job.
"""

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hypha_executor.errors import JobError, MalformedFileError
from hypha_executor.incoming import DIRECTORY, Received
from hypha_executor.labels import Labels
from hypha_executor.safetensors import Layout, read_header
from hypha_parameter_server.arithmetic import Nesterov, Source, outer_step
from hypha_parameter_server.errors import Refused

log = logging.getLogger(__name__)

_OWN: Final = "parameter-server"
_CONTRIBUTION: Final = re.compile(r"(?P<peer>[0-9A-Za-z]+)\.(?P<number>[0-9]+)\.safetensors")


@dataclass(frozen=True)
class Delivery:
    """How far the update of a round got. `done` is the scheduler's answer, None before the report."""

    round: int | None
    done: bool | None = None
    sent: bool = False


class Store:
    """The files of one job.

    Attributes:
        last_round: The last merged round; None before the first.
        layout: Names, dtypes and shapes of the last update; None before the first.
    """

    def __init__(self, work_dir: Path, job_id: str) -> None:
        """Open the store in a work directory and resume from the state of an earlier process.

        Raises:
            JobError: The state cannot be read.
        """
        self._work_dir = work_dir
        self._own = work_dir / _OWN
        self._job_id = job_id
        self._own.mkdir(mode=0o700, exist_ok=True)
        self._momentum = self._own / "momentum.safetensors"
        self.last_round: int | None = None
        self.layout: Layout | None = None
        for leftover in self._own.glob("*.new"):
            leftover.unlink()
        self._number = 0
        if self._momentum.exists():
            self._resume()
        self._number = max([self._number, *(number for _, _, number in self._contributions())])

    def _resume(self) -> None:
        try:
            metadata = read_header(self._momentum).metadata
            self.last_round = int(metadata["round"])
            self.layout = read_header(self._update(self.last_round)).layout
            consumed = [_parse(Path(name)) for name in json.loads(metadata["consumed"])]
        except (MalformedFileError, OSError, KeyError, ValueError) as error:
            raise JobError(
                f"{self._own} holds a state that cannot be read ({error}); remove it to start from round 1"
            ) from error
        for peer, number in consumed:
            self._contribution(peer, number).unlink(missing_ok=True)
            self._number = max(self._number, number)  # a name used twice would make the next process delete a new file
        log.info("Resuming after round %d", self.last_round)

    def claim(self, peer: str, path: str) -> Path | None:
        """Move a file of the work directory here, so that no later push can replace it. None if it does not exist.

        Raises:
            Refused: The path leads out of the work directory.
        """
        source = self._inside(path)
        self._number += 1
        try:
            return source.rename(self._contribution(peer, self._number))
        except FileNotFoundError:
            return None

    def discard(self, path: str) -> None:
        """Delete an unwanted file of the work directory.

        Raises:
            Refused: The path leads out of the work directory.
        """
        self._inside(path).unlink(missing_ok=True)

    def _inside(self, path: str) -> Path:
        full = self._work_dir / path
        if not full.parent.resolve().is_relative_to(self._work_dir.resolve()) or full.name in ("", "..", _OWN):
            raise Refused(f"has a path outside the work directory: {path[:200]!r}")
        return full

    def unmerged(self) -> list[tuple[str, Path]]:
        """Return the pseudo-gradients (peer and file) that an earlier process claimed, in order of arrival."""
        return [(peer, path) for peer, path, _ in sorted(self._contributions(), key=lambda item: item[2])]

    def unannounced(self, members: Collection[str]) -> list[Received]:
        """Return the complete files of members where the bridge puts them. Their announcements may have been lost."""
        found = []
        for path in sorted((self._work_dir / DIRECTORY).glob("*"), key=lambda path: path.lstat().st_mtime):
            peer = path.name.partition(".")[0]
            if peer in members and _is_complete(path):
                found.append(Received(peer, str(path.relative_to(self._work_dir))))
        return found

    def _contributions(self) -> Iterator[tuple[str, Path, int]]:
        for path in self._own.iterdir():
            with contextlib.suppress(ValueError):
                peer, number = _parse(path)
                yield peer, path, number

    def _contribution(self, peer: str, number: int) -> Path:
        return self._own / f"{peer}.{number}.safetensors"

    def merge(self, number: int, sources: Sequence[Source], optimizer: Nesterov) -> None:
        """Take the outer step of a round and delete its pseudo-gradients.

        Raises:
            OSError: A file cannot be read or written. The state is that of the round before.
        """
        new_momentum, new_update = self._own / "momentum.new", self._own / "update.new"
        consumed = json.dumps([source.path.name for source in sources])
        labels = Labels(self._job_id, number, statistics="mean").to_metadata()
        outer_step(
            sources,
            optimizer,
            (self._momentum, read_header(self._momentum)) if self.last_round is not None else None,
            (new_momentum, {**labels, "consumed": consumed}),
            (new_update, labels),
        )
        new_update.rename(self._update(number))
        new_momentum.rename(self._momentum)
        for path in self._own.glob("update-*.safetensors"):
            if self.last_round is not None and int(path.stem.removeprefix("update-")) < self.last_round:
                path.unlink()
        for source in sources:
            source.path.unlink(missing_ok=True)
        self.last_round = number
        self.layout = sources[0].header.layout

    def last_update(self) -> Path:
        """Return the file of the last update."""
        if self.last_round is None:
            raise ValueError("there is no update before the first round")
        return self._update(self.last_round)

    def delivery(self) -> Delivery:
        """Return how far the last update got."""
        path = self._own / "delivery.json"
        delivery = Delivery(**json.loads(path.read_text())) if path.exists() else Delivery(None)
        return delivery if delivery.round == self.last_round else Delivery(self.last_round)

    def record(self, delivery: Delivery) -> None:
        """Record how far the last update got."""
        temporary = self._own / "delivery.new"
        temporary.write_text(json.dumps(asdict(delivery)))
        temporary.rename(self._own / "delivery.json")

    def _update(self, number: int) -> Path:
        return self._own / f"update-{number}.safetensors"


def _parse(path: Path) -> tuple[str, int]:
    """Return the peer and the number in the name of a contribution. Raises ValueError for other names."""
    match = _CONTRIBUTION.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path.name!r} is not the name of a pseudo-gradient")
    return match["peer"], int(match["number"])


def _is_complete(path: Path) -> bool:
    try:
        read_header(path)
    except (MalformedFileError, OSError):
        return False
    return True
