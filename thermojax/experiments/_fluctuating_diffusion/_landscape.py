"""The landscape of generation: potentials, symmetry breaking, phases, Franz-Parisi potential and collapse."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
from jax import lax
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from thermojax.distributions import GaussianMixture
from thermojax.dynamics import OrnsteinUhlenbeck
from thermojax.experiments._experiment import Picture, Progress, Quantity, Results
from thermojax.experiments._fluctuating_diffusion._setting import double_precision, FluctuatingDiffusion, twins
from thermojax.generative import entropy_rates, landscape
from thermojax.plots import COLOURS, panels

# Times of the potentials; times and squared distances of the Franz-Parisi potential; fields of the coupling.
TIMES = (0.05, 0.2, 0.4, 0.8)
DISTANCES, PARISI_TIMES = (0.1, 0.4, 1.0, 2.0, 4.0, 5.5), (0.3, 0.42, 1.0)
FIELDS, COUPLED_AT = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), 0.42
# Data collapse after this time of the noising.
EARLY = 1e-6


class Exact(NamedTuple):
    """Potentials and the collapse time by quadrature."""

    qs: np.ndarray
    """Squared distances of the curves."""
    curves: list[landscape.FranzParisiCurve]
    """The Franz-Parisi potential there, for each time."""
    at: list[landscape.FranzParisiCurve]
    """The same at the distances of the points."""
    fields: np.ndarray
    """Couplings of the curve."""
    coupled_curve: np.ndarray
    """The coupled free energy there."""
    coupled: np.ndarray
    """The same at the couplings of the points."""
    collapse: float
    """The collapse time."""


def tell_symmetry(p: FluctuatingDiffusion, key: jax.Array, progress: Progress, results: Results) -> None:
    """Potentials, the time at which generation decides, and the phases."""
    del key
    broad = 2.5
    with progress.stage("potentials and phases"), double_precision():
        noising = OrnsteinUhlenbeck()
        xs, data = jnp.linspace(-3.0, 3.0, 241), twins(p.mean, p.variance)
        over = lambda potential: [jax.vmap(lambda x, t=t: potential(noising, data, t, x[None]))(xs) for t in TIMES]
        drawn = [np.asarray(a) for a in (*over(landscape.reverse_potential), *over(landscape.posterior_free_energy))]
        variances, times = jnp.linspace(0.05, 4.0, 80), jnp.linspace(0.0, 1.2, 61)
        phases = np.asarray(landscape.phase_diagram(noising, lambda s: _family(p.mean, s), variances, times))
        closed = np.asarray(jax.vmap(lambda s: landscape.symmetric_mixture_speciation_time(p.mean, s))(variances))
        found = {v: landscape.speciation_time(noising, twins(p.mean, v), horizon=p.end) for v in (p.variance, p.wide, broad)}
        unstable = landscape.instability_time(noising, twins(p.mean, broad), horizon=p.end)
        for v, speciation in found.items():
            if speciation.broken:
                exact = float(landscape.symmetric_mixture_speciation_time(p.mean, v))
                meaning = f"speciation time for variance {v:g}, by root finding; exact: closed form"
                results.estimates[f"speciation_{v:g}"] = Quantity(float(speciation.time), meaning, exact=exact)
        results.estimates[f"instability_{broad:g}"] = Quantity(
            float(unstable.time),
            f"time before which the potential is not bounded below, for variance {broad:g}, by root finding; exact: closed form",
            exact=0.5 * float(np.log(broad - 1.0)),
        )
    results.figures["potentials"] = Picture(
        _draw_potentials(np.asarray(xs), drawn),
        "Left: the potential in which generation moves, less its value at the origin; one well splits into two at the speciation time. "
        "Right: the free energy of denoising from x.",
    )
    results.figures["phases"] = Picture(
        _draw_phases(np.asarray(variances), np.asarray(times), phases, closed),
        f"Phases of the potential for components at ±{p.mean:g}: generation passes from top to bottom. Solid line: speciation time; "
        "dashed line: the time at which the potential ceases to be bounded below. Both in closed form.",
    )
    if found[p.variance].broken:
        results.conclusions.append(
            f"Generation decides between the classes at t = {float(found[p.variance].time):.6f} for variance {p.variance:g}."
        )


def tell_distances(p: FluctuatingDiffusion, key: jax.Array, progress: Progress, results: Results) -> None:
    """Franz-Parisi potential, coupled free energy and collapse."""
    parisi_key, coupled_key, collapse_key, draw_key, points_key = jr.split(key, 5)
    with progress.stage("distances and collapse, by quadrature"), double_precision():
        exact = _exact(p)
    noising, narrow = OrnsteinUhlenbeck(), twins(p.mean, p.narrow)
    with progress.stage("Franz-Parisi potential, by Monte Carlo"):
        found = [
            landscape.franz_parisi(noising, narrow, np.asarray(DISTANCES), t, samples=p.samples, key=k)
            for t, k in zip(PARISI_TIMES, jr.split(parisi_key, len(PARISI_TIMES)), strict=True)
        ]
        coupled = landscape.coupled_free_energy(noising, narrow, np.asarray(FIELDS), COUPLED_AT, samples=p.samples, key=coupled_key)
    with progress.stage("collapse, by Monte Carlo"):
        data, how = twins(p.mean, p.variance), {"start": EARLY, "horizon": p.end}
        population = landscape.collapse_time(noising, data, float(p.points), **how, samples=p.samples, key=collapse_key)
        drawn = data.sample(p.points, key=draw_key)
        single = landscape.collapse_time_of_points(noising, drawn, **how, samples=p.samples, key=points_key)

    for k in (2, 4):
        q, t = DISTANCES[k], PARISI_TIMES[1]
        value, slope = jax.tree.map(lambda a, k=k: a[k], tuple(found[1]))
        results.add(
            f"franz_parisi_{q:g}",
            value,
            f"Franz-Parisi potential at squared distance {q:g}, t = {t:g}; exact: quadrature",
            exact=float(exact.at[1].value[k]),
        )
        results.add(f"franz_parisi_slope_{q:g}", slope, "its derivative by the squared distance", exact=float(exact.at[1].slope[k]))
    results.add(
        f"coupled_{FIELDS[3]:g}",
        jax.tree.map(lambda a: a[3], coupled.free_energy),
        f"free energy under a coupling of strength {FIELDS[3]:g} to the datum, t = {COUPLED_AT:g}; exact: quadrature",
        exact=float(exact.coupled[3]),
    )
    results.add(
        "collapse", population, f"collapse time for {p.points} data of variance {p.variance:g}; exact: quadrature", exact=exact.collapse
    )
    results.add("collapse_of_points", single, "the same for one set of points: its error is that for these points")
    results.figures["franz_parisi"] = Picture(
        _draw_parisi(exact, found, coupled),
        f"Franz-Parisi potential of data of variance {p.narrow:g}, its derivative, and the free energy under a coupling to the datum "
        f"(at t = {COUPLED_AT:g}). Lines: quadrature; points: Monte Carlo with error bars, most of them smaller than the points.",
    )
    results.conclusions.append(
        f"{p.points} data take over the generation at t = {float(population.value):.4g} ± {float(population.stderr):.1g} "
        f"(quadrature: {exact.collapse:.4g})."
    )


def _family(mean, variance):
    """The data for a variance that is an array."""
    return GaussianMixture(jnp.ones(2), [[mean], [-mean]], jnp.stack([variance, variance]))


def _exact(p):
    """Curves, and the values at the places of the Monte Carlo points."""
    noising, narrow = OrnsteinUhlenbeck(), twins(p.mean, p.narrow)
    qs, fields = 6.0 * np.linspace(0.06, 1.0, 60) ** 2, np.linspace(0.0, FIELDS[-1], 41)
    places = np.concatenate([qs, DISTANCES])
    both = [landscape.franz_parisi_quadrature(noising, narrow, places, t, nodes=401) for t in PARISI_TIMES]
    curves, at = ([jax.tree.map(lambda a, part=part: np.asarray(a)[part], f) for f in both] for part in (slice(60), slice(60, None)))
    coupled = np.asarray(_coupled(noising, narrow, jnp.asarray(COUPLED_AT), jnp.concatenate([jnp.asarray(fields), jnp.asarray(FIELDS)])))
    collapse = _collapse(noising, twins(p.mean, p.variance), jnp.asarray(float(p.points)), jnp.asarray(p.end))
    return Exact(qs, curves, at, fields, coupled[:41], coupled[41:], float(collapse))


@jax.jit
def _coupled(noising, data, t, fields):
    """The coupled free energy by quadrature over the datum and its noise; the integral over the denoised is a Gaussian one."""
    zs = jnp.linspace(-8.5, 8.5, 241)
    masses = jnp.exp(-0.5 * zs**2)
    masses = masses / jnp.sum(masses)
    alpha, v = noising.alpha(t), noising.variance(t)
    # Both components are alike.
    data_nodes = data.means[0, 0] + jnp.sqrt(data.covariances[0]) * zs

    def free(field, datum, z):
        x = alpha * datum + jnp.sqrt(v) * z
        precision = alpha**2 / v + 2.0 * field
        centre = (alpha * x / v + 2.0 * field * datum) / precision
        level = 0.5 * x**2 / v + field * datum**2 - 0.5 * precision * centre**2
        # Over the denoised: the data against a Gaussian of this precision.
        return level - 0.5 * jnp.log(2.0 * jnp.pi / precision) - data.push(1.0, 1.0 / precision).log_prob(centre[None])

    def average(field):
        values = jax.vmap(lambda datum: jax.vmap(lambda z: free(field, datum, z))(zs))(data_nodes)
        return masses @ values @ masses

    return lax.map(average, fields)


@jax.jit
def _collapse(noising, data, points, end):
    """The time at which the information about the datum is the logarithm of the number of data."""

    def surplus(log_t, _):
        t = jnp.exp(log_t)
        noise = 0.5 * (1.0 + jnp.log(2.0 * jnp.pi * noising.variance(t)))
        return entropy_rates(noising, data, t).entropy - noise - jnp.log(points)

    low, high = jnp.log(jnp.asarray(EARLY)), jnp.log(end)
    search = optx.Bisection(rtol=1e-12, atol=1e-12)
    return jnp.exp(optx.root_find(surplus, search, 0.5 * (low + high), options={"lower": low, "upper": high}, max_steps=100).value)


def _shades(count):
    return np.linspace(0.35, 1.0, count)


def _draw_potentials(xs, drawn):
    figure, (left, right) = panels(2)
    middle = len(xs) // 2
    for ax, values in ((left, drawn[: len(TIMES)]), (right, drawn[len(TIMES) :])):
        for t, curve, shade in zip(TIMES, values, _shades(len(TIMES)), strict=True):
            shift = curve[middle] if ax is left else 0.0
            ax.plot(xs, curve - shift, color=COLOURS["first"], alpha=shade, label=f"t = {t:g}")
        ax.set_xlabel("x")
    left.set(ylabel="U(x, t) − U(0, t) (units of k_BT)", ylim=(-1.5, 4.0))
    right.set(ylabel="posterior free energy F(x, t) (nats)", ylim=(-0.5, 6.0))
    right.legend(frameon=False)
    return figure


def _draw_phases(variances, times, phases, closed):
    figure, (ax,) = panels(width=6.0, height=4.2)
    ax.grid(visible=False)
    colours = ["#f2f2f2", "#bcd6ea", "#f6cfa8"]
    ax.pcolormesh(variances, times, phases.T, cmap=ListedColormap(colours), vmin=0, vmax=2, shading="nearest", rasterized=True)
    ax.plot(variances, np.where(closed > 0, closed, np.nan), color=COLOURS["first"], linewidth=1.5, label="speciation time")
    broad = variances[variances > 2]
    ax.plot(broad, 0.5 * np.log(broad - 1), "--", color=COLOURS["second"], linewidth=1.5, label="end of stability")
    patches = [Patch(color=c, label=name) for c, name in zip(colours, ("unbroken", "broken", "unstable"), strict=True)]
    ax.legend(handles=[*ax.get_lines(), *patches], frameon=True, framealpha=0.9, loc="upper left", fontsize=8, ncols=2)
    ax.set(xlabel="variance of the components", ylabel="time t of the noising", ylim=(times[0], times[-1]))
    return figure


def _draw_parisi(exact, found, coupled):
    figure, (left, middle, right) = panels(3, width=4.4)
    for t, line, points, shade in zip(PARISI_TIMES, exact.curves, found, _shades(len(PARISI_TIMES)), strict=True):
        for ax, name in ((left, "value"), (middle, "slope")):
            ax.plot(exact.qs, getattr(line, name), color=COLOURS["first"], alpha=shade, linewidth=1.2, label=f"t = {t:g}")
            estimate = getattr(points, name)
            ax.errorbar(DISTANCES, estimate.value, estimate.stderr, fmt="o", markersize=4, color=COLOURS["second"])
    left.plot([], [], "o", markersize=4, color=COLOURS["second"], label="Monte Carlo")
    left.set(xlabel="squared distance q", ylabel="V(q, t) (nats)")
    middle.set(xlabel="squared distance q", ylabel="∂V/∂q", ylim=(-4, 12))
    middle.axhline(0, color=COLOURS["exact"], linewidth=0.6)
    left.legend(frameon=False)
    right.plot(exact.fields, exact.coupled_curve, color=COLOURS["first"], linewidth=1.2, label="quadrature")
    estimate = coupled.free_energy
    right.errorbar(FIELDS, estimate.value, estimate.stderr, fmt="o", markersize=4, color=COLOURS["second"], label="Monte Carlo")
    right.set(xlabel="coupling ε to the datum", ylabel="coupled free energy (nats)")
    right.legend(frameon=False)
    return figure
