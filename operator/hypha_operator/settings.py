"""The operator's settings, from the environment variables that the chart sets."""

from collections.abc import Mapping
from dataclasses import dataclass


class SettingsError(Exception):
    """A required environment variable is not set."""


@dataclass(frozen=True)
class Settings:
    """Images and names for all workers."""

    worker_image: str
    bridge_image: str
    trainer_image: str
    parameter_server_image: str
    image_pull_policy: str = "IfNotPresent"
    token_reviewer_role: str = "hypha-token-reviewer"  # noqa: S105 - a name
    """The ClusterRole that may create TokenReviews; the operator binds each worker's service account to it."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Settings":
        """Read `HYPHA_WORKER_IMAGE` and the other variables.

        Raises:
            SettingsError: the variable of an image is not set.
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
            token_reviewer_role=environ.get("HYPHA_TOKEN_REVIEWER_ROLE") or cls.token_reviewer_role,
        )
