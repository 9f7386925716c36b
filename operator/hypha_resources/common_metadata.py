"""Labels and annotations for every object of a HyphaWorker, validated so that they replace none of the operator's."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from hypha_contracts.names import GROUP
from hypha_resources.common import KEY, LABEL_VALUE, rules

_RECOMMENDED: Final = "app.kubernetes.io/(name|instance|component|managed-by)"
_OURS: Final = f"^({GROUP}/.*|{_RECOMMENDED}|batch.kubernetes.io/.*|job-name|controller-uid)$"
_WRITE_KEY: Final = "write keys such as team or example.org/team"
_WRITE_VALUE: Final = "write values of at most 63 letters, digits, dots, hyphens and underscores"
_RESERVED: Final = "the operator and Kubernetes set some of these keys themselves: choose others"
_KEYS: Final = (
    (f"self.all(key, key.matches('{KEY}'))", _WRITE_KEY),
    (f"!self.exists(key, key.matches('{_OURS}'))", _RESERVED),
)


def _checked(metadata: dict[str, str]) -> dict[str, str]:
    for key in metadata:
        if not re.fullmatch(KEY, key):
            raise ValueError(f"{key!r}: {_WRITE_KEY}")
        if re.fullmatch(_OURS, key):
            raise ValueError(f"{key!r}: {_RESERVED}")
    return metadata


def _checked_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not re.fullmatch(LABEL_VALUE, value):
            raise ValueError(f"{key!r}: {_WRITE_VALUE}")
    return _checked(labels)


Labels = Annotated[
    dict[str, str],
    AfterValidator(_checked_labels),
    Field(
        max_length=32,
        json_schema_extra=rules(*_KEYS, (f"self.all(key, self[key].matches('{LABEL_VALUE}'))", _WRITE_VALUE)),
    ),
]
Annotations = Annotated[dict[str, str], AfterValidator(_checked), Field(max_length=32, json_schema_extra=rules(*_KEYS))]
