"""The demo's plot of the loss, in the network and in one process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("Agg")  # before the import of pyplot, which would look for a screen
from matplotlib.figure import Figure

from hypha_devnet.demo.board import Board
from hypha_devnet.demo.settings import TRAINERS

_COLOURS: Final = ("#0072b2", "#e69f00")
_ALONE: Final = "#777777"
_SMOOTHED: Final = 5


def plot(board: Board, score: float, alone_score: float, path: Path) -> None:
    """Plot the losses over the samples that all trainers together have seen, and save the plot."""
    model = board.model
    figure = Figure(figsize=(10, 5.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for number in range(1, model.rounds + 1):
        axes.axvline(number * model.samples_per_round / 1000, color="#dddddd", linewidth=0.8, zorder=0)
    label = f"one process ({model.score.text(alone_score)})"
    axes.plot(*_thousands(board.alone, 1), color=_ALONE, linewidth=1.4, linestyle=(0, (4, 2)), label=label)
    for trainer, colour in zip(TRAINERS, _COLOURS, strict=True):
        points = board.workers[trainer].losses
        axes.plot(*_thousands(points, len(TRAINERS)), color=colour, linewidth=0.7, alpha=0.3)
        smooth = [(x, y) for (x, _), y in zip(points, smoothed([loss for _, loss in points]), strict=True)]
        axes.plot(*_thousands(smooth, len(TRAINERS)), color=colour, linewidth=1.8, label=trainer)
    axes.set_yscale("log")
    axes.set_xlim(0, model.total_samples / 1000)
    axes.set_xlabel("training samples seen, all trainers together (thousands); a line marks each outer step")
    axes.set_ylabel("training loss")
    axes.set_title(
        f"{model.title}, trained over a Hypha network: {model.score.text(score)}",
        loc="left",
        fontweight="bold",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def _thousands(points: Sequence[tuple[float, float]], trainers: int) -> tuple[list[float], list[float]]:
    """Return the x values in thousands of samples of all trainers, and the y values."""
    return [x * trainers / 1000 for x, _ in points], [y for _, y in points]


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of each value and its neighbours."""
    windows = (values[max(0, i - _SMOOTHED // 2) : i + _SMOOTHED // 2 + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
