"""Entropies along paths: the fluctuation theorem both ways, what the midpoint rule makes of it, and sixteen dimensions."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax

from thermojax.distributions import GaussianMixture
from thermojax.dynamics import OrnsteinUhlenbeck, Reversed
from thermojax.ensemble import Step
from thermojax.estimators import exponential_mean, mean
from thermojax.experiments._experiment import Picture, Progress, Quantity, Results
from thermojax.experiments._fluctuating_diffusion._setting import double_precision, FluctuatingDiffusion, twins
from thermojax.functionals import log_ratio, medium_entropy_stratonovich
from thermojax.generative import landscape, MixtureScore, path_entropies
from thermojax.plots import COLOURS, histogram, panels
from thermojax.steppers import EulerMaruyama, log_density

# Standard deviations that a quadrature reaches on either side; spacing and reach of the sums over one step, in units of its width.
REACH, SPACING, STRIDE = 8.5, 0.7, 10.0


def tell_paths(p: FluctuatingDiffusion, key: jax.Array, progress: Progress, results: Results) -> None:
    """Entropies of noising and of generation, path by path."""
    ahead_key, back_key, narrow_key = jr.split(key, 3)
    noising = OrnsteinUhlenbeck()
    with progress.stage("entropies of paths, by quadrature"), double_precision():
        exact = _continuous(p)
        propagated = _propagated(p)
    with progress.stage("entropies of paths, by simulation"):
        data, ts = twins(p.mean, p.wide), jnp.linspace(0.0, p.horizon, p.steps + 1)
        ahead = path_entropies(noising, data, p.trajectories, ts, key=ahead_key)
        # The time of the coefficients is that of the first end of each step.
        back = path_entropies(noising, data, p.trajectories, ts, direction="reverse", stepper=EulerMaruyama(0.0), key=back_key)
        narrow = path_entropies(noising, twins(p.mean, p.variance), p.trajectories, ts, key=narrow_key)

    results.add("forward_theorem", ahead.theorem, "noising: mean of exp(-total entropy)", exact=1.0)
    results.add("reverse_theorem", back.theorem, "generation: the same, medium by the kernels; one at any step", exact=1.0)
    results.add(
        "midpoint_theorem",
        exponential_mean(back.midpoint_total),
        "generation: the same, medium by the midpoint rule; exact: with the bias of this time step",
        exact=propagated["midpoint_theorem"],
    )
    results.add("forward_total", mean(ahead.total), "noising: mean total entropy", exact=exact["mean"])
    results.add(
        "reverse_total",
        mean(back.total),
        f"generation: mean total entropy, exact at this time step; {exact['mean']:.6g} in continuous time",
        exact=propagated["kernel_mean"],
    )
    results.add("midpoint_total", mean(back.midpoint_total), "generation: the same by the midpoint rule", exact=propagated["midpoint_mean"])
    # On the same paths, so that the bias of the midpoint rule is seen through the noise.
    results.add(
        "midpoint_theorem_bias",
        mean(jnp.exp(-back.midpoint_total) - jnp.exp(-back.total)),
        "generation: what the midpoint rule adds to the mean of exp(-total entropy), on the same paths",
        exact=propagated["midpoint_theorem"] - 1.0,
    )
    results.add(
        "midpoint_total_bias",
        mean(back.midpoint_total - back.total),
        "generation: what the midpoint rule adds to the mean total entropy, on the same paths",
        exact=propagated["midpoint_mean"] - propagated["kernel_mean"],
    )
    spreads = {"forward": (ahead, exact["variance"]), "reverse": (back, propagated["kernel_variance"])}
    for name, (found, variance) in spreads.items():
        results.add(f"{name}_variance", mean((found.total - jnp.mean(found.total)) ** 2), "variance of the total entropy", exact=variance)
    below = mean(jnp.where(ahead.total < 0, 1.0, 0.0))
    results.add("forward_share_below", below, "noising: share of the paths that lower the total entropy", exact=exact["below"])
    below = mean(jnp.where(back.total < 0, 1.0, 0.0))
    results.add("reverse_share_below", below, "generation: share of the paths that lower the total entropy")
    results.add(
        "narrow_theorem",
        narrow.theorem,
        f"noising of data of variance {p.variance:g}: mean of exp(-total entropy); its variance is infinite",
        exact=1.0,
    )
    results.figures["entropies"] = Picture(
        _draw_entropies(ahead, back),
        f"Entropy changes of {p.trajectories} paths of the noising and of its reversal with the exact score, data of variance {p.wide:g}. "
        "The system's entropy changes by the opposite amounts; the total (dashed: means) has the same mean in both directions.",
    )
    told = {name: results.estimates[name] for name in ("forward_theorem", "reverse_theorem", "midpoint_theorem_bias", "narrow_theorem")}
    kernels = {name: f"{q.value:.4f} ± {q.stderr:.2g}" for name, q in told.items()}
    results.conclusions.append(
        f"The mean of exp(-total entropy) is {kernels['forward_theorem']} for the noising and {kernels['reverse_theorem']} for its "
        f"reversal by the kernels, where it is one at any step; the midpoint rule adds {told['midpoint_theorem_bias'].value:.5f} ± "
        f"{told['midpoint_theorem_bias'].stderr:.1g} (without noise: {told['midpoint_theorem_bias'].exact:.6f})."
    )
    verdict = "may be trusted" if told["narrow_theorem"].trustworthy else "must not be trusted: its variance is infinite"
    results.conclusions.append(f"For variance {p.variance:g} the same average, {kernels['narrow_theorem']}, {verdict}.")


def tell_dimensions(p: FluctuatingDiffusion, key: jax.Array, progress: Progress, results: Results) -> None:
    """The same laws in sixteen dimensions, for eight components."""
    mean_key, ahead_key, back_key = jr.split(key, 3)
    noising, ts, n = OrnsteinUhlenbeck(), jnp.linspace(0.0, p.end, p.steps // 5 + 1), p.trajectories // 2
    with progress.stage("sixteen dimensions"):
        directions = np.asarray(jr.normal(mean_key, (4, 16)), float)
        ups = 1.5 * p.mean * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        ahead = path_entropies(noising, _octet(ups, p.wide), n, ts, key=ahead_key)
        back = path_entropies(noising, _octet(ups, p.wide), n, ts, direction="reverse", key=back_key)
        with double_precision():
            found = landscape.speciation_time(OrnsteinUhlenbeck(), _octet(ups, p.wide), horizon=p.end)
            # At the centre every component has the same weight: only their covariance counts.
            largest = np.linalg.eigvalsh(ups.T @ ups / 4.0)[-1]
            expected = landscape.symmetric_mixture_speciation_time(np.sqrt(largest), p.wide)
    results.add("octet_forward_theorem", ahead.theorem, "8 components in 16 dimensions, noising: mean of exp(-total entropy)", exact=1.0)
    results.add("octet_reverse_theorem", back.theorem, "8 components in 16 dimensions, generation: the same", exact=1.0)
    if found.broken:
        meaning = "8 components in 16 dimensions: speciation time along the path of the stationary point; exact: closed form"
        results.estimates["octet_speciation"] = Quantity(float(found.time), meaning, exact=float(expected))


def _continuous(p):
    """Mean, variance and share below zero of the total entropy of the noising, by quadrature over both ends of the paths."""
    average, spread, below = _over_ends(OrnsteinUhlenbeck(), twins(p.mean, p.wide), jnp.asarray(p.horizon))
    return {"mean": float(average), "variance": float(spread), "below": float(below)}


def _octet(ups, variance):
    # In the precision that is set where it is called.
    return GaussianMixture(jnp.ones(8), jnp.asarray(np.concatenate([ups, -ups]), float), jnp.full(8, variance))


def _nodes(count):
    """The trapezoidal rule against a standard normal."""
    zs = jnp.linspace(-REACH, REACH, count)
    masses = jnp.exp(-0.5 * zs**2)
    return zs, masses / jnp.sum(masses)


@eqx.filter_jit
def _over_ends(noising, data, t):
    (zs, masses), (ws, shares) = _nodes(2001), _nodes(161)
    # Both components are alike.
    x0s = data.means[0, 0] + jnp.sqrt(data.covariances[0]) * zs
    x1s = noising.alpha(t) * x0s[:, None] + jnp.sqrt(noising.variance(t)) * ws[None]
    last = noising.marginal(data, t)
    start = jax.vmap(lambda x: data.log_prob(x[None]))(x0s) + 0.5 * x0s**2
    stop = jax.vmap(lambda x: last.log_prob(x[None]))(x1s.ravel()).reshape(x1s.shape) + 0.5 * x1s**2
    totals = start[:, None] - stop
    weights = masses[:, None] * shares[None]
    average = jnp.sum(weights * totals)
    # The share of the cell around a node that is below zero, to second order.
    slopes = jnp.maximum(jnp.abs(jnp.asarray(jnp.gradient(totals, axis=0))), jnp.finfo(totals.dtype).tiny)
    below = jnp.clip(0.5 - totals / slopes, 0.0, 1.0)
    return average, jnp.sum(weights * (totals - average) ** 2), jnp.sum(weights * below)


def _propagated(p):
    """What the steps of the simulated reversal give without noise: expectations go backwards through their kernels."""
    width = math.sqrt(2.0 * p.horizon / p.steps)
    spacing, reach = SPACING * width, p.mean + REACH * math.sqrt(max(p.wide, 1.0))
    count, arm = math.ceil(reach / spacing), math.ceil(STRIDE / SPACING)
    xs = spacing * np.arange(-count, count + 1)
    found = _propagate(OrnsteinUhlenbeck(), twins(p.mean, p.wide), jnp.linspace(0.0, p.horizon, p.steps + 1), jnp.asarray(xs), arm)
    return {name: float(value) for name, value in found.items()}


@eqx.filter_jit
def _propagate(noising, data, ts, xs, arm):
    stepper, horizon, spacing = EulerMaruyama(0.0), ts[-1], xs[1] - xs[0]
    dynamics = Reversed(noising, MixtureScore(noising, data), horizon)
    first, last = (jax.vmap(lambda x, t=t: noising.marginal(data, t).log_prob(x[None]))(xs) for t in (horizon, 0.0 * horizon))
    offsets = spacing * jnp.arange(-arm, arm + 1, dtype=xs.dtype)
    places = jnp.arange(xs.shape[0])[:, None] + jnp.arange(2 * arm + 1)[None]
    ahead = lambda values, how: jnp.pad(values, arm, mode=how)[places]

    def step(carry, times):
        (weights, midpoints, kernels, squares), (t0, t1) = carry, times

        def hop(x, offset):
            x0, x1 = x[None], x[None] + offset
            moved = Step(stepper, dynamics, t0, t1, x0, x1)
            return log_density(stepper, dynamics, t0, t1, x0, x1), medium_entropy_stratonovich(moved), log_ratio(moved)

        logs, midpoint, kernel = jax.vmap(lambda x: jax.vmap(lambda offset: hop(x, offset))(offsets))(xs)
        chances = spacing * jnp.exp(logs)
        later = ahead(kernels, "edge")
        return (
            jnp.sum(spacing * jnp.exp(logs - midpoint) * ahead(weights, "constant"), axis=1),
            jnp.sum(chances * (midpoint + ahead(midpoints, "edge")), axis=1),
            jnp.sum(chances * (kernel + later), axis=1),
            jnp.sum(chances * (kernel**2 + 2.0 * kernel * later + ahead(squares, "edge")), axis=1),
        ), None

    (weights, midpoints, kernels, squares), _ = lax.scan(step, (jnp.exp(last), -last, -last, last**2), (ts[:-1], ts[1:]), reverse=True)
    average = lambda values: spacing * jnp.sum(jnp.exp(first) * values)
    kernel_mean = average(first + kernels)
    return {
        "midpoint_theorem": spacing * jnp.sum(weights),
        "midpoint_mean": average(first + midpoints),
        "kernel_mean": kernel_mean,
        "kernel_variance": average(first**2 + 2.0 * first * kernels + squares) - kernel_mean**2,
    }


def _draw_entropies(ahead, back):
    figure, axes = panels(3, width=4.2)
    names = {"system": "system entropy Δs", "medium": "medium entropy Δsₘ", "total": "total entropy Δs + Δsₘ"}
    for ax, (name, label) in zip(axes, names.items(), strict=True):
        values = [np.asarray(getattr(found, name)) for found in (ahead, back)]
        low, high = np.quantile(np.concatenate(values), [0.001, 0.999])
        bins = np.linspace(low, high, 70)
        histogram(ax, values[0], label="noising", colour=COLOURS["first"], bins=bins)
        histogram(ax, values[1], label="generation", colour=COLOURS["second"], bins=bins)
        for sample, colour in zip(values, (COLOURS["first"], COLOURS["second"]), strict=True):
            ax.axvline(sample.mean(), color=colour, linestyle="--", linewidth=1)
        ax.set(xlabel=f"{label} (nats)", ylabel="probability density")
    axes[0].legend(frameon=False)
    return figure
