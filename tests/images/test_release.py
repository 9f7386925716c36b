"""A release: what a dry run prints, and what is pushed and pinned."""

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from chart.rendering import helm
from images import build, dist, release
from images.contexts import IMAGES, ROOT
from images.tool import BuildError, ContainerTool

REGISTRY = "registry.example.org/team"
DIGESTS = {image.name: f"sha256:{hashlib.sha256(image.name.encode()).hexdigest()}" for image in IMAGES}
OF_CHART = {image.name: DIGESTS[image.name] for image in IMAGES if image.in_chart}


def test_a_dry_run_names_every_image_and_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REGISTRY", REGISTRY)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert release.main(["--dry-run"]) == 0
    steps = capsys.readouterr().out.splitlines()
    tag = build.settings_of({}).tag
    for image in IMAGES:
        assert f"build {REGISTRY}/{image.name}:{tag}" in steps
        assert f"push {REGISTRY}/{image.name}:{tag}" in steps
    assert steps[-1] == f"package wheel, source, requirements and the chart with the digests of {REGISTRY}"


def test_without_a_registry_nothing_is_pushed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REGISTRY", raising=False)
    assert release.main(["--dry-run"]) == 0
    assert "push nothing, because REGISTRY is not set" in capsys.readouterr().out.splitlines()


def test_a_tag_that_the_chart_does_not_install_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAG", "9.9")
    assert release.main(["--dry-run"]) == 1
    assert "and TAG is 9.9: make them equal" in capsys.readouterr().err


def test_a_checkout_with_changes_is_refused(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    release.check_clean(tmp_path)
    (tmp_path / "new").touch()
    with pytest.raises(BuildError, match=r"commit or remove\n\?\? new"):
        release.check_clean(tmp_path)


def test_the_archived_chart_installs_the_pushed_images_by_their_digests(tmp_path: Path) -> None:
    values = release.pinned((ROOT / dist.VALUES).read_text(), REGISTRY, OF_CHART)
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, checkout], check=True)
    [chart] = (path for path in dist.build(checkout, tmp_path / "dist", values) if path.name.endswith(".tgz"))
    rendered = helm("helm", "template", "w", str(chart))
    for image, digest in OF_CHART.items():
        assert f"{REGISTRY}/{image}@{digest}" in rendered, image
    assert "localhost/hypha" not in rendered
    with tarfile.open(chart) as archive:
        kept = archive.extractfile("hypha-worker/values.yaml")
        assert kept is not None
        assert kept.read().decode().count("# -- ") == (ROOT / dist.VALUES).read_text().count("# -- ")


def test_the_values_of_the_chart_have_every_image_of_the_chart() -> None:
    images = yaml.safe_load((ROOT / dist.VALUES).read_text())["images"]
    named = {key for key, value in images.items() if isinstance(value, dict)}
    assert named == {release.chart_key(image.name) for image in IMAGES if image.in_chart}


@pytest.mark.parametrize("tool", ["podman", "buildah", "docker"])
def test_a_push_returns_the_digest_in_the_registry(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = DIGESTS["worker"]
    others = f'["{REGISTRY}/other@sha256:0","{REGISTRY}/worker@{digest}"]'
    program = tmp_path / tool
    program.write_text(
        f"#!{shutil.which('sh')}\n"
        'while [ $# -gt 0 ]; do if [ "$1" = --digestfile ]; then echo ' + digest + ' > "$2"; fi\n'
        f"if [ \"$1\" = inspect ]; then echo '{others}'; fi; shift; done\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert ContainerTool(tool).push(f"{REGISTRY}/worker:0.1.0") == digest
