"""Job specifications."""

import json

import pytest

from hypha_executor.errors import JobError
from hypha_parameter_server.job import parse_aggregate_job
from support.parameter_server import JOB_ID, MEMBERS, job_json


def test_a_job_is_read():
    job = parse_aggregate_job(job_json(learning_rate=0.5, momentum=0))
    assert job.job_id == JOB_ID
    assert job.members == frozenset(MEMBERS)
    assert (job.learning_rate, job.momentum) == (0.5, 0.0)
    assert job.results["peers"] == list(MEMBERS)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("job_id", None, "job_id must be text"),
        ("job_id", "12", "must be a UUID"),
        ("executor.class", "train", "'train', this executor runs 'aggregate' jobs"),
        ("executor.config.updates.peers", [], "updates.peers must be a list of names"),
        ("executor.config.updates.peers", "12D3", "updates.peers must be a list of names"),
        ("executor.config.results.peers", [1], "results.peers must be a list of names"),
        ("executor.config.optimizer.momentum", 1, "below 1"),
        ("executor.config.optimizer.momentum", True, "momentum must be a number"),
        ("executor.config.optimizer.momentum", float("nan"), "momentum must be a number"),
        ("executor.config.optimizer.learning-rate", 0, "above 0"),
        ("executor.config.optimizer.learning-rate", "0.7", "learning-rate must be a number"),
        ("executor.config.optimizer", None, "optimizer must be an object"),
    ],
)
def test_an_unusable_job_is_refused_with_its_reason(path, value, reason):
    spec = json.loads(job_json())
    *parents, last = path.split(".")
    place = spec
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(JobError, match=reason):
        parse_aggregate_job(json.dumps(spec))


@pytest.mark.parametrize("text", ["", "[]", "null", "{"])
def test_a_text_that_is_not_a_specification_is_refused(text):
    with pytest.raises(JobError):
        parse_aggregate_job(text)
