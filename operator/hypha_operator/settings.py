"""The operator's settings, from the environment variables that the chart sets."""

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class SettingsError(Exception):
    """A required environment variable is not set, or one has an unusable value."""


@dataclass(frozen=True)
class Settings:
    """Images and names for all workers."""

    worker_image: str
    bridge_image: str
    trainer_image: str
    parameter_server_image: str
    image_pull_policy: str = "IfNotPresent"
    replica: str = field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    """The name of this process among the release's replicas; in a pod, the name of the pod."""

    metrics_from: tuple[Any, ...] = ({"namespaceSelector": {}},)
    """Who may read the metrics of controllers, as in `from` of a NetworkPolicy: by default the pods of all namespaces,
    because Prometheus may run in any of them."""

    user_ids: bool = True
    """Whether pods name their user and group. OpenShift's default policy assigns them, and refuses others."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read `HYPHA_WORKER_IMAGE` and the other variables.

        Raises:
            SettingsError: the variable of an image is not set, or another variable has an unusable value.
        """

        def image(part: str) -> str:
            variable = f"HYPHA_{part}_IMAGE"
            if not environ.get(variable):
                raise SettingsError(f"{variable} is not set. Set it to the image to use, such as hypha-worker:0.1.0.")
            return environ[variable]

        return cls(
            worker_image=image("WORKER"),
            bridge_image=image("BRIDGE"),
            trainer_image=image("TRAINER"),
            parameter_server_image=image("PARAMETER_SERVER"),
            image_pull_policy=environ.get("HYPHA_IMAGE_PULL_POLICY") or cls.image_pull_policy,
            user_ids=_flag("HYPHA_USER_IDS", environ.get("HYPHA_USER_IDS"), default=cls.user_ids),
            metrics_from=_peers(environ.get("HYPHA_METRICS_FROM")) or cls.metrics_from,
            **({"replica": environ["HYPHA_POD_NAME"]} if environ.get("HYPHA_POD_NAME") else {}),
        )


def _flag(variable: str, text: str | None, *, default: bool) -> bool:
    if text not in (None, "", "true", "false"):
        raise SettingsError(f"{variable} is {text!r}. Set it to true or false.")
    return text == "true" if text else default


def _peers(text: str | None) -> tuple[Any, ...]:
    if not text:
        return ()
    try:
        peers = json.loads(text)
    except ValueError:
        peers = None
    if not isinstance(peers, list):
        raise SettingsError('HYPHA_METRICS_FROM: write a list in JSON, such as [{"namespaceSelector": {}}]')
    return tuple(peers)
