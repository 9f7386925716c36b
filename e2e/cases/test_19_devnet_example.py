"""A network in the cluster, by the example that a reader of the README applies."""

import ast
import re
from collections.abc import Iterator

import pytest
import yaml

from e2e import installation
from e2e.kube import Kube, condition, eventually
from e2e.settings import ROOT, Settings

pytestmark = pytest.mark.long

NAMESPACE = "hypha-devnet"
_TRAINED_S = 900
_LOSS = 0.5
"""Ten digits that are guessed have a loss of 2.3."""


@pytest.fixture
def example(kube: Kube, operator: None, settings: Settings) -> Iterator[None]:
    """The example, with the images of the release."""
    of_release = installation.image(kube, "HYPHA_PARAMETER_SERVER_IMAGE").replace("/parameter-server", "/devnet")
    text = (ROOT / "examples" / "devnet.yaml").read_text()
    objects = list(yaml.safe_load_all(re.sub(r"localhost/hypha/devnet:\S+", of_release, text)))
    eventually("an earlier one is gone", lambda: kube.get("namespaces", None, NAMESPACE) is None, 180)
    kube.apply(*objects)
    yield
    if not settings.keep:
        for item in objects:
            if item["kind"] == "HyphaWorker":
                kube.delete("hyphaworkers", NAMESPACE, item["metadata"]["name"])
        eventually("the workers are gone", lambda: not kube.items("hyphaworkers", NAMESPACE), 180)
        kube.delete("namespaces", None, NAMESPACE)


def test_one_manifest_brings_a_network_that_trains_the_digits(kube: Kube, example: None) -> None:
    def state(type_: str) -> bool:
        return condition(kube.get("jobs", NAMESPACE, "digits"), type_).get("status") == "True"

    eventually("the digits are trained", lambda: state("Complete") or state("Failed"), _TRAINED_S)
    log = kube.kubectl("logs", "--namespace", NAMESPACE, "job/digits")
    assert state("Complete"), log
    losses = [ast.literal_eval(text)["loss"] for text in re.findall(r"metrics=(\{.*?\})", log)]
    assert losses[0] > 1
    assert losses[-1] < _LOSS

    def phases() -> list[str]:
        return [job.get("status", {}).get("phase", "") for job in kube.items("hyphajobs", NAMESPACE)]

    eventually("its three jobs have succeeded", lambda: phases() == ["Succeeded"] * 3)
