"""Writes the pages of reference that programs know by themselves: `python -m documentation.reference`.

docs/cli.md holds the help of every command, docs/bridge-api.md the bridge's OpenAPI document, and docs/configuration.md
the commented configuration that `hypha-worker init` writes.
"""

from collections.abc import Callable, Mapping
from typing import Final

import typer
from typer.testing import CliRunner

from documentation import bridge_api
from documentation.pages import ROOT
from hypha_contracts.pages import replace_table, rewrite
from hypha_devnet.cli import app as devnet
from hypha_kubectl.cli import app as kubectl
from hypha_operator.cli import app as operator
from hypha_worker.cli import app as worker
from hypha_worker.template import render

APPS: Final[Mapping[str, typer.Typer]] = {
    "hypha-worker": worker,
    "kubectl hypha": kubectl,
    "hypha-devnet": devnet,
    "hypha-operator": operator,
}
_END: Final = "<!-- end -->"


def with_commands(page: str) -> str:
    """Return docs/cli.md with the help of every command."""
    return replace_table(page, "commands", "<!-- commands: `make reference` writes this -->\n", _END, _commands())


def with_calls(page: str) -> str:
    """Return docs/bridge-api.md with every call."""
    begin = "<!-- calls: `make reference` writes this -->\n"
    return replace_table(page, "calls", begin, _END, bridge_api.calls())


def with_configuration(page: str) -> str:
    """Return docs/configuration.md with the file that `hypha-worker init` writes."""
    begin = "<!-- configuration: `make reference` writes this file -->\n"
    return replace_table(
        page, "configuration", begin, _END, f"\n```toml\n{render('worker', {}, python='python').strip()}\n```\n\n"
    )


PAGES: Final[Mapping[str, Callable[[str], str]]] = {
    "docs/cli.md": with_commands,
    "docs/bridge-api.md": with_calls,
    "docs/configuration.md": with_configuration,
}
"""The generated pages, and what brings the text of each up to date."""


def help_text(name: str, *command: str) -> str:
    """Return the help of a program or of one of its commands."""
    environment = {"COLUMNS": "100", "HYPHA_LOG_LEVEL": None, "HYPHA_LOG_FORMAT": None}
    result = CliRunner().invoke(APPS[name], [*command, "--help"], prog_name=name, env=environment)
    if result.exit_code != 0:
        raise RuntimeError(f"{name} {' '.join(command)} --help: {result.output}")
    return "\n".join(line.rstrip() for line in result.output.strip().splitlines())


def commands(name: str) -> list[str]:
    """Return the commands of a program."""
    return [
        command.name or (command.callback.__name__ if command.callback else "")
        for command in APPS[name].registered_commands
    ]


def _commands() -> str:
    return "".join(_program(name) for name in APPS)


def _program(name: str) -> str:
    sections = [f"\n## {name}\n\n```text\n{help_text(name)}\n```\n"]
    sections += [f"\n### {name} {command}\n\n```text\n{help_text(name, command)}\n```\n" for command in commands(name)]
    return "".join(sections) + ("\n" if name == list(APPS)[-1] else "")


if __name__ == "__main__":
    for path, change in PAGES.items():
        rewrite([str(ROOT / path)], change)
