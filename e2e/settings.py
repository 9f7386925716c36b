"""The settings of the end-to-end cases, from the environment."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
OUTPUT: Final = ROOT / "e2e-output"
"""The directory of the devnet's logs, and of the records of failed cases."""


@dataclass(frozen=True)
class Settings:
    """How to run the cases.

    Attributes:
        kubeconfig: the cluster's kubeconfig; None: start and use the cluster of `make cluster`.
        context: the kubeconfig's context; None: the current one.
        host: the address of this machine that pods reach; known for the cluster of `make cluster`.
        values: a file of further Helm values, such as where the images are.
        repeats: how often the recovery cases run.
        reconcile_s: how long to watch the examples for changes.
        hypha_bin: a directory with the reference implementation's programs.
        keep: whether to keep everything after the run.
    """

    kubeconfig: Path | None
    context: str | None
    host: str | None
    values: Path | None
    repeats: int
    reconcile_s: float
    hypha_bin: Path | None
    keep: bool

    @property
    def own_cluster(self) -> bool:
        """Whether this is the cluster of `make cluster`."""
        return self.kubeconfig is None and self.context is None


def load() -> Settings:
    """Read the settings from the environment."""

    def path(name: str) -> Path | None:
        return Path(value) if (value := os.environ.get(name)) else None

    return Settings(
        kubeconfig=path("KUBECONFIG"),
        context=os.environ.get("E2E_CONTEXT"),
        host=os.environ.get("E2E_HOST"),
        values=path("E2E_VALUES"),
        repeats=int(os.environ.get("E2E_REPEATS", "1")),
        reconcile_s=float(os.environ.get("E2E_RECONCILE_S", "60")),
        hypha_bin=path("HYPHA_BIN"),
        keep=bool(os.environ.get("E2E_KEEP")),
    )
