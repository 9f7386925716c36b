"""Stops offers while jobs do not start because of the cluster. Pure: the caller provides times, in epoch seconds."""

from hypha_contracts.limits import MAX_FAILED_STARTS


class StartRecord:
    """The starts that failed since an executor last started.

    `proven_at` is when the operator knows that an executor of this worker started. None if none has started since the
    worker's executors changed. Failures have the operator's time too, because this node may learn of them late.
    """

    def __init__(self) -> None:
        self._failed: list[float] = []
        self._started: float | None = None
        self._proven_at: float | None = None

    def on_started(self, now: float) -> None:
        """Record that the executor of a job started."""
        self._started = now
        self._failed.clear()

    def on_failed(self, failed: float) -> None:
        """Record that a job ended because of the cluster before its executor started, at a time of the operator."""
        if self._proven_at is None or failed > self._proven_at:
            self._failed.append(failed)

    def on_proven(self, proven_at: float | None) -> None:
        """Take over what the operator knows. If it withdraws a proof, earlier starts of this node prove nothing."""
        if proven_at is None and self._proven_at is not None:
            self._started = None
        self._proven_at = proven_at
        self._failed = [failed for failed in self._failed if proven_at is None or failed > proven_at]

    @property
    def max_unstarted(self) -> int | None:
        """How many leases may be under way whose executor has not started. None if there is no limit."""
        proven = self._started is not None or self._proven_at is not None
        return None if proven and not self._failed else max(0, MAX_FAILED_STARTS - len(self._failed))
