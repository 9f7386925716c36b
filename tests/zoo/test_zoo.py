"""The families that differ most train over bridges as well as in one process; `make zoo` trains all of them."""

from collections.abc import Iterator

import pytest
import torch

from hypha_messages.job import ModelType
from zoo.family import Family
from zoo.jobs import Jobs, open_jobs
from zoo.table import FAMILIES
from zoo.trial import run

pytestmark = pytest.mark.timeout(300)

CHOSEN = {
    "llama-causal-lm",
    "mixtral-causal-lm",
    "t5-seq2-seq-lm",
    "own-code-auto",
    "resnet-image-classification",
    "yolos-object-detection",
    "clip-zero-shot-image-classification",
    "wav2vec2-ctc",
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    torch.set_num_threads(1)
    with open_jobs(tmp_path_factory.mktemp("zoo")) as opened:
        yield opened


@pytest.mark.parametrize("family", [family for family in FAMILIES if str(family) in CHOSEN], ids=str)
def test_two_trainers_reach_equal_models_as_good_as_that_of_one_process(family: Family, jobs: Jobs) -> None:
    trial = run(family, jobs)
    assert not trial.problem, trial


def test_the_zoo_has_a_family_of_every_model_type() -> None:
    assert {family.task for family in FAMILIES} == set(ModelType)
    assert len({str(family) for family in FAMILIES}) == len(FAMILIES)
