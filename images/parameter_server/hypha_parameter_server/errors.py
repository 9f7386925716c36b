"""Why a pseudo-gradient is refused. `hypha_executor.errors` has the errors that end the parameter server."""

from hypha_executor.errors import ExecutorError


class Refused(ExecutorError):  # noqa: N818 - a verdict on a file, not a failure of the parameter server
    """A file does not become part of its round. The text is a predicate that says why."""

    outcome = "refused"


class Untimely(Refused):
    """A file is for another round, or its peer has sent one for this round. The peer may still send the right one.

    Attributes:
        outcome: "late", "early" or "second".
    """

    def __init__(self, outcome: str, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome
