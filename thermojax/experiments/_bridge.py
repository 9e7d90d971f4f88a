r"""Schrödinger bridges: the closed form, entropic transport and learned networks, beside each other.

Of all processes between two densities the bridge is the one nearest to a Brownian reference, in path KL. Between Gaussians everything is
known. Between eight Gaussians on a ring and two moons the value of the problem is known through the entropic cost of Sinkhorn's iteration,
$KL(P\|R) = \mathrm{cost}/\epsilon - S(p_1) + \tfrac d2\ln 2\pi\epsilon$ with $\epsilon = \sigma^2$.

Reference:
    Y. Shi, V. De Bortoli, A. Campbell, A. Doucet, arXiv:2303.16852 (2023), for the learned bridges.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from pydantic import Field

from thermojax.bridges import Brownian, GaussianBridge, learn_bridge, LearnedBridge, sampled_bridge, SampledBridge
from thermojax.distributions import AbstractDistribution, Gaussian, GaussianMixture
from thermojax.ensemble import simulate
from thermojax.estimators import Estimate, jarzynski, mean
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.plots import COLOURS, panels


class Bridge(Parameters):
    """Parameters of `bridge`; the interval is from 0 to 1."""

    data: Literal["gaussians", "moons"] = Field("gaussians", description="two Gaussians, or eight Gaussians to two moons")
    sigma: float = Field(1.0, gt=0, description="noise of the Brownian reference")
    steps: int = Field(50, ge=4, description="time steps of the paths, short at both ends")
    sinkhorn: int = Field(1500, ge=100, description="samples of each end for Sinkhorn's iteration")
    coupling: Literal["independent", "entropic"] = Field("independent", description="pairs that the first round learns from")
    rounds: int = Field(5, ge=1, description="Markovian projections")
    iterations: int = Field(500, ge=1, description="gradient steps of a round")
    batch: int = Field(256, ge=2, description="pairs in a gradient step")
    pool: int = Field(8192, ge=100, description="paths that each direction makes in a round")
    width: int = Field(64, ge=4, description="units of a hidden layer")
    learning_rate: float = Field(3e-3, gt=0, description="first step of Adam in each round")
    samples: int = Field(10_000, ge=1000, description="paths that judge")


class Ends(NamedTuple):
    """The densities of both ends, and how they are called."""

    initial: AbstractDistribution
    final: AbstractDistribution
    words: str


def run(parameters: Bridge, key: jax.Array, progress: Progress) -> Results:
    """Solve one problem in all ways there are, and compare the processes by path KL."""
    p = parameters
    first_key, last_key, pair_key, fit_key, judge_key, entropy_key = jr.split(key, 6)
    ends, reference = _ends(p), Brownian(p.sigma)
    # Short steps at both ends: the noise of a step must be small beside the width of a density.
    ts = 0.5 * (1 - jnp.cos(jnp.pi * jnp.linspace(0.0, 1.0, p.steps + 1)))
    exact = None
    if isinstance(ends.initial, Gaussian) and isinstance(ends.final, Gaussian):
        exact = GaussianBridge(ends.initial, ends.final, reference)
    with progress.stage("Sinkhorn's iteration"):
        x0s, x1s = ends.initial.sample(p.sinkhorn, key=first_key), ends.final.sample(p.sinkhorn, key=last_key)
        static = jax.block_until_ready(sampled_bridge(x0s, x1s, reference))
    with progress.stage("learning the bridge", p.rounds) as done:
        pairs = static.pairs(p.pool, key=pair_key) if p.coupling == "entropic" else None
        settings = {"rounds": p.rounds, "steps": p.iterations, "batch": p.batch, "pool": p.pool, "width": p.width}
        rate = p.learning_rate
        learned = learn_bridge(
            ends.initial,
            ends.final,
            reference,
            ts,
            pairs=pairs,
            learning_rate=rate,
            checkpoint=progress.checkpoint("learning the bridge"),
            progress=done,
            key=fit_key,
            **settings,
        )

    results = Results()
    with progress.stage("judging"):
        value = _value(static, exact, ends, p, entropy_key)
        _judge(results, learned, static, exact, value, ends, ts, p, judge_key)
    results.figures["paths"] = Picture(
        _draw_paths(learned, static, ends, ts, judge_key),
        f"Paths from {ends.words}, of the learned bridge and of that between samples; grey, where they start, orange, where they end.",
    )
    results.figures["marginals"] = Picture(
        _draw_marginals(learned, static, exact, ends, ts, judge_key),
        "Density of the first coordinate on the way: the learned bridge, the bridge between samples"
        + (", and the closed form (dashed)." if exact is not None else "; at both ends the given density (dashed)."),
    )
    results.figures["rounds"] = Picture(
        _draw_rounds(learned, value, results.estimates.get("exact_to_reference")),
        "Path KL to the reference after each Markovian projection, with four standard errors; dashed, the value of the problem"
        + ("; dotted, the closed form at the same time step." if exact is not None else "."),
    )
    return results


def _ends(p):
    if p.data == "gaussians":
        initial = Gaussian([-1.0, -0.5], [[1.0, 0.4], [0.4, 0.5]])
        return Ends(initial, Gaussian([1.0, 0.5], [[0.3, -0.2], [-0.2, 0.8]]), "one Gaussian to another")
    from sklearn.datasets import make_moons

    angles = 2 * np.pi * np.arange(8) / 8
    ring = GaussianMixture(np.ones(8), 2.5 * np.stack([np.cos(angles), np.sin(angles)], 1), np.full(8, 0.1))
    # Moons with a density: Gaussians along them, so that the entropy is known and samples are fresh.
    moons, _ = make_moons(200, noise=None)
    last = GaussianMixture(np.ones(200), 1.5 * (moons - np.array([0.5, 0.25])), np.full(200, 0.06))
    return Ends(ring, last, "eight Gaussians to two moons")


def _value(static, exact, ends, p, key):
    """KL(P || R) of the bridge: by the closed form, or by the entropic cost and the entropy of the last density."""
    if exact is not None:
        return Estimate(*(jnp.asarray(a) for a in (exact.path_kl(), 0.0, jnp.inf, True, jnp.inf, 0.0)))
    surprise = mean(-jax.vmap(ends.final.log_prob)(ends.final.sample(20 * p.samples, key=key)))
    cost, epsilon = static.entropic_cost, p.sigma**2
    value = cost.value / epsilon - surprise.value + jnp.log(2 * jnp.pi * epsilon)
    return cost._replace(value=value, stderr=jnp.hypot(cost.stderr / epsilon, surprise.stderr))


def _judge(results, learned, static, exact, value, ends, ts, p, key):
    reference_key, exact_key, back_key, fresh_key, paths_key, static_key = jr.split(key, 6)
    walks = learned.against(learned.reference, ts).forward(p.samples, key=reference_key)
    meaning = "path KL of the bridge to the reference: the value of the problem"
    if exact is None:
        results.add("value", value, meaning)
    else:
        results.estimates["value"] = Quantity(float(value.value), meaning)
    meaning = "path KL of the learned bridge to the reference, of the kernels at this time step"
    results.add("learned_to_reference", mean(walks.log_ratios), meaning)
    cost = static.entropic_cost
    meaning = "entropic cost by Sinkhorn's iteration between samples; the bias of finite samples is not in the error bar"
    results.add("entropic_cost", cost, meaning, exact=None if exact is None else float(exact.entropic_cost()))
    if exact is not None:
        ratios = exact.against(exact.reference, ts).forward(p.samples, key=reference_key).log_ratios
        results.add("exact_to_reference", mean(ratios), "the same for the closed form, stepped alike")
        learned_to_exact = mean(learned.against(exact.dynamics, ts).forward(p.samples, key=exact_key).log_ratios)
        results.add("learned_to_exact", learned_to_exact, "path KL of the learned bridge to the closed form")
        ratios = exact.against(learned.dynamics, ts).forward(p.samples, key=back_key).log_ratios
        results.add("exact_to_learned", mean(ratios), "path KL of the closed form to the learned bridge")
        # Zero path by path in continuous time: dP/dR = dP/dB dB/dR, and dB/dR is a function of the ends.
        other = learned.against(exact.dynamics, ts).forward(p.samples, key=reference_key)
        gap = walks.log_ratios - other.log_ratios - jax.vmap(exact.log_ratio)(walks.x0s, walks.x1s)
        meaning = "KL(P || R) - KL(P || bridge) - <ln d(bridge)/dR> of the learned P: the three sides of Pythagoras, zero but for the step"
        results.add("pythagoras", mean(gap), meaning)
    directions = learned.directions(ts)
    ahead = directions.forward(p.samples, key=back_key).log_ratios
    results.add("directions", mean(ahead), "path KL of the learned forward process to the learned backward one; zero but for the step")
    results.add("directions_theorem", jarzynski(ahead, beta=1.0), "logarithm of <exp(-ratio)> of these, zero exactly", exact=0.0)
    fresh = ends.final.sample(p.samples, key=fresh_key)
    theirs = static.paths(jnp.array([0.0, 1.0]), p.samples, key=static_key)[-1]
    for name, xs, words in (("learned", walks.x1s, "the learned bridge"), ("sinkhorn", theirs, "the bridge between samples")):
        distance, spread = _energy_distance(xs[:1000], fresh[:1000], paths_key)
        meaning = f"energy distance of the ends of {words} to fresh samples, less its mean for equal densities; error: its spread for these"
        results.estimates[f"end_{name}"] = Quantity(distance, meaning, stderr=spread)
    words = "the closed form" if exact is not None else "Sinkhorn's cost"
    results.conclusions.append(
        f"The learned bridge costs {float(mean(walks.log_ratios).value):.3f} ± {float(mean(walks.log_ratios).stderr):.3f} nats of path KL; "
        f"{words} says {float(value.value):.3f}"
        + (
            f" ± {float(value.stderr):.3f}."
            if exact is None
            else f", and {results.estimates['exact_to_reference'].value:.3f} at this time step."
        )
    )
    own = mean(walks.log_ratios)
    gap, error = float(own.value - value.value), float(jnp.hypot(own.stderr, value.stderr))
    if exact is None and abs(gap) > 4 * error:
        both = results.estimates["directions"].value
        results.conclusions.append(
            f"These differ by {gap:+.3f}, more than their errors: the networks have not found the bridge. "
            f"Their two directions are {both:.2f} nats apart."
        )
    if exact is not None:
        found = results.estimates["learned_to_exact"]
        results.conclusions.append(f"Its path KL to the closed form is {found.value:.4f} ± {found.stderr:.4f} nats.")
    results.conclusions.append(results.tally())


@jax.jit
def _permuted(xs, ys, key):
    both = jnp.concatenate([xs, ys])
    apart = jnp.sqrt(jnp.sum((both[:, None] - both[None]) ** 2, axis=-1))
    signs = jnp.concatenate([jnp.full(xs.shape[0], 1 / xs.shape[0]), jnp.full(ys.shape[0], -1 / ys.shape[0])])
    shuffled = jax.vmap(lambda k: jr.permutation(k, signs))(jr.split(key, 100))
    distance = lambda s: -s @ apart @ s
    return distance(signs), jax.vmap(distance)(shuffled)


def _energy_distance(xs: Any, ys: Any, key: Any) -> tuple[float, float]:
    """The energy distance of two ensembles over that of the same samples dealt at random, and the spread of the latter."""
    distance, null = _permuted(xs, ys, key)
    return float(distance - jnp.mean(null)), float(jnp.std(null))


def _draw_paths(learned: LearnedBridge, static: SampledBridge, ends: Ends, ts: Any, key: Any):
    figure, axes = panels(2, width=4.6, height=4.4)
    start_key, noise_key, pair_key = jr.split(key, 3)
    x0s = ends.initial.sample(200, key=start_key)
    axes[1].sharex(axes[0])
    axes[1].sharey(axes[0])
    drawn = (
        ("learned", simulate(learned.dynamics, x0s, ts, key=noise_key)),
        ("between samples (Sinkhorn)", static.paths(ts, 200, key=pair_key)),
    )
    for ax, (title, paths) in zip(axes, drawn, strict=True):
        paths = np.asarray(paths)
        ax.plot(*paths[:, :40].transpose(2, 0, 1), color=COLOURS["first"], linewidth=0.6, alpha=0.45)
        ax.plot(*paths[0].T, ".", markersize=4, color=COLOURS["faint"], label="start")
        ax.plot(*paths[-1].T, ".", markersize=4, color=COLOURS["second"], label="end")
        ax.set(xlabel="$x_1$", ylabel="$x_2$", title=title, aspect="equal")
    axes[0].legend(frameon=False)
    return figure


def _draw_marginals(learned: Any, static: Any, exact: GaussianBridge | None, ends: Ends, ts: Any, key: Any):
    figure, axes = panels(4, width=2.9, height=2.8)
    start_key, noise_key, pair_key = jr.split(key, 3)
    places = np.linspace(0, ts.shape[0] - 1, 4).astype(int)
    paths = np.asarray(simulate(learned.dynamics, ends.initial.sample(5000, key=start_key), ts, key=noise_key))[places, :, 0]
    theirs = np.asarray(static.paths(ts[places], 5000, key=pair_key))[..., 0]
    low, high = np.quantile(paths, [0.0005, 0.9995])
    bins = np.linspace(low, high, 60)
    middles = 0.5 * (bins[1:] + bins[:-1])
    for k, (ax, place) in enumerate(zip(axes, places, strict=True)):
        for xs, colour, label in ((paths[k], "first", "learned"), (theirs[k], "second", "samples")):
            ax.stairs(np.histogram(xs, bins, density=True)[0], bins, color=COLOURS[colour], label=label)
        density = _density_of_first(exact.marginal(ts[place]) if exact is not None else (ends.initial, None, None, ends.final)[k], middles)
        if density is not None:
            ax.plot(middles, density, "--", color=COLOURS["exact"], linewidth=1, label="exact")
        ax.set(xlabel="$x_1$", title=f"t = {float(ts[place]):.2f}")
    axes[0].set_ylabel("probability density")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def _density_of_first(density, xs):
    """The density of the first coordinate of a Gaussian or of a mixture."""
    if density is None:
        return None
    full = GaussianMixture([1.0], density.mean[None], density.covariance[None]) if isinstance(density, Gaussian) else density
    variances = np.asarray(full.covariances if full.covariances.ndim < 3 else full.covariances[:, 0, 0])
    weights, means = np.asarray(full.weights) / np.sum(np.asarray(full.weights)), np.asarray(full.means[:, 0])
    bells = np.exp(-0.5 * (xs[:, None] - means) ** 2 / variances) / np.sqrt(2 * np.pi * variances)
    return bells @ weights


def _draw_rounds(learned: Any, value: Any, stepped: Quantity | None):
    figure, (ax,) = panels()
    rounds = 1 + np.arange(learned.path_kl.value.shape[0])
    ax.errorbar(rounds, learned.path_kl.value, 4 * learned.path_kl.stderr, fmt="o-", markersize=4, color=COLOURS["first"], label="learned")
    ax.axhline(float(value.value), color=COLOURS["exact"], linestyle="--", linewidth=1, label="value of the problem")
    if stepped is not None:
        ax.axhline(stepped.value, color=COLOURS["exact"], linestyle=":", linewidth=1, label="closed form at this time step")
    if float(value.stderr) > 0:
        width = 4 * float(value.stderr)
        ax.axhspan(float(value.value) - width, float(value.value) + width, color="0.9", label="four standard errors of it")
    ax.set(xlabel="round", ylabel="path KL to the reference / nats", xticks=rounds)
    ax.legend(frameon=False)
    return figure


EXPERIMENT = Experiment("bridge", "Schrödinger bridges by closed form, entropic transport and learning", Bridge, run)
