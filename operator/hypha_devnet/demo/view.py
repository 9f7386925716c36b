"""The demo's output: a live board on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Sequence
from typing import Final, Literal, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hypha_devnet.demo.board import PHASES, Board, Worker
from hypha_devnet.demo.settings import SHOWN, WORKERS

_BARS: Final = " ▁▂▃▄▅▆▇█"
_SPARKS: Final = 12
_NUMBERS: Final = ("offer", "lease", "renewed", "batches", "loss")


class View(Protocol):
    """Shows a board."""

    def screen(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the view uses the terminal. The last state stays on the screen."""

    def show(self, board: Board) -> None:
        """Show the current state of the board."""


class LiveView:
    """Redraws the board in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def screen(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which the view redraws the terminal."""
        return self._live

    def show(self, board: Board) -> None:
        """Draw the board."""
        self._live.update(draw(board, time.time()), refresh=True)


class PlainView:
    """Prints each new line of the board."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._shown = 0

    def screen(self) -> contextlib.AbstractContextManager[object]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def show(self, board: Board) -> None:
        """Print the phase and the lines that are new."""
        if board.phase != self._phase:
            self._phase = board.phase
            self._print(board, f"== {board.phase}")
        for text in list(board.recent)[len(board.recent) - min(board.line_count - self._shown, len(board.recent)) :]:
            self._print(board, text)
        self._shown = board.line_count

    def _print(self, board: Board, text: str) -> None:
        self._console.print(
            f"{time.time() - board.began:6.1f} s  {text}", markup=False, highlight=False, soft_wrap=True
        )


def draw(board: Board, now: float) -> Panel:
    """Render the board."""
    sections: tuple[RenderableType, ...] = (
        *(_phases(board), _progress(board), _workers(board, now)),
        *(*_page(board), _alone(board)),
    )
    parts = [part for section in sections for part in (section, Text())]
    recent = Text("\n".join(board.recent), style="dim", overflow="ellipsis", no_wrap=True)
    title = f"[bold]A Hypha network on this machine[/] · {now - board.began:.0f} s"
    return Panel(Group(*parts, recent), title=title, title_align="left", border_style="cyan", padding=(1, 2))


def _phases(board: Board) -> Text:
    text = Text()
    current = PHASES.index(board.phase)
    for number, phase in enumerate(PHASES):
        mark, style = ("✓", "green") if number < current else ("▶", "bold cyan") if number == current else ("○", "dim")
        text.append(f"{mark} {phase}   ", style=style)
    return text


def _progress(board: Board) -> Table:
    table = Table.grid(padding=(0, 2))
    model = board.model
    done = len(board.rounds) + min(1.0, board.samples / model.samples_per_round)
    table.add_row(
        f"round [bold]{min(len(board.rounds) + 1, model.rounds)}[/] of {model.rounds}",
        ProgressBar(total=model.rounds, completed=done, width=44),
        f"{board.samples} of {model.samples_per_round} samples" if len(board.rounds) < model.rounds else "all done",
        f"last round {board.rounds[-1]:.1f} s" if board.rounds else "",
    )
    return table


def _workers(board: Board, now: float) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for heading in ("worker", "state", "offer", "lease", "renewed", "batches", "loss", ""):
        justify: Literal["left", "right"] = "right" if heading in _NUMBERS else "left"
        table.add_column(heading, justify=justify, no_wrap=True)
    for name in WORKERS:
        worker = board.workers[name]
        losses = [loss for _, loss in worker.losses]
        table.add_row(
            name,
            worker.state,
            f"{worker.offer:g}" if worker.offer is not None else "",
            _lease(worker, now),
            f"{worker.renewals}x" if worker.lease_until is not None else "",
            str(worker.batches or ""),
            f"{losses[-1]:.4f}" if losses else "",
            Text(sparks(losses), style="cyan"),
        )
    return table


def _lease(worker: Worker, now: float) -> str:
    if worker.lease_until is None:
        return ""
    left_s = worker.lease_until - now
    return f"{left_s:.1f} s" if left_s > 0 else "over"


def _page(board: Board) -> list[Text]:
    return [Text.assemble((f"status page of {SHOWN}:  ", "dim"), (board.page, "bold"))] if board.page else []


def _alone(board: Board) -> Text:
    text = Text("for comparison, one process:  ", style="dim")
    if board.alone_score is not None:
        return text.append(f"done, {board.model.score.text(board.alone_score)}")
    samples, loss = board.alone[-1] if board.alone else (0, float("nan"))
    return text.append(f"{samples / board.model.total_samples:.0%}" + (f", loss {loss:.4f}" if board.alone else ""))


def sparks(values: Sequence[float]) -> str:
    """Return a small bar chart of numbers, or of means if there are too many numbers."""
    if not values:
        return ""
    size = -(-len(values) // _SPARKS)
    means = [sum(values[i : i + size]) / len(values[i : i + size]) for i in range(0, len(values), size)]
    top = max(means) or 1.0
    return "".join(_BARS[max(0, min(8, round(8 * mean / top)))] for mean in means)
