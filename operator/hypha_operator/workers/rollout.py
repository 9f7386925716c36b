"""Decide whether the operator may replace a controller's pod now. Performs no I/O.

An upgrade of the operator, or of its settings, changes all controllers, for example their image. While a controller's
pod is replaced, its jobs wait.
"""

from collections.abc import Callable
from typing import Final

from hypha_contracts.kinds import Manifest
from hypha_contracts.object_status import is_true
from hypha_operator.machinery.kinds import Key

MAX_AT_ONCE: Final = 3
"""Controllers that may be down at a time because the operator changed them."""
COUNTED_S: Final = 600.0
"""After this time, a controller that is still down delays the others no longer. Its own condition says why it is."""


class Rollouts:
    """The controllers that the operator changed and that have not been available since."""

    def __init__(self) -> None:
        self._began_s: dict[Key, float] = {}
        self._applying: set[Key] = set()

    def admits(self, key: Key, observed: Manifest | None, now_s: float, find: Callable[[Key], Manifest | None]) -> bool:
        """Whether a Deployment may be changed now. If an available pod may be replaced, it counts from now on.

        Args:
            key: the Deployment. Report with `on_applied` that the change has been applied or has failed.
            observed: its current manifest, or None if there is none.
            now_s: seconds of the monotonic clock.
            find: returns the current manifest of another controller's Deployment.
        """
        self._began_s = {
            other: began_s
            for other, began_s in self._began_s.items()
            if now_s - began_s < COUNTED_S and (other in self._applying or _is_down(find(other)))
        }
        if observed is None or _is_down(observed):
            return True
        if len(self._began_s) >= MAX_AT_ONCE:
            return False
        self._began_s[key] = now_s
        self._applying.add(key)
        return True

    def on_applied(self, key: Key) -> None:
        """Count a Deployment from now on only while it is not available."""
        self._applying.discard(key)


def _is_down(deployment: Manifest | None) -> bool:
    """Whether a Deployment is not available in its current generation."""
    if deployment is None:
        return False
    observed = (deployment.get("status") or {}).get("observedGeneration", 0)
    return observed < deployment["metadata"].get("generation", 0) or not is_true(deployment, "Available")
