"""How the node and `kubectl hypha` list and watch objects of the API server."""

from collections.abc import Mapping
from typing import Final

LIST_PAGE: Final = 500
"""Number of objects of one answer to a list."""
SILENCE_S: Final = 90.0
"""A watch that is silent for this long is dead, because the server sends bookmarks every minute."""
_WATCH_S: Final = 300
"""How long the server serves a watch. The client then continues it from the last version."""


def watch_query(version: str, selectors: Mapping[str, str]) -> dict[str, str]:
    """Return the query of a watch of the objects that the selectors choose, from a version on."""
    return {
        **selectors,
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": version,
        "timeoutSeconds": str(_WATCH_S),
    }
