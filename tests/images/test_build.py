"""The build of the images: the settings of the environment and of pip, and PyTorch without CUDA."""

import ctypes
import re
import shutil
from pathlib import Path

import pytest
import yaml

from images.build import main, settings_of
from images.contexts import ROOT
from images.cpu_torch import STAND_INS, filtered, without_cuda
from images.pip_settings import certificates, pip_conf
from images.tool import BuildError, find_tool
from images.torch_variants import FROM_AN_INDEX

INDEX = "https://torch.example.org/whl"


def test_images_have_the_names_that_the_chart_uses() -> None:
    chart = yaml.safe_load((ROOT / "charts" / "hypha-worker" / "Chart.yaml").read_text())
    values = yaml.safe_load((ROOT / "charts" / "hypha-worker" / "values.yaml").read_text())
    assert settings_of({}).reference("worker") == f"{values['images']['registry']}/worker:{chart['appVersion']}"


def test_registry_and_tag_make_up_the_name_of_an_image() -> None:
    settings = settings_of({"REGISTRY": "registry.example.org/team", "TAG": "1.2"})
    assert settings.reference("worker") == "registry.example.org/team/worker:1.2"


def test_an_empty_variable_counts_as_absent() -> None:
    assert settings_of({"TAG": "", "BASE": "", "SOURCE_DATE_EPOCH": ""}) == settings_of({})


@pytest.mark.parametrize("variables", [{"TORCH": "rocm"}, {"TORCH": "cu126"}, {"SOURCE_DATE_EPOCH": "today"}])
def test_an_unusable_setting_is_refused_by_name(variables: dict[str, str]) -> None:
    with pytest.raises(BuildError, match="=".join(*variables.items())):
        settings_of(variables)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"TORCH": "cu126"}, "TORCH=cu126 needs TORCH_INDEX"),
        ({"TORCH_INDEX": INDEX}, "no use with TORCH=cuda"),
        ({"TORCH": "cu126", "TORCH_INDEX": "https://user:word@torch.example.org"}, "without credentials"),
    ],
)
def test_a_build_of_pytorch_needs_its_own_index_and_no_credentials(variables: dict[str, str], says: str) -> None:
    with pytest.raises(BuildError, match=says):
        settings_of(variables)


def built(image: str, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Build an image with a tool that only records its arguments, and return those of the build."""
    recorder = tmp_path / "bin" / "podman"
    recorder.parent.mkdir()
    recorder.write_text(
        f"#!{shutil.which('sh')}\n[ $1 = build ] && printf '%s\\n' \"$@\" > {tmp_path}/command\nexit 0\n"
    )
    recorder.chmod(0o755)
    monkeypatch.setattr("images.build.OUTPUT", tmp_path / "output")
    monkeypatch.setattr("images.build.write_image_bill", lambda _: None)
    for name, value in {**variables, "CONTAINER_TOOL": "podman"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(recorder.parent), prepend=":")
    assert main([image]) == 0
    return (tmp_path / "command").read_text().splitlines()


@pytest.mark.parametrize("variant", FROM_AN_INDEX)
def test_a_trainer_with_another_build_of_pytorch_takes_it_from_the_index_that_the_caller_names(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = built("trainer", {"TORCH": variant, "TORCH_INDEX": INDEX}, tmp_path, monkeypatch)
    assert f"--build-arg=TORCH_INDEX={INDEX}" in command
    assert f"--label=space.hypha.torch={variant}" in command
    context = Path(command[-1])
    from_index = (context / "torch.txt").read_text()
    assert re.findall(r"^[a-z]+", from_index, re.MULTILINE) == ["torch", "torchvision"]
    hashed = (context / "requirements.txt").read_text()
    assert not re.search(r"^(torch|torchvision|triton|nvidia-.*|cuda-.*)==", hashed, re.MULTILINE)
    assert re.search("^transformers==", hashed, re.MULTILINE)
    steps = (context / "Containerfile").read_text()
    assert '--index-url "${TORCH_INDEX}" --requirement /opt/hypha/torch.txt' in steps


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_images_are_built_for_the_wanted_platform(
    platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = built("bridge", {"PLATFORM": platform}, tmp_path, monkeypatch)
    assert command[command.index("--platform") + 1] == platform


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"PLATFORM": "windows/amd64"}, "PLATFORM=windows/amd64: must be one of linux/amd64, linux/arm64"),
        ({"PLATFORM": "linux/arm64", "TORCH": "cpu"}, "build on a machine of that platform, or without TORCH=cpu"),
    ],
)
def test_a_platform_that_cannot_be_built_is_refused_with_the_remedy(
    variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("images.build.machine", lambda: "x86_64")
    with pytest.raises(BuildError, match=says):
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
