"""What can go wrong with the node as a whole."""


class NodeError(Exception):
    """The node cannot run here; one line that says why and what to do."""
