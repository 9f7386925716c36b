"""The build of the images: the settings of the environment and of pip, and PyTorch without CUDA."""

import ctypes
import shutil
from pathlib import Path

import pytest
import yaml

from images.build import main, settings_of
from images.contexts import ROOT
from images.cpu_torch import STAND_INS, filtered, without_cuda
from images.pip_settings import certificates, pip_conf
from images.tool import BuildError, find_tool


def test_images_have_the_names_that_the_chart_uses() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "hypha-worker" / "Chart.yaml").read_text())
    values = yaml.safe_load((ROOT / "charts" / "hypha-worker" / "values.yaml").read_text())
    assert settings_of({}).reference("worker") == f"{values['images']['registry']}/worker:{chart['appVersion']}"


def test_registry_and_tag_make_up_the_name_of_an_image() -> None:
    settings = settings_of({"REGISTRY": "registry.example.org/team", "TAG": "1.2"})
    assert settings.reference("worker") == "registry.example.org/team/worker:1.2"


def test_an_empty_variable_counts_as_absent() -> None:
    assert settings_of({"TAG": "", "BASE": "", "SOURCE_DATE_EPOCH": ""}) == settings_of({})


@pytest.mark.parametrize("variables", [{"TORCH": "rocm"}, {"SOURCE_DATE_EPOCH": "today"}])
def test_an_unusable_setting_is_refused_by_name(variables: dict[str, str]) -> None:
    with pytest.raises(BuildError, match="=".join(*variables.items())):
        settings_of(variables)


def test_an_unknown_image_is_refused_with_a_list_of_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["gateway"])
    assert "no image gateway: choose from operator, worker" in capsys.readouterr().err


def test_a_missing_tool_is_named_with_a_remedy() -> None:
    with pytest.raises(BuildError, match=r"no-such-tool: not found or not working. Install"):
        find_tool("no-such-tool")


def test_a_build_gets_pips_index_but_no_paths_of_this_machine() -> None:
    listing = [
        "global.index-url='https://index.example.org/simple'",
        "global.find-links='/opt/wheels'",
        "global.cert='/somewhere/ca.crt'",
        "install.extra-index-url='https://a.example.org\\nhttps://b.example.org'",
        ":env:.index-url='https://other.example.org/simple'",
    ]
    assert pip_conf(listing, certificates=True).splitlines() == [
        "[global]",
        "index-url = https://other.example.org/simple",
        "extra-index-url = https://a.example.org",
        "  https://b.example.org",
        "cert = /run/ca.crt",
    ]


def test_a_machine_without_certificate_authorities_of_its_own_passes_none(tmp_path: Path) -> None:
    assert certificates({}) is None
    assert certificates({"PIP_CERT": str(tmp_path / "missing")}) is None
    (tmp_path / "ca.crt").touch()
    assert certificates({"SSL_CERT_FILE": str(tmp_path / "ca.crt")}) == tmp_path / "ca.crt"


def test_without_cuda_the_large_libraries_are_removed_and_nothing_else() -> None:
    text = (ROOT / "requirements" / "trainer.txt").read_text()
    names = {line.split("==")[0] for line in text.splitlines() if "==" in line and line[0] not in " #"}
    kept = {line.split("==")[0] for line in filtered(text).splitlines() if "==" in line and line[0] not in " #"}
    assert {name for name in kept if name.startswith("nvidia")} == {
        "nvidia-cuda-cupti",
        "nvidia-cuda-runtime",
        "nvidia-cufile",
    }
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "triton"} <= names - kept
    assert {"torch", "transformers", "accelerate"} <= kept
    assert filtered(text).count("--hash") < text.count("--hash")


@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("nm")), reason="needs a C compiler")
def test_stand_ins_of_the_cuda_libraries_load_and_report_that_there_is_no_gpu(tmp_path: Path) -> None:
    shutil.copy(ROOT / "requirements" / "trainer.txt", tmp_path / "requirements.txt")
    without_cuda(tmp_path)
    directory = tmp_path / "overlay" / "torch" / "lib"
    assert {file.name for file in directory.iterdir()} == set(STAND_INS)
    no_device = 100
    assert ctypes.CDLL(str(directory / "libcublas.so.13")).cublasCreate_v2() == no_device
    assert ctypes.CDLL(str(directory / "libnccl.so.2")).ncclGetUniqueId() == no_device
