"""Limits on which several processes must agree."""

from typing import Final

MAX_SPEC_BYTES: Final = 128 * 1024
"""Maximum size of a job's specification, as the JSON that executors read."""

MAX_TAKEN_PER_PEER: Final = 2
"""Pushes of one peer that a job receives at once, so that a stalled peer blocks only itself."""

MAX_ENDED: Final = 512
MAX_ENDED_PER_SCHEDULER: Final = 64
"""How many ended jobs of a worker, and of one of its schedulers, are kept at most."""

MAX_FAILED_STARTS: Final = 2
"""After this many starts of jobs that failed because of the cluster, a worker makes no offers until one succeeds."""
