"""Rates of entropy production and flux along the noising and its reversal: quadrature, Monte Carlo and Fokker-Planck."""

from typing import NamedTuple

import jax
import numpy as np
from numpy.polynomial import Chebyshev

from thermojax.dynamics import OrnsteinUhlenbeck, Reversed
from thermojax.experiments._experiment import Picture, Progress, Quantity, Results
from thermojax.experiments._fluctuating_diffusion._setting import double_precision, FluctuatingDiffusion, twins
from thermojax.fokker_planck import evolve, Grid, Thermodynamics, thermodynamics
from thermojax.generative import entropy_rates, MixtureScore
from thermojax.plots import COLOURS, panels

# Times of the Fokker-Planck equation and of the curves; times of the Monte Carlo points, in units of the whole duration.
TIMES = 301
MARKS = (0.0, 0.033, 0.067, 0.1, 0.133, 0.167, 0.233, 0.333, 0.4, 0.5)
NAMES = {"production": "entropy production", "reverse_flux": "flux of the reversal", "system": "rate of the system's entropy"}


class Flows(NamedTuple):
    """Noising and reversal on a grid, each in its own time."""

    middles: np.ndarray
    """Middles of the cells."""
    faces: np.ndarray
    """Their upper ends, where the currents are."""
    ahead: np.ndarray
    """Densities of the noising."""
    back: np.ndarray
    """Densities of the reversal."""
    forward: Thermodynamics
    """Currents and entropies of the noising."""
    reverse: Thermodynamics
    """Currents and entropies of the reversal."""


def tell_rates(p: FluctuatingDiffusion, key: jax.Array, progress: Progress, results: Results) -> None:
    """Rates against time, their zeros and minima, and the currents of both directions."""
    marks, times = p.end * np.asarray(MARKS), np.linspace(0.0, p.end, TIMES)
    with progress.stage("entropy rates, by quadrature and Fokker-Planck"), double_precision():
        noising, data = OrnsteinUhlenbeck(), twins(p.mean, p.variance)
        both = jax.tree.map(np.asarray, entropy_rates(noising, data, np.concatenate([times, marks])))
        exact, at_marks = (jax.tree.map(lambda a, part=part: a[part], both) for part in (slice(TIMES), slice(TIMES, None)))
        flows = _flows(p, noising, data, times)
    on_grid = {
        "production": flows.forward.entropy_production,
        "reverse_flux": flows.reverse.entropy_flux[::-1],
        "system": flows.forward.entropy_rate,
    }
    with progress.stage("entropy rates, by Monte Carlo"):
        measured = entropy_rates(OrnsteinUhlenbeck(), twins(p.mean, p.variance), marks, samples=p.samples, key=key)

    for k in (1, 5, 7):
        for name, errors in (("production", "production_errors"), ("entropy", "entropy_errors")):
            results.estimates[f"{name}_at_{marks[k]:.2g}"] = Quantity(
                float(getattr(measured, name)[k]),
                f"{NAMES.get(name, 'entropy of the system')} at t = {marks[k]:.2g}, by Monte Carlo; exact: quadrature",
                stderr=float(getattr(measured, errors)[k]),
                ess=float(p.samples),
                exact=float(getattr(at_marks, name)[k]),
                trustworthy=True,
            )
    special = {name: _turning(times, getattr(exact, name)) for name in ("system", "reverse_flux")}
    for name, places in special.items():
        found = _turning(times, on_grid[name])
        for kind in sorted(set(places) & set(found)):
            meaning = f"{NAMES[name]}: {kind.replace('_', ' ')}, by Fokker-Planck; exact: quadrature"
            results.estimates[f"{name}_{kind}"] = Quantity(found[kind], meaning, exact=places[kind])
    shift = np.max(np.abs(flows.ahead - flows.back[::-1]))
    results.estimates["density_difference"] = Quantity(
        float(shift), "largest difference of the densities of noising and reversal at any time and place, by Fokker-Planck", exact=0.0
    )
    currents = flows.forward.current[0], flows.reverse.current[0]
    left = np.max(np.abs(currents[0] + currents[1][::-1])) / np.max(np.abs(currents[0]))
    results.estimates["current_sum"] = Quantity(
        float(left), "largest sum of the currents of noising and reversal, in units of the largest current, by Fokker-Planck", exact=0.0
    )
    results.figures["rates"] = Picture(
        _draw_rates(times, exact, on_grid, marks, measured),
        "Entropy rates along the noising, in nats per unit time. Lines: quadrature; points: Monte Carlo with error bars; crosses: "
        "Fokker-Planck equation, the flux of the reversal from the reversed process itself.",
    )
    results.figures["currents"] = Picture(
        _draw_currents(times, flows),
        "Densities and currents of the noising (lines) and of its reversal (dots), by the Fokker-Planck equation: "
        "the same densities, opposite currents.",
    )
    worst = max(float(np.max(np.abs(on_grid[name] - getattr(exact, name)))) for name in on_grid)
    sentence = f"Quadrature and the Fokker-Planck equation agree in all entropy rates to {worst:.2g} nats per unit time"
    if "zero" in special["system"] and "zero" in special["reverse_flux"]:
        zeros = special["system"]["zero"], special["reverse_flux"]["zero"]
        sentence += f"; the entropy of the system is largest at t = {zeros[0]:.6f}, and the reversal stops heating at t = {zeros[1]:.6f}"
    results.conclusions.append(sentence + ".")


