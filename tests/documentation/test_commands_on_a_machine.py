"""The commands of the pages for one machine, run as they are written, beside a gateway of their own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from documentation.commands import Block, as_written
from documentation.pages import ROOT
from hypha_devnet.ports import free_port
from support.user_machine import ENVIRONMENT, INIT, Machine

HERE = "tests/documentation/test_commands_on_a_machine.py"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with TemporaryDirectory() as directory, ExitStack() as stack:  # pytest's is too long for a path of a Unix socket
        yield Machine(Path(directory), stack)


@pytest.mark.parametrize(
    "block",
    {  # pages may have the same block
        block.text: block
        for block in as_written(f"{HERE}::test_a_node_is_set_up_examined_and_run_by_the_commands_of_a_page")
    }.values(),
    ids=lambda block: block.place,
)
def test_a_node_is_set_up_examined_and_run_by_the_commands_of_a_page(block: Block, machine: Machine) -> None:
    commands = block.commands()
    for command in commands if INIT in commands else [INIT, *commands]:
        machine.enter(command)


def test_an_executor_is_tried_by_the_commands_of_the_page() -> None:
    (block,) = as_written(f"{HERE}::test_an_executor_is_tried_by_the_commands_of_the_page")
    with TemporaryDirectory() as directory:
        port = free_port()
        shutil.copytree(ROOT / "examples", Path(directory, "examples"))
        for path in Path(directory, "examples", "network").glob("*.toml"):
            path.write_text(path.read_text().replace("/tcp/4444", f"/tcp/{port}"))
        line = ("bash", "-euo", "pipefail", "-c", f"{block.text}\nwait || true")
        with subprocess.Popen(
            line, cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as entered:
            try:
                output, _ = entered.communicate(timeout=110)
            finally:
                with suppress(ProcessLookupError):  # the nodes outlive a command that fails
                    os.killpg(entered.pid, signal.SIGKILL)
        assert entered.returncode == 0, output
        assert "\n0.safetensors\n1.safetensors\n2.safetensors\n3.safetensors\n" in output
        assert '"slices": 4, "samples": 12' in output
