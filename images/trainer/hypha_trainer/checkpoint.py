"""What the trainer keeps in its work directory, so that it goes on from the last global weights after a crash.

Two files are replaced atomically: the global weights, with the round whose update they contain, and the progress of the
round. They may be of different moments, because the trainer may crash between any two steps.
"""

import json
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from hypha_executor.errors import JobError
from hypha_trainer.log import log
from hypha_trainer.weights import Tensors, save_tensors

BEFORE_ALL: Final = "-1"
"""The event id before that of the first push."""
_WEIGHTS: Final = "global-weights.safetensors"
_PROGRESS: Final = "progress.json"


class Stage(Enum):
    """What a trainer has to do next in a round."""

    TRAIN = "train"
    AWAIT_UPDATE = "await update"
    REPORT_UPDATE = "report update"


@dataclass(frozen=True)
class Merged:
    """What is known about the global weights.

    Attributes:
        round: The last round whose update they contain; 0 for the initial weights.
        event_id: The event that announced this update.
        batches: How many batches this trainer had trained by then.
    """

    round: int = 0
    event_id: str = BEFORE_ALL
    batches: int = 0


@dataclass(frozen=True)
class Progress:
    """The progress of a round.

    Attributes:
        sent: Whether its pseudo-gradient has been sent.
        batches_left: How many batches were left when the scheduler set the end of the round.
    """

    round: int = 1
    sent: bool = False
    batches_left: int | None = None


@dataclass(frozen=True)
class Resumed:
    """Where the training goes on."""

    merged: Merged
    progress: Progress
    stage: Stage


def resume(merged: Merged, progress: Progress | None) -> Resumed:
    """Decide where the training goes on. Without progress it begins.

    Raises:
        JobError: The weights are not those of the round before.
    """
    if progress is None:
        return Resumed(merged, Progress(merged.round + 1), Stage.TRAIN)
    if progress.round == merged.round:
        return Resumed(merged, progress, Stage.REPORT_UPDATE)
    if progress.round != merged.round + 1:
        raise JobError(
            f"the trainer cannot go on in round {progress.round}, because the last weights that it could keep are of "
            f"round {merged.round}; give the job more storage"
        )
    return Resumed(merged, progress, Stage.AWAIT_UPDATE if progress.sent else Stage.TRAIN)


class Checkpoint:
    """The two files in the work directory of a job."""

    def __init__(self, work_dir: Path):
        self._weights = work_dir / _WEIGHTS
        self._progress = work_dir / _PROGRESS

    def load(self, weights: Tensors) -> Resumed:
        """Overwrite the initial weights by the kept ones, if there are any. Return where the training goes on.

        Raises:
            JobError: It cannot go on.
        """
        return resume(self._load_weights(weights), self._load_progress())

    def keep_weights(self, weights: Tensors, merged: Merged) -> None:
        """Replace the kept weights. If the disk is full, a trainer that crashes later cannot go on."""
        try:
            labels = {name: str(value) for name, value in vars(merged).items()}
            save_tensors(self._weights, weights.items(), weights, labels)
        except OSError as error:
            log(f"the global weights of round {merged.round} cannot be kept for a restart: {error.strerror}")

    def keep_progress(self, progress: Progress) -> None:
        """Replace the kept progress."""
        path = self._progress.with_suffix(".tmp")
        try:
            path.write_text(json.dumps(asdict(progress)))
            path.replace(self._progress)
        except OSError as error:
            log(f"the progress of round {progress.round} cannot be kept for a restart: {error.strerror}")

    def _load_weights(self, weights: Tensors) -> Merged:
        if not self._weights.exists():
            return Merged()
        try:
            with safe_open(self._weights, framework="pt", device="cpu") as file:
                kept = file.metadata()
                for name, tensor in weights.items():
                    tensor.copy_(file.get_tensor(name))
            return Merged(int(kept["round"]), kept["event_id"], int(kept["batches"]))
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise JobError(f"{self._weights.name} does not hold the weights of this job's model: {error}") from None

    def _load_progress(self) -> Progress | None:
        try:
            return Progress(**json.loads(self._progress.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise JobError(f"{self._progress.name} does not hold the progress of this job: {error}") from None
