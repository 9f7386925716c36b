"""`python -m images.sbom`: write a bill of materials (CycloneDX) of each image and of the wheel to .images/sbom.

The bill of an image that is in .images/IMAGE.tar lists its Debian packages too. The same inputs give the same bytes.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from images.archive import read
from images.contexts import IMAGES, OUTPUT, ROOT

_PYTHON: Final = re.compile(r"(?P<name>\S+?)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\\n]+?))? \\$", re.MULTILINE)
_LICENSES: Final = LicenseFactory()


def python_packages(requirements: str) -> Iterator[Component]:
    """Yield the packages of a requirements file with the hashes of the files that pip accepts for them.

    A package with a marker is optional, because its marker decides whether pip installs it.
    """
    for entry in re.split(r"^(?=[A-Za-z0-9])", requirements, flags=re.MULTILINE):
        if not (pinned := _PYTHON.match(entry)):
            continue
        name, version, marker = pinned["name"], pinned["version"], pinned["marker"]
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=text) for text in re.findall(r"sha256:(\w+)", entry)]
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=PackageURL("pypi", None, name, version),
            bom_ref=f"pypi:{name}@{version}",
            scope=ComponentScope.OPTIONAL if marker else ComponentScope.REQUIRED,
            properties=[Property(name="hypha:marker", value=marker)] if marker else [],
            licenses=_licenses(name, version),
            hashes=hashes,
        )


def _licenses(name: str, version: str) -> list[License]:
    """Return the licence of a package if this environment has the version: its expression, else its classifiers."""
    try:
        found = metadata(name)
    except PackageNotFoundError:
        return []
    if found["Version"] != version:
        return []
    if expression := found["License-Expression"]:
        return [_LICENSES.make_from_string(expression)]
    named = [text.rpartition(" :: ")[2] for text in found.get_all("Classifier", []) if text.startswith("License ::")]
    return [DisjunctiveLicense(name=text) for text in named if text != "OSI Approved"]


def debian_packages(status: str) -> Iterator[Component]:
    """Yield the packages of a status file of dpkg."""
    for package in status.strip().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture): (.*)$", package, flags=re.MULTILINE))
        name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
        yield Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=PackageURL("deb", "debian", name, version, {"arch": architecture}),
            bom_ref=f"deb:{name}:{architecture}",
        )


def bill(name: str, kind: ComponentType, components: Iterable[Component]) -> str:
    """Return the bill of one of our artifacts as JSON. RuntimeError if it is not valid."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    root = Component(
        type=kind,
        name=name,
        version=project["version"],
        bom_ref=name,
        licenses=[_LICENSES.make_from_string(project["license"])],
    )
    bom = Bom(components=components)
    bom.metadata.component = root
    bom.register_dependency(root, bom.components)
    values = json.loads(JsonV1Dot6(bom).output_as_string())
    del values["serialNumber"], values["metadata"]["timestamp"]  # they differ from run to run
    text = json.dumps(values, indent=2, sort_keys=True) + "\n"
    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise RuntimeError(f"the bill of materials of {name} is not valid: {str(problem)[:500]}")
    return text


def write_image_bill(image: str) -> Path:
    """Write the bill of an image, from its archive if there is one; return its path."""
    archive = OUTPUT / f"{image}.tar"
    if archive.exists():
        requirements, status = read(archive, "opt/hypha/requirements.txt", "var/lib/dpkg/status")
    else:
        requirements, status = (ROOT / "requirements" / f"{image}.txt").read_text(), ""
    components = [*python_packages(requirements), *(debian_packages(status) if status else ())]
    return _write(image, bill(f"hypha-worker {image}", ComponentType.CONTAINER, components))


def write_wheel_bill() -> Path:
    """Write the bill of the wheel, which has the requirements of all images as extras; return its path."""
    texts = [(ROOT / "requirements" / f"{image.name}.txt").read_text() for image in IMAGES]
    components = {component.bom_ref.value: component for text in texts for component in python_packages(text)}
    return _write("wheel", bill("hypha-worker", ComponentType.LIBRARY, components.values()))


def main() -> None:
    """Write the bills of all images and of the wheel."""
    for path in [*(write_image_bill(image.name) for image in IMAGES), write_wheel_bill()]:
        print(path)


def _write(name: str, text: str) -> Path:
    path = OUTPUT / "sbom" / f"{name}.cdx.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


if __name__ == "__main__":
    main()