def _flows(p, noising, data, ts):
    grid = Grid(-p.mean - 8.0, p.mean + 8.0, p.cells)
    reversal = Reversed(noising, MixtureScore(noising, data), p.end)
    ahead = evolve(noising, data, grid, ts).densities
    back = evolve(reversal, noising.marginal(data, reversal.horizon), grid, ts).densities
    forward, reverse = thermodynamics(noising, ahead, grid, ts), thermodynamics(reversal, back, grid, ts)
    middles = grid.lines[0]
    found = (middles, middles + 0.5 * grid.spacing[0], ahead, back, forward, reverse)
    return Flows(*jax.tree.map(np.asarray, found))


def _turning(ts, values):
    """Where a rate falls through zero and where it is least, by the polynomial through the points around."""
    found = {}

    def around(k):
        window = slice(max(k - 5, 0), k + 6)
        return Chebyshev.fit(ts[window], values[window], 10)

    def root(polynomial, near):
        places = polynomial.roots()
        places = places[np.abs(places.imag) < 1e-9].real
        return float(places[np.argmin(np.abs(places - near))])

    falls = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
    if falls.size:
        found["zero"] = root(around(falls[0]), ts[falls[0]])
    least = int(np.argmin(values))
    if 5 <= least < len(values) - 5:
        place = root(around(least).deriv(), ts[least])
        found |= {"time_of_minimum": place, "minimum": float(around(least)(place))}
    return found


def _draw_rates(ts, exact, on_grid, marks, measured):
    figure, (left, right) = panels(2, width=5.4, height=4.0)
    crosses, errors = slice(4, 151, 10), np.asarray(measured.production_errors)
    curves = {
        left: {
            "production": ("π: entropy production", "first", errors),
            "flux": ("φ: flux of the noising", "faint", None),
            "reverse_flux": ("φ*: flux of the reversal", "second", 2 * errors),
        },
        right: {"system": ("dS/dt = π − φ", "first", errors)},
    }
    for ax, lines in curves.items():
        for name, (label, colour, bars) in lines.items():
            ax.plot(ts, getattr(exact, name), color=COLOURS[colour], linewidth=1.2, label=label)
            if bars is not None:
                ax.errorbar(marks, getattr(measured, name), bars, fmt="o", markersize=4, color=COLOURS[colour])
                ax.plot(ts[crosses], on_grid[name][crosses], "x", markersize=4, color=COLOURS["exact"], zorder=3)
        ax.axhline(0, color=COLOURS["exact"], linewidth=0.6)
        ax.set(xlabel="time t of the noising", ylabel="rate (nats per unit time)", xlim=(-0.02 * ts[-1], 0.52 * ts[-1]))
        ax.plot([], [], "o", color=COLOURS["faint"], markersize=4, label="Monte Carlo")
        ax.plot([], [], "x", color=COLOURS["exact"], markersize=4, label="Fokker-Planck")
        ax.legend(frameon=False)
    return figure


def _draw_currents(ts, flows):
    figure, (left, right) = panels(2, width=5.4, height=3.8)
    currents = flows.forward.current[0], flows.reverse.current[0]
    for k, shade in zip((0, 20, 60, 150), (0.35, 0.55, 0.75, 1.0), strict=True):
        for ax, lines, dots, places in (
            (left, flows.ahead[k], flows.back[-1 - k], flows.middles),
            (right, currents[0][k], currents[1][-1 - k], flows.faces),
        ):
            ax.plot(places, lines, color=COLOURS["first"], alpha=shade, label=f"t = {ts[k]:.2g}")
            ax.plot(places[::4], dots[::4], ".", markersize=4, color=COLOURS["second"], alpha=shade)
    left.set(xlabel="x", ylabel="density p(x, t)", xlim=(-4, 4))
    right.set(xlabel="x", ylabel="probability current J(x, t)", xlim=(-4, 4))
    left.plot([], [], ".", color=COLOURS["second"], label="reversal")
    left.legend(frameon=False)
    return figure
