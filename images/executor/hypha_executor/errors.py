"""The errors that end an executor, and its exit codes.

ExecutorError               exit code 1
├── JobError                exit code 2: the job or its files cannot be used as they are
├── BridgeError             exit code 3: the job bridge is gone or refuses
└── MalformedFileError      exit code 1: a file is not a complete SafeTensors file
    └── TruncatedFileError  exit code 1: a file is only the beginning of one

Messages are one line and say what to do.
"""


class ExecutorError(Exception):
    """The executor must end."""

    exit_code = 1


class JobError(ExecutorError):
    """The job, or a file that it names, cannot be used."""

    exit_code = 2


class BridgeError(ExecutorError):
    """The job bridge cannot be reached or refused a request."""

    exit_code = 3


class MalformedFileError(ExecutorError):
    """A file is not a complete SafeTensors file. The text is a predicate, such as `is 3 bytes longer than ...`."""


class TruncatedFileError(MalformedFileError):
    """A file is only the beginning of a SafeTensors file. The text says how much is missing."""
