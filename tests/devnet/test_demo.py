"""The demo as its user runs it: to its end, interrupted, and with a process that dies."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest

from e2e.monitoring import running_collector
from e2e.traces import IN_A_PROCESS, OF_A_PARAMETER_SERVER, OF_A_TRAINER, OF_INFERENCE, trees_at
from support.waiting import until

pytestmark = pytest.mark.timeout(400)


class Demo:
    """A running demo; tests wait for lines of its output."""

    def __init__(self, directory, *options):
        self.output = directory / "demo-output"
        # Everything that it starts inherits the environment, or runs in its temporary directory.
        self._temporary = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # short, for the sockets' names
        command = [sys.executable, "-m", "hypha_devnet", "demo", "--output", self.output, *options]
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

    def pid_of(self, *words, without=None):
        wanted = (str(self.output), *words)
        return next(
            pid
            for pid, command in _commands()
            if all(word in command for word in wanted) and not (without and without in command)
        )

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
def demo(request, tmp_path_factory):
    running = Demo(tmp_path_factory.mktemp("d"), *getattr(request, "param", ()))
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        running.ends()
    running.tidy()


@pytest.fixture
def collector(monkeypatch, tmp_path):
    """A real collector, to which the nodes of a demo that is requested later export."""
    with running_collector(tmp_path) as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.http)
        yield running


def check_traces(collector):
    """One complete trace for each of the three jobs of the training, and for an inference job."""

    def jobs_with(span):
        return [job.paths for job in trees_at(collector) if "job" in job.spans and span in job.spans]

    until(lambda: len(jobs_with("outer step")) == 3 and jobs_with("predictions delivered"))
    jobs = jobs_with("outer step")
    assert len(jobs) == 3
    assert all(job >= IN_A_PROCESS for job in jobs)
    lacking = [sorted(expected - job) for job in jobs for expected in (OF_A_TRAINER, OF_A_PARAMETER_SERVER)]
    assert lacking.count([]) == 3, lacking
    lacking = [sorted((OF_INFERENCE | IN_A_PROCESS) - job) for job in jobs_with("predictions delivered")]
    assert lacking.count([]) == len(lacking), lacking


def test_the_demo_trains_as_well_as_a_single_process_and_lists_its_files(collector, demo):
    assert demo.ends() == 0, demo.text
    accuracy = float(re.search(r"Trained over the network +([0-9.]+)%", demo.text)[1])
    alone = float(re.search(r"Trained in one process +([0-9.]+)%", demo.text)[1])
    assert accuracy > 95
    assert accuracy >= alone - 2
    assert "good: above 95%, within 2 points" in demo.text
    assert "round 20 of 20" in demo.text
    inference = re.search(r"Inferred over the network +([0-9.]+)% .* the same as in one process", demo.text)
    assert float(inference[1]) == accuracy
    assert len(list((demo.output / "predictions").glob("*.safetensors"))) == 8
    assert (demo.output / "loss.png").stat().st_size > 20_000
    first, second = demo.output.glob("models/trainer-*/*/model.safetensors")
    assert first.read_bytes() == second.read_bytes()
    assert {log.stem for log in (demo.output / "logs").iterdir()} >= {"gateway", "scheduler", "trainer-1", "hub"}
    check_traces(collector)
    assert demo.left() == []


@pytest.mark.parametrize("demo", [("--model", "causal-lm", "--rounds", "8")], indirect=True)
def test_a_language_model_learns_over_the_network_and_writes(demo):
    assert demo.ends() == 1, demo.text  # eight rounds are not enough for a good model
    perplexities = {
        line[:20]: float(value) for line, value in re.findall(r"^(.+?) +perplexity ([0-9.]+)", demo.text, re.MULTILINE)
    }
    network, inferred, alone, frequencies = perplexities.values()
    assert inferred == network
    assert "the same as in one process" in demo.text
    assert max(alone, network) < 0.9 * frequencies
    assert "round 8 of 8" in demo.text
    assert re.search(r"^It writes +The .", demo.text, re.MULTILINE)
    first, second = demo.output.glob("models/trainer-*/*/model.safetensors")
    assert first.read_bytes() == second.read_bytes()
    assert demo.left() == []


def test_the_status_page_of_a_trainer_shows_its_job_with_its_loss(demo):
    page = demo.reads(r"the status page of trainer-1 is at (http://127\.0\.0\.1:\d+/)")
    assert page, demo.text
    assert demo.reads("round 3 of"), demo.text
    with urllib.request.urlopen(f"{page[1]}status.json", timeout=30) as answer:
        state = json.load(answer)
    (job,) = state["jobs"]
    assert (job["phase"], job["executor"]) == ("running", "train/diloco-transformer")
    assert job["round"] >= 2
    assert len(job["loss"]["y"]) > 2
    assert job["metrics"]["loss"] > 0
    assert state["earnings"]["per_s"] > 0
    demo.process.send_signal(signal.SIGINT)
    assert demo.ends() == 130, demo.text


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


@pytest.mark.alone
def test_a_trainer_that_is_killed_in_a_round_goes_on_and_both_end_with_the_same_model(demo):
    assert demo.reads("round 4 of"), demo.text
    crashed = demo.pid_of("-m hypha_trainer.training", "models/trainer-1", without="hypha_executor.restart")
    os.kill(crashed, signal.SIGKILL)
    assert demo.reads("round 8 of"), demo.text
    goes_on = demo.pid_of("-m hypha_trainer.training", "models/trainer-1", without="hypha_executor.restart")
    assert goes_on != crashed
    assert demo.ends() == 0, demo.text
    assert "round 20 of 20" in demo.text
    first, second = demo.output.glob("models/trainer-*/*/model.safetensors")
    assert first.read_bytes() == second.read_bytes()
    assert demo.left() == []
