import json
from typing import Any

import pytest

from hypha_executor.errors import JobError
from hypha_messages.job import JobSpec
from hypha_trainer.job import parse_train_job
from support.trainer import JOB_ID, job_spec


def test_a_job_is_read_as_the_network_writes_it() -> None:
    spec = JobSpec.model_validate(job_spec(scheduler={"type": "wsd", "warmup_steps": 3, "decay_steps": 9}))
    job = parse_train_job(spec.model_dump_json(by_alias=True))
    assert job.job_id == JOB_ID
    assert job.model.input_names == ("pixel_values", "labels")
    assert job.schedule is not None
    assert (job.schedule.kind, job.schedule.warmup_steps, job.schedule.decay_steps) == ("wsd", 3, 9)
    assert job.data["dataset"] == "digits"
    assert job.preprocessor is None


def test_betas_and_epsilon_are_optional() -> None:
    job = parse_train_job(json.dumps(job_spec(optimizer={"learning-rate": 0.1, "betas": [0.8, 0.95], "epsilon": None})))
    assert (job.optimizer.learning_rate, job.optimizer.betas, job.optimizer.epsilon) == (0.1, (0.8, 0.95), None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "config.batch_size must be a number of at least 1"),
        ({"batch_size": True}, "config.batch_size"),
        ({"optimizer": {}}, "config.optimizer.learning-rate is missing"),
        ({"optimizer": {"learning-rate": -1}}, "learning-rate must be a number of at least 0"),
        ({"optimizer": {"learning-rate": float("nan")}}, "learning-rate must be a number"),
        ({"optimizer": {"learning-rate": 1, "betas": [0.9, 1.5]}}, "betas must be two numbers"),
        ({"scheduler": {"type": "step"}}, "config.scheduler.type is 'step', known are cosine-with-warmup"),
        ({"scheduler": {"type": "wsd", "warmup_steps": 1}}, "config.scheduler.decay_steps is missing"),
        (
            {"model": {"task": "auto", "artifact": {}, "input-names": []}},
            "config.model.input-names must be a list",
        ),
        ({"model": "lenet"}, "config.model must be an object"),
        ({"data": None}, "config.data must be an object"),
    ],
)
def test_a_wrong_job_is_refused_with_the_path_of_the_wrong_field(change: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=r"^job\.executor\.") as refusal:
        parse_train_job(json.dumps(job_spec(**change)))
    assert says in str(refusal.value)
