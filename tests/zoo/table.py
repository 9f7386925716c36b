"""All families, and the table that shows how they fare."""

import math
from typing import Final

from zoo import causal, detection, multimodal, own_code, speech, understanding, vision
from zoo.trial import Trial

FAMILIES: Final = (
    *causal.FAMILIES,
    *understanding.FAMILIES,
    *own_code.FAMILIES,
    *vision.FAMILIES,
    *detection.FAMILIES,
    *multimodal.FAMILIES,
    *speech.FAMILIES,
)

HEAD: Final = (
    "| family | special | model type | parameters | loss before | after DiLoCo | after one process | verdict |\n"
    "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"
)


def line(trial: Trial) -> str:
    """Return a family's line of the table."""
    family = trial.family
    losses = ("" if math.isnan(loss) else f"{loss:.3f}" for loss in (trial.before, trial.diloco, trial.alone))
    cells = (family.name, family.note, f"`{family.task}`", f"{trial.parameters:,}", *losses, trial.verdict)
    return f"| {' | '.join(cells)} |"
