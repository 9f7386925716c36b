"""What can end a trainer.

```
TrainerError            exit code 1
├── JobError            exit code 2: the job or its files cannot be trained as they are
└── BridgeError         exit code 3: the job bridge is gone or refuses
```
Messages are one line and say what to do.
"""


class TrainerError(Exception):
    """Training cannot go on."""

    exit_code = 1


class JobError(TrainerError):
    """The job, or a file that it names, cannot be trained."""

    exit_code = 2


class BridgeError(TrainerError):
    """The job bridge cannot be reached or refused a request."""

    exit_code = 3
