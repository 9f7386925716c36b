"""Limits of what a scheduler may have a worker keep, on which several processes must agree."""

from typing import Final

MAX_SPEC_BYTES: Final = 128 * 1024
"""Maximum size of a job's specification, as the JSON that executors read."""
