"""Derive why a job's objects cannot be built, or why the API server refuses them. Performs no I/O."""

from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import NETWORK_POLICY, POD, RESOURCE_CLAIM_TEMPLATE, Manifest
from hypha_contracts.kubernetes_errors import ApiError, Invalid, is_admission
from hypha_messages.validation import describe
from hypha_operator.pods.executor import UnbuildableJobError
from hypha_operator.pods.overlay import OverlayError
from hypha_operator.pods.state import Finding

UNBUILDABLE: Final = (UnbuildableJobError, OverlayError, ValidationError)
"""The errors of a job whose objects cannot be built from its worker's specification."""
NO_CLAIM_TEMPLATES: Final = "this cluster serves no ResourceClaimTemplates (Kubernetes 1.34). Use gpu.resourceName."


def why_unbuildable(error: Exception) -> str:
    """Return the message of one of the errors `UNBUILDABLE`, with the field of the specification."""
    where = "the HyphaWorker's spec"
    return describe(error, where, f"{where}.") if isinstance(error, ValidationError) else str(error)


def refusal_of(error: ApiError, kind: str) -> Finding | None:
    """Return why the API server refuses an object of a kind, or None if the error says nothing about the object."""
    if is_admission(error):
        return _refusal(error.message, kind)
    if isinstance(error, Invalid):
        message = f"the API server refuses the {kind}: {error.message}. Correct `{_setting(kind)}`."
        return Finding(JobReason.INVALID_TEMPLATE, message)
    return None


def refusal_in(events: Sequence[Manifest]) -> Finding | None:
    """Return why a Job has no pod according to its Events `FailedCreate`, or None without such Events."""
    newest = max(events, key=lambda event: str(event.get("lastTimestamp")), default=None)
    return _refusal(newest["message"], POD.name) if newest else None


def _refusal(message: str, kind: str) -> Finding:
    if "exceeded quota" in message:
        return Finding(JobReason.QUOTA_EXCEEDED, f"{message}. {JobReason.QUOTA_EXCEEDED.remedy}")
    remedy = JobReason.ADMISSION_REFUSED.remedy.replace(_setting(POD.name), _setting(kind))
    return Finding(JobReason.ADMISSION_REFUSED, f"admission refuses the {kind}: {message}. {remedy}")


def _setting(kind: str) -> str:
    """Return the part of a HyphaWorker's specification that people change to change the objects of a kind."""
    return {NETWORK_POLICY.name: "jobs.egress", RESOURCE_CLAIM_TEMPLATE.name: "resources.gpu"}.get(
        kind, "executors.template"
    )
