"""Where a sampler of few steps should put them: time grids compared on known mixtures, exactly, and on a model of real digits."""

from typing import Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from pydantic import Field, model_validator

from thermojax._check import require
from thermojax.distributions import Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import AbstractNoising, LogSnrLinear
from thermojax.experiments import _digits
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.generative import (
    Ancestral,
    Calibrated,
    chain_density,
    constant_speed_grid,
    denoising_profile,
    DenoisingProfile,
    dynamic_grid,
    entropic_grid,
    importance_nll,
    kernel_terms,
    length_grid,
    MixtureScore,
    named_grid,
    noise_profile,
    path_kl,
    sample_sde,
    squared_wasserstein,
    transport_cost,
)
from thermojax.plots import COLOURS, panels

GRIDS = {
    "log_snr": "#9a9a9a",
    "cosine": "#5aae61",
    "edm": "#d95f02",
    "constant_speed": "#9970ab",
    "entropic": "#c2a500",
    "length": "#56b4e9",
    "optimised": "#1b6ca8",
}
VARIANCES = {"posterior": "the variance of DDPM", "optimal": "the variance of least cost"}


def mixtures() -> dict[str, GaussianMixture]:
    """Data in one dimension; made when asked for, since they own arrays."""
    return {
        "broad": GaussianMixture(np.ones(2), np.array([[1.0], [-1.0]]), np.full(2, 0.4)),
        "narrow": GaussianMixture(np.array([0.8, 0.2]), np.array([[-1.0], [1.0]]), np.full(2, 0.02)),
    }


def noising() -> LogSnrLinear:
    """The forward process of the mixtures."""
    # At 8 nats below the narrow components' width there is nothing left to denoise that matters; by -8 nothing of the data is left.
    return LogSnrLinear(8.0, -8.0)


class NoiseSchedule(Parameters):
    """Parameters of `noise-schedule`."""

    steps: list[int] = Field([4, 8, 16], min_length=1, description="numbers of denoising steps to compare")
    data: Literal["both", "mixture", "digits"] = Field("both", description="what to compare them on")
    levels: int = Field(129, ge=33, description="noise levels of the profile: the candidates of the optimised grid")
    iterations: int = Field(300, ge=1, description="gradient steps of the digits model; `digits` itself trains for longer")
    batch: int = Field(128, ge=2, description="images in a gradient step")
    width: int = Field(64, ge=4, description="channels of the network")
    depth: int = Field(3, ge=1, description="blocks of the network")
    images: int = Field(512, ge=8, description="images to generate for each grid")
    groups: int = Field(4, ge=2, description="independent groups of these, whose spread is the error bar")
    projections: int = Field(200, ge=1, description="directions of the sliced distance")
    exact_images: int = Field(32, ge=2, description="held-out images for the likelihood by importance weights")
    particles: int = Field(16, ge=2, description="noising paths for each of them")

    @model_validator(mode="after")
    def _check_groups(self):
        require(self.images >= self.groups, "images", f"be at least {self.groups}, one in each of the `groups`", self.images)
        return self


