"""Find out why a Job has no pod."""

from typing import Final

from hypha_contracts.kinds import EVENT, Manifest
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.pods.refusal import refusal_in
from hypha_operator.pods.state import Finding

_FAILED_CREATE: Final = "FailedCreate"
"""The reason of a Job's Events about a pod that the API server refused."""


async def refused_pod(job: Manifest, cluster: Cluster) -> Finding | None:
    """Return why the API server refuses the pod of a Job. Only the Job's Events say why. None if they do not."""
    metadata = job["metadata"]
    selector = f"involvedObject.uid={metadata['uid']},reason={_FAILED_CREATE}"
    return refusal_in(await cluster.find(EVENT, metadata["namespace"], field_selector=selector))
