"""Derive why a job's objects cannot be built, or why the API server refuses them. Performs no I/O."""

from collections.abc import Sequence
from typing import Final

from pydantic import ValidationError

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import Manifest
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


def refusal_of(error: ApiError) -> Finding | None:
    """Return why the API server refuses an object, or None if the error says nothing about the object."""
    if is_admission(error):
        return _refusal(error.message)
    if isinstance(error, Invalid):
        message = f"the API server refuses it: {error.message}. Correct the executor's template."
        return Finding(JobReason.INVALID_TEMPLATE, message)
    return None


def refusal_in(events: Sequence[Manifest]) -> Finding | None:
    """Return why a Job has no pod according to its Events `FailedCreate`, or None without such Events."""
    newest = max(events, key=lambda event: str(event.get("lastTimestamp")), default=None)
    return _refusal(newest["message"]) if newest else None


def _refusal(message: str) -> Finding:
    if "exceeded quota" in message:
        return Finding(JobReason.QUOTA_EXCEEDED, f"{message}. {JobReason.QUOTA_EXCEEDED.remedy}")
    remedy = JobReason.ADMISSION_REFUSED.remedy
    return Finding(JobReason.ADMISSION_REFUSED, f"admission refuses the pod: {message}. {remedy}")