def run(parameters: NoiseSchedule, key: jax.Array, progress: Progress) -> Results:
    """Compare grids by path KL and by what is generated, on mixtures by quadrature and on held-out digits."""
    p, results = parameters, Results()
    profiles, tables = {}, {}
    if p.data != "digits":
        with progress.stage("mixtures, by quadrature", len(mixtures()) * len(p.steps)) as done:
            for k, (name, mixture) in enumerate(mixtures().items()):
                profiles[name], tables[name] = _compare_mixture(name, mixture, p, results, lambda n, k=k: done(k * len(p.steps) + n))
    if p.data != "mixture":
        profiles["digits"], tables["digits"] = _compare_digits(p, key, progress, results)
    for name in tables:
        results.conclusions += _conclude(name, tables[name], p)
    results.figures["path_kl"] = Picture(
        _draw_costs(tables, p.steps),
        "Path KL of noising and generation against the number of steps (for digits the part that the time step adds), for both variances "
        "of the denoising kernel. The optimised grid is made for the variance it is shown with.",
    )
    results.figures["grids"] = Picture(
        _draw_grids(profiles, tables, p.steps[len(p.steps) // 2]),
        f"The noise levels that each grid visits with {p.steps[len(p.steps) // 2]} steps.",
    )
    results.figures["density"] = Picture(
        _draw_density(profiles),
        "What short steps cost by noise level: the square of the length element, per coordinate. Grids of equal length put their steps "
        "where its root is large. With the variance of least cost only what is not Gaussian is left.",
    )
    return results


def make_grids(profile: DenoisingProfile, noising: AbstractNoising, speeds, steps: int, variance: str) -> dict[str, jax.Array]:
    """Every grid of that many steps; those that depend on the variance are made for it."""
    start, horizon = profile.ts[0], profile.ts[-1]
    named = lambda name: named_grid(name, noising, start, horizon, steps)
    return {
        "log_snr": named("log-snr"),
        "cosine": named("cosine"),
        "edm": named("edm"),
        "constant_speed": constant_speed_grid(speeds, steps),
        "entropic": entropic_grid(profile, steps),
        "length": length_grid(profile, steps, variance=variance),
        "optimised": dynamic_grid(profile, steps, variance=variance),
    }


def sliced_distance(xs: np.ndarray, ys: np.ndarray, directions: np.ndarray) -> float:
    """The sliced distance W2 of two sets of configurations: the root mean square over directions of that of the projections."""
    shares = (np.arange(max(len(xs), len(ys))) + 0.5) / max(len(xs), len(ys))
    first, second = (np.quantile(points @ directions.T, shares, axis=0) for points in (xs, ys))
    return float(np.sqrt(np.mean((first - second) ** 2)))


def _compare_mixture(name, mixture, p, results, done):
    score = MixtureScore(noising(), mixture)
    profile = denoising_profile(score, noising(), mixture, levels=4 * p.levels - 3)
    speeds = transport_cost(noising(), mixture)
    steppers, table = {"posterior": Ancestral(), "optimal": Calibrated(profile)}, {}
    for n, steps in enumerate(p.steps):
        for variance, stepper in steppers.items():
            for grid, ts in make_grids(profile, noising(), speeds, steps, variance).items():
                paths = float(path_kl(score, noising(), mixture, ts, stepper=stepper).total)
                end = chain_density(score, noising(), mixture, ts, stepper=stepper)
                found = {"path_kl": paths, "kl": float(end.kl), "wasserstein": float(end.wasserstein)}
                table[variance, grid, steps] = {"ts": np.asarray(ts), "cost": paths, "distance": found["wasserstein"]}
                words = f"{grid.replace('_', ' ')} grid, {steps} steps, {VARIANCES[variance]}"
                add = lambda what, meaning, v=variance, g=grid, s=steps, w=words, f=found: results.estimates.update(
                    {f"{name}_{v}_{g}_{s}_{what}": Quantity(f[what], f"{meaning} ({name} mixture; {w})")}
                )
                add("path_kl", "path KL, nats")
                add("kl", "negative log-likelihood less entropy, nats")
                add("wasserstein", "distance W2 of what is made")
        done(n + 1)
    size = float(jnp.sqrt(squared_wasserstein(mixture, mixture.moments())))
    results.estimates[f"{name}_gaussian_wasserstein"] = Quantity(size, f"distance W2 of the Gaussian of the same moments ({name} mixture)")
    return profile, table


def _compare_digits(p, key, progress, results):
    train_key, profile_key, speed_key, level_key, term_key, draw_key, direction_key, weight_key = jr.split(key, 8)
    noising, dim = _digits.noising(), _digits.DIM
    data = _digits.load(0.2)
    seen, unseen = data.dequantised(data.train, 1), data.dequantised(data.held_out, 2)
    size = p.images // p.groups
    require(size <= len(seen), "images", f"be at most {len(seen)}, all images of training, in each of the `groups`", size)
    settings = _digits.Digits.model_validate({name: getattr(p, name) for name in ("iterations", "batch", "width", "depth")})
    score = _digits.train(data, settings, train_key, progress).model
    with progress.stage("error of the score by noise level"):
        profile = jax.block_until_ready(denoising_profile(score, noising, seen, levels=p.levels, key=profile_key))
        gaussian = Gaussian(np.zeros(dim), np.cov(seen.T, bias=True))
        speeds = transport_cost(noising, gaussian, nodes=32, samples=128, key=speed_key)
    normals = np.asarray(jr.normal(direction_key, (p.projections, dim)))
    directions = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    distances = lambda images: [sliced_distance(images[k * size : (k + 1) * size], unseen, directions) for k in range(len(images) // size)]
    steppers, table = {"posterior": Ancestral(), "optimal": Calibrated(profile)}, {}
    shrunk = noising.alpha(jnp.zeros(()))
    continuous = noise_profile(score, noising, unseen, key=level_key)
    results.add("digits_continuous_bound", continuous.bound, "the bound of infinitely many steps, nats per dimension", scale=1 / dim)
    with progress.stage("grids, on held-out images", len(p.steps)) as done:
        for n, steps in enumerate(p.steps):
            for variance, stepper in steppers.items():
                for grid, ts in make_grids(profile, noising, speeds, steps, variance).items():
                    # The same noise for all: they compare with less of it than each has.
                    terms = kernel_terms(score, noising, unseen, ts, stepper=stepper, key=term_key)
                    made = sample_sde(noising, score, p.images, ts, prior=standard_normal(dim), stepper=stepper, key=draw_key) / shrunk
                    apart = np.asarray(distances(np.asarray(made)))
                    cost = float(terms.bound.value - continuous.bound.value) / dim
                    table[variance, grid, steps] = {"ts": np.asarray(ts), "cost": cost, "distance": float(apart.mean())}
                    label = f"digits_{variance}_{grid}_{steps}"
                    words = f"({grid.replace('_', ' ')} grid, {steps} steps, {VARIANCES[variance]})"
                    results.add(f"{label}_bound", terms.bound, f"bound of held-out images, nats per dimension {words}", scale=1 / dim)
                    spread = float(apart.std(ddof=1) / np.sqrt(len(apart)))
                    results.estimates[f"{label}_sliced"] = Quantity(float(apart.mean()), f"sliced W2 to held-out images {words}", spread)
            done(n + 1)
    real = np.asarray(distances(seen[: len(seen) // size * size]))
    error = float(real.std(ddof=1) / np.sqrt(len(real))) if len(real) > 1 else None
    results.estimates["digits_training_sliced"] = Quantity(
        float(real.mean()), "sliced W2 of as many training images to the held-out ones", error
    )
    few, steps = unseen[: p.exact_images], p.steps[-1]
    with progress.stage("likelihood by importance weights"):
        for grid in ("log_snr", "cosine", "optimised"):
            ts = table["optimal", grid, steps]["ts"]
            found = importance_nll(score, noising, few, ts, particles=p.particles, stepper=steppers["optimal"], key=weight_key)
            words = f"{grid.replace('_', ' ')} grid, {steps} steps, {VARIANCES['optimal']}; first {p.exact_images} held-out images"
            results.add(
                f"digits_{grid}_nll",
                found.nll,
                f"negative log-likelihood by importance weights, nats per dimension ({words})",
                scale=1 / dim,
            )
    return profile, table


def _conclude(name, table, p):
    unit = "nats per dimension added by the time step" if name == "digits" else "nats of path KL"
    what = "sliced W2" if name == "digits" else "W2"
    sentences = []
    for variance, words in VARIANCES.items():
        ranks = []
        for steps in p.steps:
            found = {grid: table[variance, grid, steps] for grid in GRIDS}
            others = {grid: row["cost"] for grid, row in found.items() if grid not in ("optimised", "length")}
            best = min(others, key=lambda grid: others[grid])
            nearest = min(found, key=lambda grid: found[grid]["distance"])
            ranks.append(
                f"{steps} steps: {found['optimised']['cost']:.4g} against {others[best]:.4g} of the best other ({best.replace('_', ' ')}); "
                f"{what} {found['optimised']['distance']:.3f}, least {found[nearest]['distance']:.3f} ({nearest.replace('_', ' ')})"
            )
        sentences.append(f"{name.capitalize()}, {words}, optimised grid in {unit}. " + ". ".join(ranks) + ".")
    least = lambda variance, steps: min(table[variance, grid, steps]["distance"] for grid in GRIDS)
    first = p.steps[0]
    ratio = table["posterior", "optimised", first]["cost"] / table["optimal", "optimised", first]["cost"]
    sentences.append(
        f"{name.capitalize()}: at {first} steps the variance of least cost lowers the cost of the optimised grid {ratio:.3g} times, and "
        f"the least {what} from {least('posterior', first):.3f} to {least('optimal', first):.3f}."
    )
    return sentences


def _draw_costs(tables, counts):
    figure, axes = panels(2, rows=len(tables), width=4.2, height=2.9)
    places = [(name, variance) for name in tables for variance in VARIANCES]
    for ax, (name, variance) in zip(axes, places, strict=True):
        for grid, colour in GRIDS.items():
            values = [tables[name][variance, grid, steps]["cost"] for steps in counts]
            ax.plot(counts, values, "o-", color=colour, markersize=3, label=grid.replace("_", " "))
        ax.set(xscale="log", yscale="log", xlabel="steps", ylabel="nats / dimension" if name == "digits" else "path KL (nats)")
        ax.set_xticks(counts, [str(steps) for steps in counts])
        ax.minorticks_off()
        ax.set_title(f"{name}, {VARIANCES[variance]}", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    return figure


def _draw_grids(profiles, tables, steps):
    figure, axes = panels(len(tables), width=4.6)
    for ax, name in zip(axes, tables, strict=True):
        profile = profiles[name]
        rows = {grid: tables[name]["posterior", grid, steps]["ts"] for grid in GRIDS}
        rows["optimised, variance of least cost"] = tables[name]["optimal", "optimised", steps]["ts"]
        for row, (grid, ts) in enumerate(rows.items()):
            levels = np.interp(ts, np.asarray(profile.ts), np.asarray(profile.log_snr))
            ax.plot(levels, np.full(len(ts), row), "|", markersize=12, color=GRIDS.get(grid, COLOURS["exact"]))
        ax.set_yticks(range(len(rows)), [grid.replace("_", " ") for grid in rows])
        ax.invert_xaxis()
        ax.set(xlabel="log signal-to-noise ratio")
        ax.set_title(name, fontsize=8)
    return figure


def _draw_density(profiles):
    figure, axes = panels(len(profiles), width=4.6)
    for ax, (name, profile) in zip(axes, profiles.items(), strict=True):
        levels, errors, dim = np.asarray(profile.log_snr), np.asarray(profile.errors), float(profile.dim)
        slopes = np.gradient(errors, levels)
        squares = {"posterior": errors - slopes, "optimal": errors - slopes - errors**2 / dim}
        for (variance, values), colour in zip(squares.items(), ("first", "second"), strict=True):
            ax.plot(levels, np.maximum(values, 0.0) / dim, color=COLOURS[colour], label=VARIANCES[variance])
        ax.plot(levels, errors / dim, color=COLOURS["faint"], linestyle="--", label="error of the predicted noise")
        ax.invert_xaxis()
        ax.set(xlabel="log signal-to-noise ratio", ylabel="per coordinate", ylim=(0, None))
        ax.set_title(name, fontsize=8)
    axes[0].legend(frameon=False, fontsize=7)
    return figure


EXPERIMENT = Experiment(
    "noise-schedule", "optimise where a sampler of few steps puts them, on mixtures and on real digits", NoiseSchedule, run
)
