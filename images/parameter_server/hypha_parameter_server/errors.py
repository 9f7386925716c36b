"""What can go wrong.

ParameterServerError
├── JobError       the job can't be run as specified
├── BridgeError    the bridge is gone or refuses
└── Refused        one pseudo-gradient is not taken; the round goes on without it
    └── Untimely   it is not for the round being collected, so its peer may still send one that is
"""


class ParameterServerError(Exception):
    """Base of this package's errors; the text is for the operator's log."""


class JobError(ParameterServerError):
    """The job's specification is incomplete or contradictory."""


class BridgeError(ParameterServerError):
    """The bridge can't be reached or has refused a request."""


class Refused(ParameterServerError):  # noqa: N818 - it is a verdict, not a failure of ours
    """A file that doesn't become part of a round; the text says why."""


class Untimely(Refused):
    """A file of another round, or a second one for the same."""
