"""The demo as its user runs it: to its end, interrupted, and with a process that dies."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)


class Demo:
    """A running demo; tests wait for lines of its output."""

    def __init__(self, directory):
        self.output = directory / "demo-output"
        # Everything that it starts inherits the environment, or runs in its temporary directory.
        self._temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # short, for the sockets' names
        command = [sys.executable, "-m", "hypha_devnet", "demo", "--output", self.output]
        environment = {**os.environ, "TMPDIR": str(self._temporary)}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.text = ""

    def reads(self, pattern):
        """Read until a line matches the pattern; return the match, or None at the end."""
        for line in self.process.stdout:
            self.text += line
            if match := re.search(pattern, line):
                return match
        return None

    def ends(self):
        self.reads(r"\A\Z")
        return self.process.wait()

    def pid_of(self, *words):
        return next(pid for pid, command in _commands() if all(word in command for word in (str(self.output), *words)))

    def left(self):
        """Return the processes and files that it has left behind besides its output."""
        paths = (str(self.output), str(self._temporary))
        processes = [command for _, command in _commands() if any(path in command for path in paths)]
        return processes + [str(path) for path in self._temporary.iterdir()]

    def tidy(self):
        shutil.rmtree(self._temporary)


def _commands():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue


@pytest.fixture
def demo(tmp_path_factory):
    running = Demo(tmp_path_factory.mktemp("d"))
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        running.ends()
    running.tidy()


def test_the_demo_trains_as_well_as_a_single_process_and_lists_its_files(demo):
    assert demo.ends() == 0, demo.text
    accuracy = float(re.search(r"Trained over the network +([0-9.]+)%", demo.text)[1])
    alone = float(re.search(r"Trained in one process +([0-9.]+)%", demo.text)[1])
    assert accuracy > 95
    assert accuracy >= alone - 2
    assert "good: above 95%, within 2 points" in demo.text
    assert "round 20 of 20" in demo.text
    assert (demo.output / "loss.png").stat().st_size > 20_000
    first, second = demo.output.glob("models/trainer-*/*/model.safetensors")
    assert first.read_bytes() == second.read_bytes()
    assert {log.stem for log in (demo.output / "logs").iterdir()} >= {"gateway", "scheduler", "trainer-1", "hub"}
    assert demo.left() == []


@pytest.mark.parametrize("moment", ["== network", "is dispatched to", "round 2 of"])
def test_a_demo_interrupted_at_any_moment_leaves_no_process_or_file(demo, moment):
    assert demo.reads(moment), demo.text
    demo.process.send_signal(signal.SIGINT)
    assert demo.ends() == 130, demo.text
    assert "Interrupted; every process has ended." in demo.text
    assert demo.left() == []


def test_a_process_that_dies_is_named_with_its_last_lines(demo):
    victim = "trainer-2"
    assert demo.reads("is dispatched to trainer-1"), demo.text
    os.kill(demo.pid_of("hypha_worker run", f"{victim}.toml"), signal.SIGKILL)
    assert demo.ends() == 1
    assert f"{victim} ended with status -9. The end of its log, {demo.output}/logs/{victim}.log:" in demo.text
    assert "listening" in demo.text.partition("The end of its log")[2]
    assert demo.left() == []


def test_a_directory_with_other_files_is_left_unchanged(tmp_path):
    (tmp_path / "precious").write_text("mine")
    result = subprocess.run(
        [sys.executable, "-m", "hypha_devnet", "demo", "--output", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert "holds something other than an earlier demo" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
