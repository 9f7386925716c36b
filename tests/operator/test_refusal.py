"""Why the API server refuses an object of a job, and what people change about it."""

import pytest

from hypha_contracts.kubernetes_errors import Forbidden, Invalid
from hypha_operator.offers.trial import checked, trial
from hypha_operator.pods.refusal import refusal_of
from hypha_resources.job import Amounts
from support.operating import SETTINGS
from support.operator_objects import LEASE, worker_manifest, worker_spec


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("NetworkPolicy", "jobs.egress"),
        ("ResourceClaimTemplate", "resources.gpu"),
        ("Job", "executors.template"),
        ("Pod", "executors.template"),
    ],
)
def test_a_refusal_names_the_object_and_the_setting_that_decides_it(kind: str, setting: str) -> None:
    invalid = refusal_of(Invalid("POST", 422, "Invalid", "spec.x: unknown"), kind)
    assert invalid is not None
    assert invalid.reason == "InvalidTemplate"
    assert invalid.message == f"the API server refuses the {kind}: spec.x: unknown. Correct `{setting}`."
    denied = refusal_of(Forbidden("POST", 403, "Forbidden", "admission webhook a denied the request"), kind)
    assert denied is not None
    assert denied.reason == "AdmissionRefused"
    assert denied.message.startswith(f"admission refuses the {kind}: admission webhook a denied the request. ")
    assert f"in `{setting}` or `commonLabels`" in denied.message


def test_every_object_of_a_job_is_checked_in_the_order_in_which_it_is_created() -> None:
    spec, worker = worker_spec(), worker_manifest()
    worker["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z"}
    made = checked(trial(worker, spec, spec.executors[0], Amounts(**LEASE), SETTINGS))
    assert [manifest["kind"] for manifest in made] == ["NetworkPolicy", "Job", "Pod"]
    assert all("name" not in manifest["metadata"] and manifest["metadata"]["generateName"] for manifest in made)
