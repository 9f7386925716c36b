"""The content of the images: each has its own packages and their requirements, at the versions that the tests use."""

import ast
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from images.contexts import CONTAINERFILE, IMAGES, ROOT, Image, build_wheel, digest, project_of

EACH = pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OURS = {Path(package).name for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}


@EACH
def test_a_wheel_holds_the_packages_of_its_image_alone(image: Image, tmp_path: Path) -> None:
    names = zipfile.ZipFile(build_wheel(image.packages, tmp_path)).namelist()
    held = {name.split("/")[0] for name in names if not name.startswith("hypha_worker-")}
    assert held == {Path(package).name for package in image.packages}


@EACH
def test_the_packages_of_an_image_import_nothing_of_ours_that_it_lacks(image: Image) -> None:
    held = {Path(package).name for package in image.packages}
    for package in image.packages:
        for file in (ROOT / package).rglob("*.py"):
            assert set(imported(file)) & OURS <= held, file


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@EACH
def test_scripts_of_packages_that_an_image_lacks_are_not_in_its_wheel(image: Image) -> None:
    held = {Path(package).name for package in image.packages}
    scripts = project_of(PROJECT, image.packages)["project"]["scripts"]
    assert all(re.split(r"[.:]", target)[0] in held for target in scripts.values())


def test_a_package_that_the_project_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"operator/hypha_gone.*images/contexts\.py"):
        project_of(PROJECT, ["operator/hypha_gone"])


def test_the_same_files_give_the_same_wheel(tmp_path: Path) -> None:
    first, second = (build_wheel(IMAGES[0].packages, tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.parametrize("extra", [*(image.name for image in IMAGES), "node", "kubectl"])
def test_the_requirements_are_what_an_extra_asks_for_at_the_tested_versions(extra: str) -> None:
    locked, tested = pins(extra), pins("dev")
    assert locked.items() <= tested.items()
    for requirement in direct(extra):
        assert locked[requirement.name.lower().replace("_", "-")] in requirement.specifier, requirement


def direct(extra: str) -> Iterator[Requirement]:
    project = PROJECT["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            for other in requirement.extras:
                yield from direct(other)
        else:
            yield requirement


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries), f"requirements/{name}.txt: an entry has no hash"
    return dict(re.match(r"(\S+?)==(\S+)", entry).groups() for entry in entries)  # type: ignore[union-attr, misc]


def test_a_digest_depends_on_names_contents_and_settings(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    first = digest(tmp_path, "a")
    assert digest(tmp_path, "a") == first
    assert digest(tmp_path, "b") != first
    (tmp_path / "file").rename(tmp_path / "other")
    assert digest(tmp_path, "a") != first


def test_the_images_run_as_an_unprivileged_user_on_a_chosen_base() -> None:
    lines = CONTAINERFILE.read_text().splitlines()
    assert "ARG BASE=docker.io/library/python:3.12-slim" in lines
    assert "USER 65532:65532" in lines


def test_each_image_is_a_target_that_runs_without_a_shell() -> None:
    targets = re.findall(r'^FROM image AS (\S+)\nENTRYPOINT \["', CONTAINERFILE.read_text(), flags=re.MULTILINE)
    assert sorted(targets) == sorted(image.name for image in IMAGES)
