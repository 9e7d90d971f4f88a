"""Figures, in one style, without touching matplotlib's global state."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Blue, orange, grey: told apart by readers who are colour-blind, and in print.
COLOURS = {"first": "#1b6ca8", "second": "#d95f02", "exact": "#222222", "faint": "#9a9a9a"}


def panels(columns: int = 1, *, width: float = 5.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels side by side."""
    figure = Figure(figsize=(width * columns, height), dpi=120, layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def histogram(ax: Axes, samples: np.ndarray, *, label: str, colour: str, bins: np.ndarray) -> None:
    """A normalised histogram as an outlined area."""
    density, _ = np.histogram(samples[np.isfinite(samples)], bins=bins, density=True)
    ax.stairs(density, bins, fill=True, alpha=0.3, color=colour)
    ax.stairs(density, bins, color=colour, label=label)


def curve(ax: Axes, function: Callable[[np.ndarray], np.ndarray], low: float, high: float, *, label: str | None = None) -> None:
    """An exact result, as a thin black line."""
    x = np.linspace(low, high, 400)
    ax.plot(x, function(x), color=COLOURS["exact"], linewidth=1.0, linestyle="--", label=label)


def band(ax: Axes, x: np.ndarray, y: np.ndarray, error: np.ndarray, *, label: str, colour: str) -> None:
    """A line with its standard error as a band."""
    ax.fill_between(x, y - error, y + error, color=colour, alpha=0.3, linewidth=0)
    ax.plot(x, y, color=colour, label=label)


def images(rows: list[tuple[str, np.ndarray]], *, vmax: float) -> Figure:
    """Rows of small grey images, each row an array of shape ``(image, height, width)`` with a title."""
    count = max(len(pictures) for _, pictures in rows)
    figure = Figure(figsize=(0.62 * count, 0.85 * len(rows)), dpi=120, layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(rows), count))
    for line, (title, pictures) in zip(grid, rows, strict=True):
        line[0].set_title(title, loc="left", fontsize=8)
        for ax in line:
            ax.axis("off")
        for ax, picture in zip(line, pictures, strict=False):
            ax.imshow(picture, cmap="gray_r", vmin=0, vmax=vmax, interpolation="nearest")
    return figure
