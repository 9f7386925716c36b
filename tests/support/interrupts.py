"""Processes that a test interrupts."""

from typing import Final

INTERRUPTIBLE: Final = ("env", "--default-signal=INT")
"""Begins the command of a process that is to end by SIGINT, which a test that runs in the background ignores."""
