"""What is built, and how it is told its version, follows from the module file."""

from pathlib import Path

import pytest

from e2e.cluster import tools
from e2e.cluster.tools import ToolError


def test_every_program_is_a_tool_of_the_module() -> None:
    module_file = (tools.MODULE / "go.mod").read_text()
    listed = module_file.partition("tool (\n")[2].partition(")")[0].split()
    assert sorted(listed) == sorted(tools.PACKAGES.values())


def test_a_program_says_the_version_of_its_module() -> None:
    module_file = "require (\n\tk8s.io/kubernetes v1.37.2 // indirect\n\thelm.sh/helm/v3 v3.22.0\n)"
    assert "version.gitVersion=v1.37.2" in tools._flags("kubelet", module_file)
    assert "helm/v3/internal/version.version=v3.22.0" in tools._flags("helm3", module_file)
    assert "chartutil.k8sVersionMinor=37" in tools._flags("helm3", module_file)


def test_a_missing_program_names_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    monkeypatch.setattr(tools, "DIRECTORY", tmp_path / ".tools")
    with pytest.raises(ToolError, match="make tools"):
        tools.tool("kubectl")


def test_an_unknown_program_is_refused() -> None:
    with pytest.raises(ToolError, match="no such program: kubelets"):
        tools.build(["kubelets"])
