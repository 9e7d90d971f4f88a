"""Figures, in one style, without touching matplotlib's global state."""

from collections.abc import Callable, Collection

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Blue, orange, grey: told apart by readers who are colour-blind, and in print.
COLOURS = {"first": "#1b6ca8", "second": "#d95f02", "exact": "#222222", "faint": "#9a9a9a"}
# Names in one column of `pulls`, and how far its axis reaches.
_ROWS, _EDGE = 32, 5.0


def panels(columns: int = 1, *, rows: int = 1, width: float = 5.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels side by side, in `rows` of them, each of that width and height; the axes are listed row by row."""
    figure = Figure(figsize=(width * columns, height * rows), dpi=120, layout="constrained")
    axes = list(np.ravel(figure.subplots(rows, columns)))
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


def pulls(distances: dict[str, float], doubtful: Collection[str] = ()) -> Figure:
    """How far each named number is from its exact value, in standard errors; those in `doubtful` in another colour.

    Numbers more than five away sit at the edge as arrows. Many names fill several columns.
    """
    columns = -(-len(distances) // _ROWS) or 1
    rows = -(-len(distances) // columns)
    figure, axes = panels(columns, width=7.0 if columns == 1 else 5.2, height=0.8 + 0.28 * rows)
    names = list(distances)
    for k, ax in enumerate(axes):
        column = names[k * rows : (k + 1) * rows]
        ax.axvspan(-2, 2, color="0.93")
        ax.axvline(0, color=COLOURS["exact"], linewidth=1, linestyle="--")
        for row, name in enumerate(column):
            pull, colour = distances[name], COLOURS["second" if name in doubtful else "first"]
            if abs(pull) <= _EDGE:
                ax.errorbar(pull, row, xerr=1, fmt="o", markersize=4, color=colour)
            else:
                ax.plot(np.copysign(_EDGE - 0.15, pull), row, ">" if pull > 0 else "<", markersize=7, color=colour)
        ax.set_yticks(range(len(column)), [name.replace("_", " ") for name in column])
        ax.set(xlabel="(measured − exact) / standard error", xlim=(-_EDGE, _EDGE), ylim=(rows - 0.5, -0.5))
    return figure


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
