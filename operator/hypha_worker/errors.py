"""Errors of the node."""


class NodeError(Exception):
    """The node cannot run here. The message is one line with the reason and what to do."""
