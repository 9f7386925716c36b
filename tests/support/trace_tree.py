"""The trees of the spans that a test's collector has received."""

from e2e.traces import Tree
from support.collector import Collector


def tree(collector: Collector) -> Tree:
    """Return the tree of the only trace."""
    return Tree(collector.spans)
