"""The limit of open file descriptors of a process."""

import resource


def raise_limit() -> None:
    """Raise the soft limit of open descriptors to the hard one. Every process of ours calls this when it starts."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def limit() -> int:
    """Return how many descriptors this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
