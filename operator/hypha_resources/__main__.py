"""`python -m hypha_resources [--chart]`: writes the CustomResourceDefinitions, or the chart's templates of them."""

import argparse
from pathlib import Path

import yaml

from hypha_resources.crd import RESOURCES, Resource, definition

_HEADER = "# Made from the models in operator/hypha_resources by `make crds`; do not edit.\n"


def plain(resource: Resource) -> str:
    """Return the text of a file for `kubectl apply`."""
    return _HEADER + _dumped(definition(resource))


def templated(resource: Resource) -> str:
    """Return the text of a chart's template. Helm upgrades the definition with the chart and keeps it on removal."""
    text = _dumped(definition(resource, {"helm.sh/resource-policy": "keep"}))
    return f"{_HEADER}{{{{- if .Values.crds.install }}}}\n{text}{{{{- end }}}}\n"


def _dumped(manifest: dict[str, object]) -> str:
    return yaml.safe_dump(manifest, sort_keys=False, width=120)


def main() -> None:
    """Write a file for each resource."""
    parser = argparse.ArgumentParser(prog="python -m hypha_resources", description=__doc__)
    parser.add_argument("--chart", action="store_true", help="write the chart's templates")
    chart = parser.parse_args().chart
    directory = Path("charts/hypha-worker/templates/crds") if chart else Path("crds")
    directory.mkdir(parents=True, exist_ok=True)
    for resource in RESOURCES:
        text = templated(resource) if chart else plain(resource)
        (directory / f"{resource.plural}.yaml").write_text(text)


if __name__ == "__main__":
    main()
