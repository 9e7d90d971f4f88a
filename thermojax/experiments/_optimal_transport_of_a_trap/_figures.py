"""Figures of the three traps."""

import numpy as np

from thermojax.plots import COLOURS, curve, histogram, panels
from thermojax.protocols import sampled

_WAYS = {
    "ramp": ("linear ramp", COLOURS["faint"]),
    "monte_carlo": ("Monte Carlo gradients", COLOURS["first"]),
    "fokker_planck": ("Fokker-Planck gradients", COLOURS["second"]),
}


def draw_protocols(every):
    """A panel for each trap."""
    figure, axes = panels(len(every), width=4.6)
    for ax, found in zip(axes, every, strict=True):
        for way, model in found.models.items():
            label, colour = _WAYS[way]
            ax.plot(*map(np.asarray, sampled(_inner(model.protocol))), color=colour, label=label)
        best = _inner(found.problem.best)
        ax.plot(*map(np.asarray, sampled(best)), color=COLOURS["exact"], linestyle="--", linewidth=1, label="exact optimum")
        title = found.problem.name
        protocol = found.models["monte_carlo"].protocol
        if hasattr(protocol, "first"):
            right = found.problem.best
            kicks = f"{float(protocol.first):.3g} and {float(protocol.last):.3g}"
            title += f": kicks {kicks}\n(exact {float(right.first):.3g} and {float(right.last):.3g})"
        ax.set_title(title, fontsize=10)
        ax.set(xlabel="time t", ylabel=found.problem.control)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def draw_excess(every):
    """A row for each way to each trap, in units of the least dissipation."""
    rows = [(found, way) for found in every for way in found.models]
    figure, (ax,) = panels(width=7.0, height=1.0 + 0.32 * len(rows))
    for row, (found, way) in enumerate(rows):
        problem, colour = found.problem, _WAYS[way][1]
        ax.plot(1 + problem.over(found.costs[way]) / 100, row, "o", color=colour)
        if way in found.fresh:
            estimate, least = found.fresh[way], problem.least - problem.delta_f
            value, error = float(estimate.value) / least, 4 * float(estimate.stderr) / least
            ax.errorbar(value, row + 0.25, xerr=error, fmt="s", markersize=4, markerfacecolor="white", color=colour, capsize=2)
    ax.axvline(1.0, color=COLOURS["exact"], linestyle="--", linewidth=1)
    ax.set_yticks(range(len(rows)), [f"{found.problem.name}: {_WAYS[way][0]}" for found, way in rows])
    ax.set(xlabel="dissipated work / least dissipated work", ylim=(len(rows) - 0.4, -0.6))
    return figure


def draw_works(every, beta):
    """Histograms of the ramp and of what was found, with Gaussians."""
    figure, axes = panels(len(every), width=4.6)
    for ax, found in zip(axes, every, strict=True):
        both = np.concatenate(list(found.works.values()))
        low, high = np.nanquantile(both, [0.0005, 0.9995])
        bins = np.linspace(low, high, 80)
        for way in found.works:
            label, colour = _WAYS[way]
            histogram(ax, found.works[way], label=label, colour=colour, bins=bins)
            mean, variance = _moments(found, way, beta)
            curve(ax, lambda w, m=mean, v=variance: np.exp(-((w - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v), low, high)
        ax.set_title(found.problem.name, fontsize=10)
        ax.set(xlabel="work W", ylabel="probability density")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def draw_descent(every, targets):
    """Distance from the optimum against trajectories, on logarithmic axes."""
    figure, (ax,) = panels()
    colours = {"position": COLOURS["first"], "stiffness": COLOURS["second"], "underdamped": COLOURS["exact"]}
    for found in every:
        name = found.problem.name
        over = np.maximum(found.problem.over(found.course), 1e-3)
        ax.loglog(found.trajectories, over, color=colours[name], label=name)
    for target in sorted({targets[found.problem.name] for found in every}):
        ax.axhline(target, color=COLOURS["faint"], linestyle=":", linewidth=1.2)
    ax.set(xlabel="trajectories", ylabel="dissipation above the least (%)")
    ax.legend(frameon=False)
    return figure


def _inner(protocol):
    """The control without the kicks."""
    return getattr(protocol, "protocol", protocol)


def _moments(found, way, beta):
    """Exact mean and variance of the work; those of the paths where there is no closed form for the latter."""
    cost = found.costs[way]
    if found.problem.name == "stiffness":
        return cost, float(np.nanvar(found.works[way]))
    return cost, 2 * cost / beta
