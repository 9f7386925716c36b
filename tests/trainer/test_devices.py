"""Devices are compared with the lease and the accelerate configuration before a model is loaded."""

import pytest

from hypha_executor.errors import JobError
from hypha_trainer.devices import (
    Demand,
    Devices,
    check_devices,
    check_installed,
    check_world,
    find_devices,
    judge_cuda_driver,
    read_demand,
)

NONE = Devices("PyTorch 2.15 for CUDA 13.2", (), "there is no NVIDIA driver (libcuda.so.1)")
TWO = Devices("PyTorch 2.15 for CUDA 13.2", ("H200", "H200"), "the driver offers no more")


def demand(gpus: int = 0, processes: int = 1, *, cpu: bool = False, allowed: bool = False) -> Demand:
    return Demand(gpus, processes, cpu, allowed)


@pytest.mark.parametrize(
    ("wanted", "devices", "says"),
    [
        (demand(gpus=1), NONE, "the lease has 1 GPU, but PyTorch 2.15 for CUDA 13.2 sees none: there is no NVIDIA"),
        (demand(gpus=4, processes=2), TWO, "the lease has 4 GPUs, but PyTorch 2.15 for CUDA 13.2 sees 2 (H200)"),
        (demand(processes=2), NONE, "accelerate starts 2 processes, one for each GPU, but PyTorch"),
        (demand(gpus=2, processes=2, allowed=True), NONE, "accelerate starts 2 processes, one for each GPU"),
        (demand(gpus=2, processes=3), TWO, "accelerate starts 3 processes, one for each GPU"),
    ],
)
def test_too_few_gpus_are_refused_with_the_reason(wanted: Demand, devices: Devices, says: str) -> None:
    with pytest.raises(JobError) as refused:
        check_devices(wanted, devices)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("wanted", "devices", "warning"),
    [
        (demand(), NONE, None),
        (demand(gpus=2, processes=2), TWO, None),
        (demand(processes=2, cpu=True), NONE, None),
        (demand(gpus=1, allowed=True), NONE, "the lease has 1 GPU, but PyTorch"),
        (demand(gpus=1, cpu=True), TWO, "1 GPU of the lease will be idle: use_cpu is true"),
        (demand(gpus=2), TWO, "1 GPU of the lease will be idle: accelerate starts 1 of 2 processes"),
    ],
)
def test_what_the_owner_allows_is_trained_and_idle_gpus_are_named(
    wanted: Demand, devices: Devices, warning: str | None
) -> None:
    said = check_devices(wanted, devices)
    assert (said or "").startswith(warning or "")
    assert bool(said) is bool(warning)


def test_inductor_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    check_installed("bf16", "EAGER")
    with pytest.raises(JobError, match="INDUCTOR, and this environment has no C compiler; install gcc"):
        check_installed("bf16", "INDUCTOR")


def test_the_demand_is_read_from_worker_and_launcher() -> None:
    environment = {"LEASE_GPUS": "2", "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "True"}
    assert read_demand(environment, fewer_gpus_allowed=True) == demand(2, 2, cpu=True, allowed=True)
    assert read_demand({}, fewer_gpus_allowed=False) == demand()
    with pytest.raises(JobError, match="LEASE_GPUS is 'two'"):
        read_demand({"LEASE_GPUS": "two"}, fewer_gpus_allowed=False)


def test_processes_that_accelerate_does_not_see_are_refused() -> None:
    check_world({"RANK": "1", "WORLD_SIZE": "2"}, 1, 2)
    check_world({}, 0, 1)
    with pytest.raises(JobError, match="number 1 of 2, but accelerate takes it for number 0 of 1; correct distributed"):
        check_world({"RANK": "1", "WORLD_SIZE": "2"}, 0, 1)


@pytest.mark.parametrize(
    ("newest", "built", "suits"), [(12040, "13.2", False), (13000, "13.2", True), (13040, "12.6", True)]
)
def test_a_driver_runs_programs_for_its_own_cuda_and_older(newest: int, built: str, suits: bool) -> None:
    assert (judge_cuda_driver(newest, built) is None) is suits


def test_a_machine_without_gpus_is_described_with_the_build_and_the_reason() -> None:
    devices = find_devices()
    if devices.names:
        pytest.skip("this machine has GPUs")
    assert devices.torch.startswith("PyTorch 2.")
    assert devices.reason
