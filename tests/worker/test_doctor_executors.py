"""Each fault of an executor is caused for real, and its check finds it and names the remedy."""

import sys
from pathlib import Path
from typing import Any

import pytest

from hypha_worker.runtimes.process.checks import gpus
from hypha_worker.runtimes.process.checks.gpus import Gpu
from support.certs import Pki
from support.examined import examine, http_server, problem, write_config

pytestmark = pytest.mark.anyio

NVIDIA_SMI = """#!/bin/sh
echo "NVIDIA RTX A6000, 49140, {driver}"
echo "NVIDIA RTX A6000, 49140, {driver}"
"""
WHEEL = "hypha_accelerate_executor-0.1.0-py3-none-any.whl"


async def test_a_program_that_is_not_in_path_is_a_failure(directory: Path, pki: Pki) -> None:
    found = await problem(write_config(directory, pki, executor={"cmd": "no-such-trainer"}), "executors.programs")
    assert (found.mark, "no-such-trainer is not in PATH" in found.message) == ("failure", True)
    assert found.remedy == "Install it, or write its absolute path into the executor's cmd."
    found = await problem(
        write_config(directory, pki, executor={"cmd": "uv", "env": {"PATH": str(directory)}}), "executors.programs"
    )
    assert "Install uv, restart the shell" in found.remedy


async def test_a_program_without_the_right_to_execute_is_a_failure(directory: Path, pki: Pki) -> None:
    (directory / "trainer").write_text("#!/bin/sh\n")
    path = write_config(directory, pki, executor={"cmd": "./trainer"})
    assert "is not executable" in (await problem(path, "executors.programs")).message
    (directory / "trainer").unlink()
    assert "does not exist" in (await problem(path, "executors.programs")).message


@pytest.mark.parametrize("typo", ["{SOKET_PATH}", "{socket_path}", "{SOCKET_PTAH}", "{SOCKETPATH}"])
async def test_a_misspelt_placeholder_is_a_failure(directory: Path, pki: Pki, typo: str) -> None:
    found = await problem(write_config(directory, pki, executor={"args": ["--socket", typo]}), "executors.placeholders")
    assert (found.mark, found.remedy) == ("failure", "Write {SOCKET_PATH} in its args.")
    assert typo in found.message


@pytest.mark.parametrize("extra", [["--extra", "cu128"], ["--extra=cu128"]])
async def test_an_extra_beside_no_project_is_explained(directory: Path, pki: Pki, extra: list[str]) -> None:
    uv = directory / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o700)
    args = ["run", "--no-project", "--with", "trainer.whl", *extra, "--", "train", "{JOB_FILE}"]
    found = await problem(
        write_config(directory, pki, executor={"cmd": str(uv), "args": args}), "executors.placeholders"
    )
    assert found.mark == "warning"
    assert "`--extra cu128` has no effect beside `--no-project`" in found.message
    assert "--with 'NAME[EXTRA] @ ADDRESS'" in found.remedy


@pytest.mark.parametrize(
    "args", [["run", "--extra", "cu128", "--", "train"], ["run", "--no-project", "--", "train", "--extra", "cu128"]]
)
async def test_an_extra_of_a_project_or_of_the_program_itself_is_no_problem(
    directory: Path, pki: Pki, args: list[str]
) -> None:
    uv = directory / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o700)
    path = write_config(directory, pki, executor={"cmd": str(uv), "args": args})
    assert [finding.mark for finding in await examine(path, "executors.placeholders")] == ["ok"]


async def test_braces_that_are_no_placeholder_are_left_alone(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki, executor={"args": ["-c", "print(f'{x} {1}')", '{"a": {}}', "{WORK_DIR}"]})
    assert [finding.mark for finding in await examine(path, "executors.placeholders")] == ["ok"]


@pytest.mark.parametrize(("arg", "remedy"), [("{GPU_COUNT}", "The placeholders are"), ("{JOB_JSON}", "Use {JOB_FILE}")])
async def test_an_unknown_and_an_unsafe_placeholder_are_warnings(
    directory: Path, pki: Pki, arg: str, remedy: str
) -> None:
    found = await problem(write_config(directory, pki, executor={"args": [arg]}), "executors.placeholders")
    assert (found.mark, found.remedy.startswith(remedy)) == ("warning", True)


@pytest.mark.parametrize(
    ("name", "words"), [("/nowhere/accelerate.yaml", "No such file"), ("accelerate.yaml", "is relative")]
)
async def test_an_accelerate_configuration_that_a_job_cannot_read_is_a_failure(
    directory: Path, pki: Pki, name: str, words: str
) -> None:
    for args in (["--config_file", name], [f"--config_file={name}"]):
        found = await problem(write_config(directory, pki, executor={"args": args}), "executors.files")
        assert (found.mark, words in found.message) == ("failure", True)


async def test_a_module_that_the_interpreter_lacks_is_a_failure(directory: Path, pki: Pki) -> None:
    path = write_config(directory, pki, executor={"args": ["-m", "json", "-m", "no_such.trainer"]})
    found = await problem(path, "executors.modules")
    assert (found.mark, "has no module no_such.trainer" in found.message) == ("failure", True)
    path = write_config(directory, pki, executor={"args": ["-m", "json.tool"]})
    assert [finding.mark for finding in await examine(path, "executors.modules")] == ["ok"]


