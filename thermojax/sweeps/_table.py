"""The table, the figure and the report of a sweep, of all points or of those that are finished."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from thermojax.plots import COLOURS, panels
from thermojax.store import as_text, brief, environment, read_manifest, read_summary, telling, versions, write_file

_PANELS = 12
_HUES = ("#1b6ca8", "#d95f02", "#2a9d5c", "#8e5ea2", "#b8860b", "#555555")


class Table(NamedTuple):
    """What is known of a sweep."""

    manifest: dict[str, Any]
    keys: list[str]
    """The swept keys."""
    values: list[tuple]
    """Their values at every point, finished or not."""
    summaries: dict[int, dict[str, Any]]
    """The summaries of the finished points."""

    @property
    def names(self) -> list[str]:
        """The estimates, in the order of the first point that has them."""
        return list(dict.fromkeys(name for summary in self.summaries.values() for name in summary["estimates"]))

    @property
    def missing(self) -> list[int]:
        """Points that are not finished."""
        return [index for index in range(len(self.values)) if index not in self.summaries]

    def estimate(self, index: int, name: str) -> dict[str, Any]:
        """An estimate of a point; all is unknown if there is none."""
        empty = dict.fromkeys(("value", "stderr", "ess", "exact", "trustworthy"))
        return self.summaries.get(index, {"estimates": {}})["estimates"].get(name, empty)


def point_folders(folder: Path, count: int) -> list[Path]:
    """The folders of a sweep's points."""
    width = max(3, len(str(count - 1)))
    return [folder / "points" / f"{index:0{width}d}" for index in range(count)]


def read_table(folder: Path) -> Table:
    """What is known of a sweep, read while it may be running.

    Raises:
        ValueError: if `folder` is not that of a sweep.
    """
    manifest = read_manifest(folder)
    if "sweep" not in manifest:
        raise ValueError(f"`folder` must be that of a sweep, got {folder}.")
    grids = np.meshgrid(*(np.arange(len(values)) for values in manifest["sweep"].values()), indexing="ij")
    places = np.stack([grid.ravel() for grid in grids], axis=1)
    values = [tuple(v[i] for v, i in zip(manifest["sweep"].values(), place, strict=True)) for place in places]
    found = {index: read_summary(point) for index, point in enumerate(point_folders(folder, len(values)))}
    return Table(manifest, list(manifest["sweep"]), values, {i: s for i, s in found.items() if s is not None})


def write_sweep(folder: Path) -> dict[str, Any]:
    """Write ``table.csv``, ``sweep.png`` and ``report.html`` of the points that are finished, and return the sweep's summary.

    Raises:
        ValueError: if no point is finished.
    """
    table = read_table(folder)
    if not table.summaries:
        raise ValueError(f"`folder` must have a finished point, got none of {len(table.values)} in {folder}.")
    figure, caption = draw(table)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    summary = {name: table.manifest[name] for name in ("experiment", "parameters", "seed", "sweep")} | {"versions": versions()}
    summary["seconds"] = round(sum(point["seconds"] for point in table.summaries.values()), 3)
    summary |= {"points": len(table.values), "missing": table.missing, "conclusions": _conclusions(table)}
    page = _page(table, summary, buffer.getvalue(), caption)
    with telling(folder):
        write_file(folder / "table.csv", _as_csv(table))
        write_file(folder / "sweep.png", buffer.getvalue())
        write_file(folder / "report.html", page)
    return summary


def _as_csv(table: Table) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    fields = ("value", "stderr", "exact", "trustworthy")
    heads = [name if field == "value" else f"{name}_{field}" for name in table.names for field in fields]
    rows.writerow(["point", *table.keys, *heads])
    for index in table.summaries:
        numbers = [table.estimate(index, name)[field] for name in table.names for field in fields]
        rows.writerow([index, *(v if isinstance(v, int | float | str) else json.dumps(v) for v in table.values[index]), *numbers])
    return text.getvalue()


def _conclusions(table: Table) -> list[str]:
    every = [table.estimate(index, name) for index in table.summaries for name in table.names]
    known = [q for q in every if q["exact"] is not None and q["value"] is not None and q["stderr"]]
    near = [q for q in known if abs(q["value"] - q["exact"]) <= 4 * q["stderr"]]
    found = [f"{len(table.summaries)} of {len(table.values)} points of {' × '.join(table.keys)} are finished."]
    if table.missing:
        found.append(f"Missing: {', '.join(f'{index:03d}' for index in table.missing)}.")
    if known:
        found.append(f"{len(near)} of {len(known)} numbers are within four error bars of their exact values.")
    doubtful = sum(q["trustworthy"] is False for q in every)
    return found + ([f"{doubtful} of {len(every)} numbers are not to be trusted; hollow in the figure."] if doubtful else [])


