"""Decide whether a controller may get a new image now. Performs no I/O.

An upgrade of the operator changes the image of all controllers. While a controller's pod is replaced, its jobs wait.
"""

from collections.abc import Callable
from typing import Any, Final

from hypha_contracts.kinds import Manifest
from hypha_contracts.names import CONTROLLER
from hypha_contracts.object_status import is_true
from hypha_operator.machinery.kinds import Key

MAX_AT_ONCE: Final = 3
"""Controllers that may be down at a time because of a new image."""
COUNTED_S: Final = 600.0
"""After this time, a controller that is still down delays the others no longer. Its own condition says why it is."""


class Rollouts:
    """The controllers that got a new image and have not been available since."""

    def __init__(self) -> None:
        self._began_s: dict[Key, float] = {}

    def admits(
        self,
        key: Key,
        observed: Manifest | None,
        desired: Manifest,
        now_s: float,
        find: Callable[[Key], Manifest | None],
    ) -> bool:
        """Whether a Deployment may be applied now. If that replaces an available pod's image, it counts from now on.

        Args:
            key: the Deployment.
            observed: its current manifest, or None if there is none.
            desired: the manifest to apply.
            now_s: seconds of the monotonic clock.
            find: returns the current manifest of another controller's Deployment.
        """
        self._began_s = {
            other: began_s
            for other, began_s in self._began_s.items()
            if now_s - began_s < COUNTED_S and _is_down(find(other))
        }
        if observed is None or _is_down(observed) or _image(observed) == _image(desired):
            return True
        if len(self._began_s) >= MAX_AT_ONCE:
            return False
        self._began_s[key] = now_s
        return True


def _is_down(deployment: Manifest | None) -> bool:
    """Whether a Deployment is not available in its current generation."""
    if deployment is None:
        return False
    observed = (deployment.get("status") or {}).get("observedGeneration", 0)
    return observed < deployment["metadata"].get("generation", 0) or not is_true(deployment, "Available")


def _image(deployment: Manifest) -> Any:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    return next((container.get("image") for container in containers if container["name"] == CONTROLLER), None)