async def test_a_trainer_without_pytorch_is_a_failure(directory: Path, pki: Pki) -> None:
    installed = directory / "installed"
    (installed / "hypha_trainer").mkdir(parents=True)
    (installed / "hypha_trainer" / "__init__.py").touch()
    (installed / "hypha_worker-1.dist-info").mkdir()
    requires = 'Requires-Dist: torch>=2.9; extra == "trainer"\nRequires-Dist: trio; extra == "worker"\n'
    (installed / "hypha_worker-1.dist-info" / "METADATA").write_text(f"Name: hypha-worker\nVersion: 1\n{requires}")
    program = directory / "python3"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={installed} exec {sys.executable} -S "$@"\n')
    program.chmod(0o755)
    executor = {"cmd": "./python3", "args": ["-m", "hypha_trainer"]}
    found = await problem(write_config(directory, pki, executor=executor), "executors.modules")
    assert (found.mark, "has hypha_trainer, but not torch" in found.message) == ("failure", True)
    assert "hypha-worker[trainer]" in found.remedy


async def test_an_interpreter_that_does_not_work_is_a_failure(directory: Path, pki: Pki) -> None:
    (directory / "python3").write_text("#!/bin/sh\necho 'broken: no stdlib' >&2; exit 3\n")
    (directory / "python3").chmod(0o755)
    found = await problem(
        write_config(directory, pki, executor={"cmd": "./python3", "args": ["-m", "x"]}), "executors.modules"
    )
    assert "does not work: broken: no stdlib" in found.message


async def test_a_wheel_that_does_not_exist_is_a_failure(directory: Path, pki: Pki) -> None:
    for status, marks in ((404, ["failure"]), (200, ["ok"]), (503, ["warning"])):
        with http_server(status) as url:
            path = write_config(directory, pki, executor={"cmd": "sh", "args": ["--with", f"{url}/v9/{WHEEL}"]})
            findings = await examine(path, "executors.wheels")
        assert [finding.mark for finding in findings] == marks
        assert status != 404 or findings[0].remedy == "Correct the address; it must name an actual release."


def with_gpus(directory: Path, driver: str = "550.54.15") -> dict[str, str]:
    """The environment of a host with two GPUs, for the program that lists them."""
    (directory / "nvidia-smi").write_text(NVIDIA_SMI.format(driver=driver))
    (directory / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{directory}:/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("args", "driver", "words"),
    [
        (["--extra", "cpu"], "550.54.15", "uses no GPU"),
        (["--extra", "rocm64"], "550.54.15", "is for GPUs of AMD, and this host has NVIDIA RTX A6000"),
        (["--extra", "cu128"], "470.82.01", "needs NVIDIA's driver 525 or newer, and this host has 470.82.01"),
        (["--with", f"https://example.org/{WHEEL}"], "470.82.01", "the PyTorch build mps_cu128 needs"),
    ],
)
async def test_a_torch_build_that_does_not_suit_the_gpus_is_a_failure(
    directory: Path, pki: Pki, args: list[str], driver: str, words: str
) -> None:
    path = write_config(directory, pki, executor={"cmd": "sh", "args": args}, resources={"gpu": 48})
    found = await problem(path, "executors.devices", with_gpus(directory, driver))
    assert (found.mark, words in found.message) == ("failure", True), found


@pytest.mark.parametrize(
    ("settings", "mark"), [("num_processes: 4", "failure"), ("use_cpu: true", "warning"), ("num_processes: 2", "ok")]
)
async def test_an_accelerate_configuration_for_other_devices_is_found(
    directory: Path, pki: Pki, settings: str, mark: str
) -> None:
    (directory / "accelerate.yaml").write_text(f"# mine\ncompute_environment: LOCAL_MACHINE\n{settings}\n")
    executor = {"cmd": "sh", "args": ["--config_file", str(directory / "accelerate.yaml")]}
    path = write_config(directory, pki, executor=executor, resources={"gpu": 96})
    findings = await examine(path, "executors.devices", with_gpus(directory))
    assert [finding.mark for finding in findings] == [mark]


async def test_a_torch_that_cannot_use_the_offered_gpu_is_a_failure(directory: Path, pki: Pki) -> None:
    (directory / "torch.py").write_text(
        "__version__ = '2.9.0+cpu'\nclass cuda:\n    device_count = staticmethod(lambda: 0)\n"
    )
    executor: dict[str, Any] = {"cmd": sys.executable, "args": ["-m", "json"], "env": {"PYTHONPATH": str(directory)}}
    path = write_config(directory, pki, executor=executor, resources={"gpu": 48})
    found = await problem(path, "executors.devices", with_gpus(directory))
    assert "PyTorch 2.9.0+cpu can use 0 of 2 GPUs" in found.message
    assert "nvidia-smi" in found.remedy


async def test_the_memory_of_all_gpus_together_is_compared(directory: Path, pki: Pki) -> None:
    environ = with_gpus(directory)
    found = await problem(write_config(directory, pki, resources={"gpu": 104}), "machine.resources", environ)
    assert "the worker offers 104 GB of GPU memory, and this machine has 103" in found.message
    findings = await examine(write_config(directory, pki, resources={"gpu": 103}), "machine.resources", environ)
    assert [finding.mark for finding in findings] == ["ok"]


def test_amds_driver_names_its_gpus_in_sysfs(tmp_path: Path) -> None:
    device = tmp_path / "class/drm/card0/device"
    device.mkdir(parents=True)
    (device / "mem_info_vram_total").write_text(f"{64 * 10**9}\n")
    assert gpus.find_gpus({"PATH": str(tmp_path)}, tmp_path) == (Gpu("AMD", "card0", 64.0),)
