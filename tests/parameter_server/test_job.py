"""Job specifications."""

import json

import pytest

from hypha_parameter_server.errors import JobError
from hypha_parameter_server.job import parse_job
from support.parameter_server import JOB_ID, MEMBERS, job_json


def test_a_job_is_read():
    job = parse_job(job_json(learning_rate=0.5, momentum=0))
    assert job.job_id == JOB_ID
    assert job.members == frozenset(MEMBERS)
    assert (job.learning_rate, job.momentum) == (0.5, 0.0)
    assert job.results["peers"] == list(MEMBERS)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("job_id", None, "job_id is missing"),
        ("job_id", "12", "not a uuid"),
        ("executor.class", "train", "'aggregate' jobs only"),
        ("executor.config.updates.peers", [], "updates names no peers"),
        ("executor.config.updates.peers", "12D3", "updates names no peers"),
        ("executor.config.results.peers", [1], "results names no peers"),
        ("executor.config.optimizer.momentum", 1, "below 1"),
        ("executor.config.optimizer.momentum", True, "finite number"),
        ("executor.config.optimizer.momentum", float("nan"), "finite number"),
        ("executor.config.optimizer.learning-rate", 0, "above 0"),
        ("executor.config.optimizer.learning-rate", "0.7", "learning-rate is missing"),
        ("executor.config.optimizer", None, "learning-rate is missing"),
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
        parse_job(json.dumps(spec))


@pytest.mark.parametrize("text", ["", "[]", "null", "{"])
def test_what_is_no_specification_is_refused(text):
    with pytest.raises(JobError):
        parse_job(text)
