"""Drag an anharmonic trap, as many times as you like: work, free energy and Crooks' relation of an ensemble that is never held."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from pydantic import Field

from thermojax._array import as_scalar, Scalar
from thermojax.baths import Isothermal
from thermojax.distributions import equilibrium
from thermojax.dynamics import Overdamped
from thermojax.estimators import Estimate
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Results
from thermojax.functionals import log_ratio, work
from thermojax.plots import COLOURS, panels
from thermojax.potentials import AbstractPotential
from thermojax.protocols import Ramp
from thermojax.streaming import arrays_of, BLOCK, Exponential, Histogram, Moments, shown_of, stream_each, Walk, with_arrays

# Bins of the work on each side of zero.
_BINS = 60


class QuarticTrap(Parameters):
    """Parameters of `quartic-trap`; k_B = 1."""

    samples: int = Field(2_000_000, ge=1000, multiple_of=2, description="trajectories")
    steps: int = Field(200, ge=1, description="time steps of each")
    distance: float = Field(1.0, gt=0, description="how far the trap moves")
    tau: float = Field(1.0, gt=0, description="how long it takes")
    stiffness: float = Field(0.0, ge=0, description="k of the trap k x^2/2 + g x^4/4")
    quartic: float = Field(1.0, gt=0, description="g of the trap k x^2/2 + g x^4/4")
    mobility: float = Field(1.0, gt=0, description="mobility of the particle")
    beta: float = Field(1.0, gt=0, description="inverse temperature of the bath")
    noise: Literal["independent", "antithetic"] = Field("independent", description="independent trajectories, or mirrored pairs")
    kept: int = Field(262_144, ge=BLOCK, multiple_of=BLOCK, description="trajectories in a block that is kept on disk")


class DraggedTrap(AbstractPotential):
    r"""A trap centred on the control, $V = \tfrac{k}{2}|x - \lambda|^2 + \tfrac{g}{4}\sum_i(x_i - \lambda)^4$."""

    stiffness: Scalar = eqx.field(converter=as_scalar)
    quartic: Scalar = eqx.field(converter=as_scalar)

    def __call__(self, x, lam):
        squares = (x - lam) ** 2
        return jnp.sum(0.5 * self.stiffness * squares + 0.25 * self.quartic * squares**2)


def run(parameters: QuarticTrap, key: jax.Array, progress: Progress) -> Results:
    """One point."""
    return sweep([parameters], key, progress)[0]


def sweep(points: list[QuarticTrap], key: jax.Array, progress: Progress) -> list[Results]:
    """Several points with the same noise: those of equal size side by side."""
    results: dict[int, Results] = {}
    kinds = {(p.samples, p.steps, p.noise, p.kept): None for p in points}
    for kind in kinds:
        members = [i for i, p in enumerate(points) if (p.samples, p.steps, p.noise, p.kept) == kind]
        title = "simulating" if len(kinds) == 1 else f"simulating {kind[0]} trajectories of {kind[1]} steps, {kind[2]}, by {kind[3]}"
        results |= dict(zip(members, _run([points[i] for i in members], title, key, progress), strict=True))
    return [results[i] for i in range(len(points))]


def _run(points, title, key, progress):
    samples, kept = points[0].samples, points[0].kept
    blocks, per = -(-samples // BLOCK), kept // BLOCK
    pieces = -(-samples // kept)
    models = [_model(p) for p in points]
    statistics = [_statistics(p, initial) for p, (_, initial, _) in zip(points, models, strict=True)]

    def make(i):
        options: dict[str, Any] = {"samples": samples, "noise": points[0].noise, "read": _read, "key": key}
        part = range(i * per, min((i + 1) * per, blocks))
        found = [arrays_of(seen) for seen in stream_each(statistics, (work, log_ratio), models, part=part, **options)]
        return {name: np.stack([_padded(name, arrays[name], per * shown_of(blocks, BLOCK)) for arrays in found]) for name in found[0]}

    stored = progress.blocks(title, pieces, make)
    results = []
    for k, (p, seen) in enumerate(zip(points, statistics, strict=True)):
        means = []
        for piece in range(pieces):
            seen = with_arrays(seen, {name: a[piece, k] for name, a in stored.items()})
            means.append(seen["work"]["mean"].estimate())
        results.append(_report(p, seen, means))
    return results


def _padded(name, array, size):
    """The last piece may have fewer values to show than the others; what is not a number is not looked at."""
    return np.pad(array, (0, size - array.size), constant_values=np.nan) if name.endswith(".shown") else array


def _model(p):
    potential = DraggedTrap(p.stiffness, p.quartic)
    dynamics = Overdamped(potential, Ramp(0.0, p.distance, p.tau), Isothermal(p.beta), p.mobility)
    return dynamics, equilibrium(potential, 0.0, beta=p.beta), jnp.linspace(0.0, p.tau, p.steps + 1)


def _statistics(p, initial):
    # The work of a sudden jump is the widest there is; bins lie evenly about zero, so that Crooks' relation can be read off them.
    starts = np.asarray(initial.sample(4096, key=jr.key(0)), float)[:, 0]
    energy = lambda y: 0.5 * p.stiffness * y**2 + 0.25 * p.quartic * y**4
    sudden = energy(starts - p.distance) - energy(starts)
    reach = float(np.mean(sudden) + 4 * np.std(sudden))
    edges = np.linspace(-reach, reach, 2 * _BINS + 1)
    paired = p.noise == "antithetic"
    mean = Moments(paired=paired)
    return {
        "work": {"mean": mean, "free_energy": Exponential(p.beta, paired=paired), "histogram": Histogram(edges=edges)},
        "ratio": {"mean": mean, "ift": Exponential(paired=paired), "histogram": Histogram(edges=p.beta * edges)},
    }


def _read(walk: Walk) -> dict[str, Any]:
    """Work, and the log-ratio with equilibrium at both ends; the partition function of a trap does not depend on where it is."""
    dynamics = walk.dynamics
    energy = lambda t, x: dynamics.bath(t) * dynamics.potential(x, dynamics.protocol(t))
    works, ratios = walk.sums
    return {"work": works, "ratio": ratios + energy(walk.t1, walk.x1) - energy(walk.t0, walk.x0)}


def _report(p, seen, means):
    results = Results()
    work_mean = seen["work"]["mean"]
    results.add("work", work_mean.estimate(), "mean work of dragging the trap; its error of the time step is of first order")
    name = "pairs of mirror images" if p.noise == "antithetic" else "the work"
    results.add("deviation", _deviation(work_mean), f"standard deviation of {name}")
    results.add("delta_f", seen["work"]["free_energy"].free_energy(), "free energy by Jarzynski: none but for the error of the time step")
    results.add(
        "log_ratio",
        seen["ratio"]["mean"].estimate(),
        "mean log-ratio: dissipation in units of k_BT, shadow work included",
    )
    results.add("ift", seen["ratio"]["ift"].estimate(), "mean of exp(-log-ratio): one at every time step", exact=1.0)
    if p.noise == "independent":
        # Mirror images are not independent: their quantiles would have another error bar.
        results.add("median", seen["work"]["histogram"].quantile(0.5), "median of the work")
    results.figures["work"] = Picture(
        _draw_work(seen["work"]["histogram"], seen["ratio"]["histogram"], p.noise),
        "Left, the work of all trajectories. Right, Crooks' relation for the log-ratio of the path measures: the trap dragged backwards is "
        "the mirror image, so that the relation (dashed) holds within one ensemble, at every time step.",
    )
    results.figures["convergence"] = Picture(
        _draw_convergence(p, means), "The mean work after each block, in standard errors of the final mean; dashed, the spread expected."
    )
    value, stderr = float(means[-1].value), float(means[-1].stderr)
    results.conclusions.append(
        f"{p.samples:,} trajectories of {p.steps} steps: mean work {value:.7g} ± {stderr:.2g}, known to {stderr / abs(value):.1g} of it."
    )
    results.conclusions.append(results.tally())
    return results


def _deviation(moments: Moments) -> Estimate:
    """The standard deviation, whose relative error is sqrt((kurtosis + 2)/(4 n)) (delta method)."""
    mean = moments.estimate()
    value = np.sqrt(moments.variance)
    error = value * np.sqrt(max(moments.kurtosis + 2.0, 0.0) / float(mean.samples)) / 2
    return mean._replace(value=np.asarray(value), stderr=np.asarray(error))


def _draw_work(works, ratios, noise):
    figure, (ax, crooks) = panels(2)
    edges, density = np.asarray(works.edges, float), works.density()
    ax.stairs(density, edges, fill=True, alpha=0.3, color=COLOURS["first"])
    ax.stairs(density, edges, color=COLOURS["first"])
    reached = np.flatnonzero(density > 0)
    ax.set(xlabel="work W", ylabel="probability density", yscale="log", ylim=(0.5 * density[reached].min(), 3 * density.max()))
    ax.set_xlim(float(edges[max(reached[0] - 3, 0)]), float(edges[min(reached[-1] + 4, len(edges) - 1)]))
    up, down = slice(_BINS, None), slice(_BINS - 1, None, -1)
    density, error, edges = ratios.density(), ratios.density_error(), np.asarray(ratios.edges, float)
    # Mirror images at worst fall into the same bin.
    error = error * (np.sqrt(2.0) if noise == "antithetic" else 1.0)
    known = (density[down] > 3 * error[down]) & (density[up] > 0)
    middles = 0.5 * (edges[1:] + edges[:-1])[up][known]
    logs = np.log(density[up][known] / density[down][known])
    spread = np.hypot(error[up][known] / density[up][known], error[down][known] / density[down][known])
    crooks.errorbar(middles, logs, spread, fmt="o", markersize=3, color=COLOURS["first"])
    line = np.array([0.0, middles.max(initial=1.0)])
    crooks.plot(line, line, color=COLOURS["exact"], linewidth=1, linestyle="--")
    crooks.set(xlabel="log-ratio ℓ", ylabel="ln P(ℓ)/P(−ℓ)")
    return figure


def _draw_convergence(p, means):
    figure, (ax,) = panels()
    counts = np.array([float(m.samples) for m in means]) * (2 if p.noise == "antithetic" else 1)
    final = means[-1]
    away = np.array([(float(m.value) - float(final.value)) / float(final.stderr) for m in means])
    # A mean of the first n of N samples is away from the final one by sqrt(N/n - 1) of its standard errors.
    n = np.linspace(counts[0], counts[-1], 200)
    for sign in (-1, 1):
        ax.plot(n / 1e6, sign * np.sqrt(counts[-1] / n - 1), color=COLOURS["exact"], linewidth=1, linestyle="--")
    ax.plot(counts / 1e6, away, "o-", markersize=3, color=COLOURS["first"])
    ax.set(xlabel="million trajectories", ylabel="(mean work − final) / its error")
    return figure


EXPERIMENT = Experiment(
    "quartic-trap",
    "drag an anharmonic trap in an ensemble of any size, on all devices",
    QuarticTrap,
    run,
    sweep,
)
