"""Checks what the configuration says about executors: programs, placeholders and files."""

import difflib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Final

from hypha_contracts.findings import Finding, failure, ok, warning
from hypha_contracts.node_config import ExecutorConfig
from hypha_worker.runtimes.process.launch import PLACEHOLDERS

_BRACED: Final = re.compile(r"\{([A-Za-z][A-Za-z0-9_]*)\}")
_SIMILAR: Final = 0.75
_CONFIG_FILE: Final = ("--config_file", "--config-file")
_PARAMETER_SERVER: Final = ("hypha_parameter_server", "numpy", "ml_dtypes")
_BRIDGE: Final = ("hypha_bridge", "fastapi", "uvicorn", "huggingface_hub")


def check(executors: list[ExecutorConfig], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield everything that can be known about executors without running them."""
    yield from check_programs(executors, environ)
    yield from check_placeholders(executors)
    yield from check_options_of_uv(executors)
    yield from check_files(executors)


def check_programs(executors: list[ExecutorConfig], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether the program of each executor, and the packages of the built-in programs, can be found."""
    yield judge_packages("the job bridge", "bridge", _missing(_BRIDGE))
    for executor in executors:
        if executor.cmd is None:
            missing = _missing(_PARAMETER_SERVER)
            yield judge_packages(f"executor {executor.descriptor}", "parameter-server", missing)
        else:
            path = ({**environ, **executor.env}).get("PATH", os.defpath)
            yield judge_program(executor, path, shutil.which(executor.cmd, path=path))


def judge_packages(program: str, extra: str, missing: list[str]) -> Finding:
    """Return whether the packages of a built-in program are installed."""
    if missing:
        return failure(
            f"{program} needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}",
            f"Run `pip install 'hypha-worker[{extra}]'`.",
        )
    return ok(f"{program} is installed")


def judge_program(executor: ExecutorConfig, path: str, found: str | None) -> Finding:
    """Return whether an executor's program can be started. `found` is where it is; `path` is its PATH."""
    whose, program = f"executor {executor.descriptor}", Path(str(executor.cmd))
    if found:
        return ok(f"{whose}: {program} is {found}" if found != str(program) else f"{whose}: {found}")
    if program.is_absolute():
        reason = "is not executable" if os.access(program, os.F_OK) else "does not exist, or this user may not see it"
        return failure(f"{whose}: {program} {reason}", "Correct cmd, or make the file executable.")
    install = "Install uv, restart the shell or the service" if str(program) == "uv" else "Install it"
    return failure(
        f"{whose}: {program} is not in PATH ({path})", f"{install}, or write its absolute path into the executor's cmd."
    )


def check_placeholders(executors: list[ExecutorConfig]) -> Iterator[Finding]:
    """Yield what is wrong with the placeholders in the arguments of each executor, or that they are right."""
    for executor in executors:
        found = list(judge_placeholders(executor))
        yield from found or [ok(f"executor {executor.descriptor}: all placeholders are known")]


def judge_placeholders(executor: ExecutorConfig) -> Iterator[Finding]:
    """Yield the placeholders that the node does not replace, and those that it should not."""
    whose = f"executor {executor.descriptor}"
    for name in dict.fromkeys(name for arg in executor.args for name in _BRACED.findall(arg)):
        if name in PLACEHOLDERS:
            continue
        if close := difflib.get_close_matches(name.upper(), PLACEHOLDERS, n=1, cutoff=_SIMILAR):
            yield failure(f"{whose}: {{{name}}} is not a placeholder", f"Write {{{close[0]}}} in its args.")
        elif name.isupper():
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            yield warning(f"{whose}: {{{name}}} is passed on as it is", f"The placeholders are {known}.")
    if any("{JOB_JSON}" in arg for arg in executor.args):
        yield warning(f"{whose}: tokens in {{JOB_JSON}} show in the list of processes", "Use {JOB_FILE} in its args.")


def check_options_of_uv(executors: list[ExecutorConfig]) -> Iterator[Finding]:
    """Yield which options of `uv run` have no effect."""
    for executor in executors:
        own = executor.args[: executor.args.index("--")] if "--" in executor.args else executor.args
        of_uv = executor.cmd is not None and Path(executor.cmd).name == "uv"
        extras = [name for option, name in pairwise(own) if option == "--extra"]
        extras += [option.partition("=")[2] for option in own if option.startswith("--extra=")]
        if of_uv and "--no-project" in own and extras:
            yield warning(
                f"executor {executor.descriptor}: `--extra {extras[0]}` has no effect beside `--no-project`, because "
                "it names an extra of the project",
                "Remove it. An extra of the wheel belongs into its requirement: --with 'NAME[EXTRA] @ ADDRESS'. A "
                "build of PyTorch for other hardware comes from its own index: --index ADDRESS.",
            )


def check_files(executors: list[ExecutorConfig]) -> Iterator[Finding]:
    """Yield whether the Accelerate configuration file of each executor that names one can be read."""
    for executor in executors:
        for path in accelerate_files(executor):
            yield judge_file(executor, path, _why_unreadable(path))


def accelerate_files(executor: ExecutorConfig) -> list[Path]:
    """Return the Accelerate configuration files that an executor's arguments name."""
    args = executor.args
    named = [args[i + 1] for i, arg in enumerate(args[:-1]) if arg in _CONFIG_FILE]
    named += [arg.partition("=")[2] for arg in args if arg.startswith(tuple(f"{name}=" for name in _CONFIG_FILE))]
    return [Path(name) for name in named if "{" not in name]


def judge_file(executor: ExecutorConfig, path: Path, problem: str | None) -> Finding:
    """Return whether an executor can read its Accelerate configuration."""
    where = f"executor {executor.descriptor}: --config_file {path}"
    if not path.is_absolute():
        return failure(
            f"{where} is relative, and every job starts in a directory of its own", "Write its absolute path."
        )
    if problem:
        return failure(f"{where}: {problem}", "Correct the path, or write the file with `accelerate config`.")
    return ok(f"{where} can be read")


def _why_unreadable(path: Path) -> str | None:
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return error.strerror


def _missing(packages: tuple[str, ...]) -> list[str]:
    return [name for name in packages if find_spec(name) is None]
