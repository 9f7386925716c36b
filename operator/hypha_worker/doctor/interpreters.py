"""Checks of executors that are Python programs, and of GPUs: asks each interpreter for its modules and PyTorch."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from hypha_contracts.findings import Finding, failure, ok, skipped
from hypha_contracts.node_config import ExecutorConfig
from hypha_worker.doctor.worker import Worker, in_thread
from hypha_worker.runtimes.process import launch
from hypha_worker.runtimes.process.checks import gpus, machine
from hypha_worker.runtimes.process.checks.gpus import Gpu, find_gpus

ASK_S: Final = 60.0
"""Importing PyTorch takes seconds, and much longer from a cold disk."""
_PYTHON: Final = re.compile(r"python(\d(\.\d+)?)?")
_TRAINER: Final = "trainer"
"""The extra of this package without which `hypha_trainer` does not run."""
_QUESTION: Final = f"""
import importlib.metadata, importlib.util, json, re, sys
def missing(name):
    try:
        return importlib.util.find_spec(name) is None
    except ImportError:
        return True
def absent(distribution):
    return not any(importlib.metadata.distributions(name=distribution))
trains = any(name.split(".")[0] == "hypha_trainer" for name in sys.argv[2:])
needed = importlib.metadata.requires("hypha-worker") or [] if trains and not absent("hypha-worker") else []
needed = [re.match("[A-Za-z0-9._-]+", line)[0] for line in needed if re.search("extra == .{_TRAINER}.", line)]
answer = {{"missing": [name for name in sys.argv[2:] if missing(name)], "torch": None, "devices": 0}}
answer["absent"] = [name for name in needed if absent(name)]
if sys.argv[1] == "torch" and not missing("torch"):
    import torch
    answer["torch"] = torch.__version__
    answer["devices"] = torch.cuda.device_count()
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Interpreter:
    """What an executor's Python interpreter says.

    Attributes:
        missing: the modules of the executor's arguments that it cannot import.
        absent: the packages that the trainer needs and that are not installed.
        torch: the version of PyTorch, if that was asked for and is installed.
        devices: how many GPUs PyTorch can use.
        problem: why it gave no answer.
    """

    missing: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    torch: str | None = None
    devices: int = 0
    problem: str | None = None


def modules_of(executor: ExecutorConfig) -> list[str]:
    """Return the modules that an executor runs, if its program is a Python interpreter."""
    if executor.cmd is None or not _PYTHON.fullmatch(Path(executor.cmd).name):
        return []
    return [name for option, name in zip(executor.args, executor.args[1:], strict=False) if option == "-m"]


def question(executor: ExecutorConfig, worker: Worker) -> Interpreter | None:
    """Ask the interpreter of an executor in the environment of its jobs. None if its program is none."""
    names, cmd = modules_of(executor), str(executor.cmd)
    if not names:
        return None
    with tempfile.TemporaryDirectory() as directory:
        paths = launch.JobPaths(Path(directory), Path(directory))
        environment = launch.executor_environment(worker.environ, launch.variables(paths, "{}"), None, executor.env)
        program = shutil.which(cmd, path=environment.get("PATH", os.defpath)) or cmd
        with_torch = "torch" if worker.config.resources.gpu else "modules"
        try:
            asked = subprocess.run(
                [program, "-c", _QUESTION, with_torch, *names],
                cwd=directory,
                env=environment,
                capture_output=True,
                text=True,
                timeout=ASK_S,
                check=True,
            )
            answer = json.loads(asked.stdout.splitlines()[-1])
            missing, absent = tuple(answer["missing"]), tuple(answer["absent"])
            return Interpreter(missing, absent, answer["torch"], int(answer["devices"]))
        except subprocess.TimeoutExpired:
            return Interpreter(problem=f"no answer within {ASK_S:g} s")
        except subprocess.CalledProcessError as error:
            return Interpreter(problem=next(iter(error.stderr.splitlines()[-1:]), f"exit code {error.returncode}"))
        except (OSError, ValueError, LookupError, TypeError) as error:
            return Interpreter(problem=str(error))


async def ask_all(worker: Worker) -> list[tuple[ExecutorConfig, Interpreter]]:
    """Ask the interpreters of all executors, one after the other."""
    found = []
    for executor in worker.host_config.executors:
        answer = await in_thread(partial(question, executor, worker))
        if answer is not None:
            found.append((executor, answer))
    return found


async def modules(worker: Worker) -> Iterable[Finding]:
    """Return whether the modules that executors run, and what the trainer needs, can be found."""
    found = [judge_modules(executor, answer) for executor, answer in await worker.fact(ask_all)]
    return found or [skipped("no executor runs a module with a Python interpreter of this machine")]


def judge_modules(executor: ExecutorConfig, answer: Interpreter) -> Finding:
    """Return whether an interpreter finds the modules of its executor."""
    whose = f"executor {executor.descriptor}"
    if answer.problem:
        return failure(f"{whose}: {executor.cmd} does not work: {answer.problem}", "Repair that Python installation.")
    if answer.missing:
        return failure(
            f"{whose}: {executor.cmd} has no module {', '.join(answer.missing)}",
            "Install it there, or name the Python interpreter that has it in cmd.",
        )
    if answer.absent:
        return failure(
            f"{whose}: {executor.cmd} has hypha_trainer, but not {', '.join(answer.absent)}",
            f"Install hypha-worker[{_TRAINER}] there, name the interpreter that has it in cmd, or remove the executor.",
        )
    return ok(f"{whose}: {executor.cmd} has {', '.join(modules_of(executor))}")


async def find_all_gpus(worker: Worker) -> tuple[Gpu, ...]:
    """Return the GPUs of this host."""
    return await in_thread(lambda: find_gpus(worker.environ))


async def devices(worker: Worker) -> Iterable[Finding]:
    """Return whether PyTorch builds and Accelerate configurations suit the GPUs."""
    config = worker.host_config
    found = await worker.fact(find_all_gpus)
    findings = list(gpus.check(config.executors, config.resources.gpu, found))
    if config.resources.gpu:
        findings += [f for e, answer in await worker.fact(ask_all) for f in judge_torch(e, answer, len(found))]
    return findings or [skipped("no executor says which devices it uses")]


def judge_torch(executor: ExecutorConfig, answer: Interpreter, count: int) -> Iterator[Finding]:
    """Yield whether an executor's PyTorch can use the GPUs."""
    if answer.torch is None:
        return
    text = f"executor {executor.descriptor}: PyTorch {answer.torch} can use {answer.devices} of {count} GPUs"
    if answer.devices < max(count, 1):
        yield failure(
            text, "Install the build for this GPU and driver: `nvidia-smi` shows the newest CUDA that the driver runs."
        )
    else:
        yield ok(text)


async def resources(worker: Worker) -> Iterable[Finding]:
    """Return whether the machine has what the worker offers."""
    config = worker.host_config
    found = await worker.fact(find_all_gpus) if config.resources.gpu else ()
    measured = await in_thread(lambda: machine.measure(config.work_dir, found))
    return list(machine.judge_resources(config.capacity, measured))
