"""Labels and annotations of pods that add-ons of the cluster obey. A template may change them."""

from collections.abc import Mapping
from typing import Final

from hypha_resources.worker_jobs import Jobs

NO_MESH_LABELS: Final = {"sidecar.istio.io/inject": "false", "istio.io/dataplane-mode": "none"}
NO_MESH_ANNOTATIONS: Final = {"linkerd.io/inject": "disabled"}
"""A mesh would route the traffic of a job through a proxy that the NetworkPolicy cuts off from its control plane, and
refuse jobs without such a proxy at their controller."""
_NO_DISRUPTION: Final = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
CHANGEABLE: Final = frozenset({*NO_MESH_LABELS, *NO_MESH_ANNOTATIONS, *_NO_DISRUPTION})
"""Keys of these labels and annotations."""


def job_annotations(jobs: Jobs) -> Mapping[str, str]:
    """Return the annotations of a job's pod: no sidecar of a service mesh and, unless allowed, no disruption."""
    return NO_MESH_ANNOTATIONS | (_NO_DISRUPTION if jobs.disruption == "Avoid" else {})
