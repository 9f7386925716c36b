"""The bills of materials: valid, complete, and equal for equal inputs."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.model.component import ComponentType
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from images import sbom
from images.contexts import IMAGES, ROOT

EACH = pytest.mark.parametrize("name", [image.name for image in IMAGES])


@cache
def bill_of(requirements: str, status: str = "") -> dict[str, Any]:
    components = [*sbom.python_packages(requirements), *(sbom.debian_packages(status) if status else ())]
    bill: dict[str, Any] = json.loads(sbom.bill("example", ComponentType.CONTAINER, components))
    return bill


def requirements(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


@EACH
def test_a_bill_lists_every_requirement_with_its_hashes_and_nothing_more(name: str) -> None:
    entries = re.split(r"^(?=\S)", requirements(name), flags=re.MULTILINE)[1:]
    expected = {
        re.match(r"\S+", entry)[0].replace("==", "@"): sorted(re.findall(r"--hash=sha256:(\w+)", entry))  # type: ignore[index]
        for entry in entries
        if not entry.startswith("#")
    }
    found = {
        component["purl"].removeprefix("pkg:pypi/"): sorted(item["content"] for item in component["hashes"])
        for component in bill_of(requirements(name))["components"]
    }
    assert found == expected
    assert all(found.values())


def test_a_bill_is_valid_and_depends_on_all_of_its_components() -> None:
    bill = bill_of(requirements("bridge"))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    assert bill["metadata"]["component"]["name"] == "example"
    assert bill["metadata"]["component"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    (root,) = (entry for entry in bill["dependencies"] if entry["ref"] == "example")
    assert sorted(root["dependsOn"]) == sorted(component["bom-ref"] for component in bill["components"])


def test_equal_inputs_give_equal_bytes_without_a_time_or_a_serial_number() -> None:
    packages = [*sbom.python_packages(requirements("bridge"))][:5]
    first, second = (sbom.bill("example", ComponentType.CONTAINER, packages) for _ in range(2))
    assert first == second
    assert "serialNumber" not in json.loads(first)
    assert "timestamp" not in json.loads(first)["metadata"]


def test_a_bill_that_is_not_valid_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sbom.JsonV1Dot6, "output_as_string", lambda _: '{"serialNumber": 1, "metadata": {"timestamp": 1}}'
    )
    with pytest.raises(RuntimeError, match="the bill of materials of example is not valid"):
        sbom.bill("example", ComponentType.CONTAINER, [])


def test_a_package_for_some_platforms_only_is_optional_and_names_its_marker() -> None:
    (package,) = bill_of("colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:" + "ab" * 32)["components"]
    assert package["scope"] == "optional"
    assert package["properties"] == [{"name": "hypha:marker", "value": "sys_platform == 'win32'"}]


def test_an_installed_package_has_its_licence() -> None:
    packages = {package["name"]: package for package in bill_of(requirements("worker"))["components"]}
    assert packages["trio"]["licenses"] == [{"expression": "MIT OR Apache-2.0"}]
    assert packages["httpx"]["licenses"]


def test_a_bill_lists_the_packages_of_the_distribution() -> None:
    status = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u10\n"
    (package,) = bill_of("", status)["components"]
    assert package["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64"
    assert (package["name"], package["version"]) == ("libc6", "2.36-9+deb12u10")


def test_the_bills_of_all_images_and_of_the_wheel_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sbom, "OUTPUT", tmp_path)
    sbom.main()
    assert {path.name for path in (tmp_path / "sbom").iterdir()} == {
        "wheel.cdx.json",
        *(f"{image.name}.cdx.json" for image in IMAGES),
    }
    wheel = json.loads((tmp_path / "sbom" / "wheel.cdx.json").read_text())
    trainer = json.loads((tmp_path / "sbom" / "trainer.cdx.json").read_text())
    purls = {component["purl"] for component in wheel["components"]}
    assert {component["purl"] for component in trainer["components"]} <= purls
