"""Figures of the active particle."""

import jax.numpy as jnp
import numpy as np

from thermojax.experiments._active_particle._model import controls_inside
from thermojax.plots import COLOURS, histogram, panels

CONTROLS = ("stiffness k(t)", "speed v(t)")
LOOKS = {"ramp": ("faint", "straight lines"), "jump": ("second", "jump and wait"), "found": ("first", "found")}


def draw_controls(found, best, cheap, bounded, tau):
    """Both controls against time, with their bounds."""
    figure, axes = panels(2)
    places = jnp.linspace(0.0, 1.0, 1001)
    # Just outside the duration too, so that the jumps are seen.
    times = np.concatenate([[-0.05, 0.0], np.asarray(places), [1.0, 1.05]]) * tau
    start, stop = np.asarray(found.start), np.asarray(found.stop)
    path = lambda protocol: np.concatenate([[start] * 2, np.asarray(controls_inside(protocol, places)), [stop] * 2])
    for k, (ax, label) in enumerate(zip(axes, CONTROLS, strict=True)):
        low, high = float(bounded.low[k]), float(bounded.high[k])
        reach = 0.08 * (high - low)
        for edge, outside in ((low, low - reach), (high, high + reach)):
            ax.axhspan(min(edge, outside), max(edge, outside), color="0.9")
        ax.plot([0, tau], [start[k], stop[k]], color=COLOURS["faint"], label="straight line")
        ax.plot(times, path(cheap)[:, k], color=COLOURS["first"], linewidth=0.8, label="found, lowest price")
        ax.plot(times, path(found)[:, k], color=COLOURS["first"], label="found, highest price")
        ax.plot(times, path(best)[:, k], color=COLOURS["exact"], linestyle="--", linewidth=1, label="the same without noise")
        ax.set(xlabel="time t", ylabel=label, xlim=(times[0], times[-1]), ylim=(low - reach, high + reach))
    axes[1].legend(frameon=False, loc="lower center", fontsize=8)
    return figure


def draw_moments(ts, courses, features, target):
    """Both moments against time, and what was simulated at the end."""
    figure, axes = panels(2)
    features, n = np.asarray(features), features.shape[0]
    for k, (ax, label) in enumerate(zip(axes, ("mean squared distance M", "alignment c"), strict=True)):
        for name, moments in courses.items():
            colour, words = LOOKS[name]
            ax.plot(ts, moments[k], color=COLOURS[colour], label=words)
        end = float(np.mean(features[:, k])), float(np.std(features[:, k]) / np.sqrt(n))
        ax.errorbar(float(ts[-1]), end[0], yerr=2 * end[1], fmt="o", markersize=3, color=COLOURS["first"])
        ax.axhline(float(target[k]), color=COLOURS["exact"], linestyle=":", linewidth=1, label="steady state")
        ax.set(xlabel="time t", ylabel=label)
    axes[1].legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def draw_front(front, exact, best, points):
    """Work against error."""
    figure, (ax,) = panels()
    values, stderrs, exact = (np.asarray(a) for a in (front.values, front.stderrs, exact))
    ax.plot(best.values[:, 0], best.values[:, 1], color=COLOURS["exact"], linestyle="--", linewidth=1, label="without noise")
    ax.errorbar(
        values[:, 0], values[:, 1], xerr=stderrs[:, 0], yerr=stderrs[:, 1], fmt="o", markersize=4, color=COLOURS["first"], label="found"
    )
    ax.plot(exact[:, 0], exact[:, 1], "o", markersize=7, fillstyle="none", color=COLOURS["first"], label="found, exact")
    for name, place in points.items():
        colour, words = LOOKS[name]
        ax.plot(*np.asarray(place), "s", markersize=6, color=COLOURS[colour], label=words)
    # Without bias an error near zero may be measured as negative.
    ax.set_yscale("symlog", linthresh=1e-3)
    ax.set(xlabel="work of the trap", ylabel="error of the moments at the end")
    ax.legend(frameon=False, fontsize=8)
    return figure


def draw_law(laws, steady):
    """Histograms of the distance from the centre and of the place along the direction of swimming."""
    figure, axes = panels(2)
    for k, (ax, label) in enumerate(zip(axes, ("distance from the centre |r|", "place along the direction r·n"), strict=True)):
        low, high = np.quantile(steady[k], [0.0005, 0.9995])
        bins = np.linspace(low, high, 60)
        histogram(ax, steady[k], label="steady state", colour=COLOURS["exact"], bins=bins)
        for name, law in laws.items():
            colour, words = LOOKS[name]
            density, _ = np.histogram(law[k], bins=bins, density=True)
            ax.stairs(density, bins, color=COLOURS[colour], label=words)
        ax.set(xlabel=label, ylabel="probability density")
    axes[0].legend(frameon=False)
    return figure
