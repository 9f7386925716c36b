"""`hypha-worker init --unit`: the configuration and the systemd service of a worker."""

import configparser
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hypha_worker import service
from hypha_worker.config_file import load
from hypha_worker.runtimes.process import limits

SYSTEMD = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
USER = pwd.getpwuid(os.getuid()).pw_name


def init(directory: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    files = ("--config", directory / "etc" / "worker.toml", "--unit", directory / "hypha-worker.service")
    command = [sys.executable, "-m", "hypha_worker", "init", *map(str, files), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def settings(text: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text)
    return parser["Service"]


def test_init_writes_a_configuration_that_others_cannot_read_and_a_unit_that_runs_it(tmp_path: Path) -> None:
    result = init(tmp_path, "--user", USER)
    assert result.returncode == 0, result.stderr
    config = tmp_path / "etc" / "worker.toml"
    assert config.stat().st_mode & 0o777 == 0o640
    assert load(config, {}).config.work_dir == service.STATE_DIR
    unit = settings((tmp_path / "hypha-worker.service").read_text())
    assert unit["User"] == USER
    assert unit["ExecStart"].endswith(f'/hypha-worker" run --config "{config}"')
    assert f"/var/lib/{unit['StateDirectory']}" == str(service.STATE_DIR)


def test_init_says_how_to_install_a_key_that_only_the_user_of_the_service_can_read(tmp_path: Path) -> None:
    printed = init(tmp_path, "--user", USER, "--name", "gpu-1").stdout
    assert f"install --mode=0600 --owner={USER} gpu-1-key.pem {tmp_path}/etc\n" in printed
    assert "systemctl enable --now hypha-worker\n" in printed


def test_init_for_an_unknown_user_names_the_remedy_and_writes_nothing(tmp_path: Path) -> None:
    result = init(tmp_path, "--user", "nobody-of-this-name")
    assert result.returncode == 1
    assert result.stderr.startswith("error: there is no user nobody-of-this-name. Make one with `useradd --system ")
    assert list(tmp_path.iterdir()) == []


def test_init_overwrites_a_unit_only_with_force(tmp_path: Path) -> None:
    unit = tmp_path / "hypha-worker.service"
    unit.write_text("mine")
    assert (init(tmp_path, "--user", USER).returncode, unit.read_text()) == (2, "mine")
    assert init(tmp_path, "--user", USER, "--force").returncode == 0
    assert "[Service]" in unit.read_text()


def test_the_unit_lets_jobs_outlive_the_node_and_lets_the_node_limit_them() -> None:
    unit = settings(service.render_unit(Path("/etc/hypha/worker.toml"), "hypha", service.STATE_DIR))
    assert unit["KillMode"] == "process"
    assert set(unit["Delegate"].split()) == set(limits.CONTROLLERS)
    assert unit["DelegateSubgroup"] == limits._NODE_GROUP
    assert "ProtectControlGroups" not in unit
    assert "PrivateDevices" not in unit


def test_a_work_dir_elsewhere_is_writable() -> None:
    unit = settings(service.render_unit(Path("/w.toml"), "hypha", Path("/data/hypha")))
    assert unit["ReadWritePaths"] == '"/data/hypha"'
    assert "StateDirectory" not in unit


@SYSTEMD
@pytest.mark.parametrize("name", ["worker", 'a b %h $HOME "c" \\d'])
def test_systemd_accepts_the_unit(tmp_path: Path, name: str) -> None:
    file = tmp_path / "hypha-worker.service"
    file.write_text(service.render_unit(tmp_path / f"{name}.toml", "root", service.STATE_DIR))
    result = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, check=False)
    lines = [line for line in result.stderr.splitlines() if str(file) in line]
    assert result.returncode == 0, result.stderr
    assert [line for line in lines if "DelegateSubgroup" not in line] == [], "only systemd before 254 lacks that key"


@SYSTEMD
def test_systemd_rates_the_service_as_not_exposed(tmp_path: Path) -> None:
    file = tmp_path / "hypha-worker.service"
    file.write_text(service.render_unit(Path("/etc/hypha/worker.toml"), "daemon", service.STATE_DIR))
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", file]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout.splitlines()[-1]
