"""`python -m hypha_resources [--chart]`: writes definitions and roles of the resources, or the chart's templates."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hypha_resources.crd import RESOURCES, definition
from hypha_resources.roles import roles

_HEADER = "# Made from the models in operator/hypha_resources by `make crds`; do not edit.\n"
_KEPT = {"helm.sh/resource-policy": "keep"}
_NAME = {"app.kubernetes.io/name": "hypha-worker"}
_COMMON = {"common": "labels"}
"""Stands for the labels that the user of the chart wants on all objects."""
_COMMON_LABELS = """\
    {{- with .Values.commonLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
"""


def manifests() -> dict[str, list[dict[str, Any]]]:
    """Return the content of each file, by the file's name."""
    definitions = {f"{resource.plural}.yaml": [definition(resource)] for resource in RESOURCES}
    return definitions | {"roles.yaml": roles()}


def plain() -> dict[str, str]:
    """Return the files for `kubectl apply`, by name."""
    return {name: _HEADER + _dumped(content) for name, content in manifests().items()}


def templated() -> dict[str, str]:
    """Return the chart's templates, by name. Helm upgrades the objects with the chart and keeps them on removal."""
    return {
        name: f"{_HEADER}{{{{- if .Values.crds.install }}}}\n{_with_labels(map(_of_chart, content))}{{{{- end }}}}\n"
        for name, content in manifests().items()
    }


def _of_chart(manifest: dict[str, Any]) -> dict[str, Any]:
    metadata = manifest["metadata"]
    labels = metadata.get("labels", {}) | _NAME | _COMMON
    return manifest | {"metadata": metadata | {"labels": labels, "annotations": _KEPT}}


def _with_labels(content: Iterable[dict[str, Any]]) -> str:
    placeholder = "".join(f"    {key}: {value}\n" for key, value in _COMMON.items())
    return _dumped(content).replace(placeholder, _COMMON_LABELS)


def _dumped(content: Iterable[dict[str, Any]]) -> str:
    return yaml.safe_dump_all(content, sort_keys=False, width=120)


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(prog="python -m hypha_resources", description=__doc__)
    parser.add_argument("--chart", action="store_true", help="write the chart's templates")
    chart = parser.parse_args().chart
    directory = Path("charts/hypha-worker/templates/crds") if chart else Path("crds")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in (templated() if chart else plain()).items():
        (directory / name).write_text(text)


if __name__ == "__main__":
    main()