def draw(table: Table) -> tuple[Figure, str]:
    """The figure of a sweep, and its caption."""
    # Numbers with an error bar or an exact value first: these are what experiments are about.
    known = lambda name: any(table.estimate(i, name)["stderr"] or table.estimate(i, name)["exact"] is not None for i in table.summaries)
    names = sorted(table.names, key=lambda name: not known(name))
    shown = names[: max(1, _PANELS // len(table.keys))]
    columns = min(len(shown), 3) if len(table.keys) == 1 else len(table.keys)
    rows = -(-len(shown) * len(table.keys) // columns)
    figure, axes = panels(columns, rows=rows, width=4.6, height=3.2)
    for spare in axes[len(shown) * len(table.keys) :]:
        spare.remove()
    for k, (name, key) in enumerate((name, key) for name in shown for key in table.keys):
        _panel(axes[k], table, name, key, legend=name == shown[0])
    others = "" if len(table.keys) == 1 else "; one colour for each value of the other keys"
    left = "" if len(shown) == len(names) else f" The other {len(names) - len(shown)} numbers are in table.csv."
    doubt = "hollow, not to be trusted; dashes, exact values where they are known"
    return figure, f"Each number against each swept key, with one standard error{others}; {doubt}.{left}"


def _panel(ax, table, name, key, *, legend):
    axis = table.keys.index(key)
    ticks = table.manifest["sweep"][key]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in ticks)
    place = lambda index: table.values[index][axis] if numeric else ticks.index(table.values[index][axis])
    series: dict[tuple, list[int]] = {}
    for index in sorted(table.summaries, key=place):
        if table.estimate(index, name)["value"] is not None:
            series.setdefault(tuple(map(brief, _without(table.values[index], axis))), []).append(index)
    for k, (others, indices) in enumerate(series.items()):
        colour = _HUES[k] if len(series) <= len(_HUES) else colormaps["viridis"](0.9 * k / len(series))
        found = [table.estimate(index, name) for index in indices]
        # Names have room beside them: series side by side.
        aside = 0.0 if numeric else 0.5 * ((k + 0.5) / len(series) - 0.5)
        xs = [place(index) + aside for index in indices]
        label = ", ".join(f"{other} = {value}" for other, value in zip(_without(table.keys, axis), others, strict=True))
        # A line only joins what has an order.
        ax.plot(xs, [q["value"] for q in found], color=colour, alpha=0.4 if numeric else 0.0, linewidth=1)
        for x, q in zip(xs, found, strict=True):
            face = "white" if q["trustworthy"] is False else colour
            error = q["stderr"] or None
            ax.errorbar(x, q["value"], yerr=error, fmt="o", markersize=4, color=colour, markerfacecolor=face, capsize=2)
        if label:
            ax.plot([], [], "o", color=colour, label=label)
        exact = [(x, q["exact"]) for x, q in zip(xs, found, strict=True) if q["exact"] is not None]
        if exact:
            line = "--" if numeric else ""
            ax.plot(*zip(*exact, strict=True), color=COLOURS["exact"], linestyle=line, linewidth=1, marker="_", markersize=9, zorder=1)
    if numeric and min(ticks) > 0 and max(ticks) >= 30 * min(ticks):
        ax.set_xscale("log")
    if not numeric:
        ax.set_xticks(range(len(ticks)), [brief(tick) for tick in ticks])
        ax.set_xlim(-0.5, len(ticks) - 0.5)
    ax.set(xlabel=key, ylabel=name.replace("_", " "))
    if legend and 1 < len(series) <= len(_HUES):
        ax.legend(fontsize=7, framealpha=0.7, loc="best")


def _without(values, axis):
    return [value for k, value in enumerate(values) if k != axis]


def _page(table, summary, png, caption):
    rows = [
        {
            "point": f"{index:03d}",
            "finished": index in table.summaries,
            "values": [brief(v) for v in table.values[index]],
            "cells": [_cell(table.estimate(index, name)) for name in table.names],
        }
        for index in range(len(table.values))
    ]
    figure = {"caption": caption, "data": base64.b64encode(png).decode()}
    page = environment().get_template("sweep.html.jinja")
    return page.render(summary=summary, keys=table.keys, names=table.names, rows=rows, figure=figure)


def _cell(q):
    known = q["value"] is not None
    exact = f"exact {q['exact']:.6g}" if q["exact"] is not None else ""
    return {"text": as_text(q["value"], q["stderr"]) if known else "–", "exact": exact, "weak": q["trustworthy"] is False}
