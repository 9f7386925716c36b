"""What is built, and how it is told its version, follows from the module file."""

import shutil
from pathlib import Path

import pytest

from e2e.cluster import tools
from e2e.cluster.tools import ToolError


@pytest.mark.parametrize("packages", tools._FOLDERS.values(), ids=tools._FOLDERS)
def test_every_program_is_a_tool_or_a_package_of_its_module(packages: dict[str, str]) -> None:
    (module,) = {tools.module_of(name) for name in packages}
    listed = (module / "go.mod").read_text().partition("tool (\n")[2].partition(")")[0].split()
    own = [f"hypha/e2e/{module.name}/{path.parent.name}" for path in module.glob("*/main.go")]
    assert sorted(listed + own) == sorted(packages.values())


def test_a_program_says_the_version_of_its_module() -> None:
    module_file = "require (\n\tk8s.io/kubernetes v1.37.2 // indirect\n\thelm.sh/helm/v3 v3.22.0\n)"
    assert "version.gitVersion=v1.37.2" in tools._flags("kubelet", module_file)
    assert "helm/v3/internal/version.version=v3.22.0" in tools._flags("helm3", module_file)
    assert "chartutil.k8sVersionMinor=37" in tools._flags("helm3", module_file)


def test_a_changed_source_file_makes_our_own_program_stale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(tools.module_of("collector"), tmp_path / "e2e" / "monitoring-tools")
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    before = tools._stamp("collector"), tools._stamp("promtool")
    with (tmp_path / "e2e" / "monitoring-tools" / "collector" / "main.go").open("a") as source:
        source.write("// More.\n")
    after = tools._stamp("collector"), tools._stamp("promtool")
    assert (after[0] == before[0], after[1] == before[1]) == (False, True)


def test_a_missing_program_names_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    monkeypatch.setattr(tools, "DIRECTORY", tmp_path / ".tools")
    with pytest.raises(ToolError, match="make tools"):
        tools.tool("kubectl")


def test_an_unknown_program_is_refused() -> None:
    with pytest.raises(ToolError, match="no such program: kubelets"):
        tools.build(["kubelets"])
