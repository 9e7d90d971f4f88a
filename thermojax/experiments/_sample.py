"""Sample a target with known or unknown normaliser by one method, or by all of them side by side."""

import time
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from pydantic import Field

from thermojax.annealing import Adjusted, Annealing, Geometric, length_schedule, smc
from thermojax.distributions import Gaussian
from thermojax.estimators import Estimate
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.measures import assess, Assessment
from thermojax.optimize import fit
from thermojax.plots import COLOURS, panels
from thermojax.samplers import (
    controlled,
    DetailedBalance,
    learned,
    LogVariance,
    METHODS,
    replay,
    ReverseKL,
    SubTrajectoryBalance,
    TrajectoryBalance,
)
from thermojax.targets import check_target, TARGETS

# Spread of the prior for each target: where its coordinates are, roughly.
SCALES = {
    "funnel": 1.0,
    "gaussians40": 25.0,
    "grid25": 8.0,
    "multi-well": 2.0,
    "many-well": 2.0,
    "breast-cancer": 1.0,
    "iris": 1.0,
    "wine": 1.0,
    "brownian": 1.0,
    "eight-schools": 2.0,
    "cox": 1.0,
}
LOSSES = {
    "reverse-kl": ReverseKL,
    "log-variance": LogVariance,
    "trajectory-balance": TrajectoryBalance,
    "sub-trajectory-balance": SubTrajectoryBalance,
    "detailed-balance": DetailedBalance,
}
# Particles of an island of sequential Monte Carlo.
_ISLAND = 32


class Sample(Parameters):
    """Parameters of `sample`."""

    target: Literal[
        "funnel", "gaussians40", "grid25", "multi-well", "many-well", "breast-cancer", "iris", "wine", "brownian", "eight-schools", "cox"
    ] = Field("funnel", description="what is sampled")
    method: Literal["ais", "smc", "ula", "mcd", "cmcd", "gbs", "dds", "dis", "pis", "all"] = Field(
        "cmcd", description="annealed importance sampling, sequential Monte Carlo, a controlled sampler, or all of them"
    )
    inertia: bool = Field(default=False, description="whether a controlled sampler has velocities; with method=all both kinds run")
    loss: Literal["reverse-kl", "log-variance", "trajectory-balance", "sub-trajectory-balance", "detailed-balance"] = Field(
        "reverse-kl", description="what training of a controlled sampler lowers"
    )
    replayed: bool = Field(default=False, description="whether half of the paths of a balance start from replayed states of the target")
    steps: int = Field(64, ge=1, description="steps of a path")
    scale: float = Field(0.0, ge=0, description="spread of the prior; 0 for one that suits the target")
    iterations: int = Field(1000, ge=1, description="gradient steps")
    batch: int = Field(128, ge=2, description="paths in a gradient step")
    learning_rate: float = Field(0.005, gt=0, description="first step of Adam; falls to zero as a cosine")
    width: int = Field(64, ge=1, description="units of a hidden layer of the network")
    samples: int = Field(8192, ge=2 * _ISLAND, description="paths that judge a method, from each side")


class _Run(NamedTuple):
    """One method's result."""

    found: Assessment
    seconds: float
    curve: np.ndarray
    """Seconds of training and ELBO on fixed noise, after each round; empty without training."""


def run(parameters: Sample, key: jax.Array, progress: Progress) -> Results:
    """Train where there is something to train, then draw fresh paths from both sides, where the target can be drawn from."""
    p = parameters
    target, look_key, run_key = TARGETS[p.target](), *jr.split(key)
    scale = p.scale or SCALES[p.target]
    prior = Gaussian(jnp.zeros(target.dim), scale**2)
    check_target(target, prior.sample(256, key=look_key))
    if p.method != "all":
        names = [p.method + ("-inertial" if p.inertia and p.method in METHODS else "")]
    else:
        names = ["ais", "smc", *METHODS, *(f"{name}-inertial" for name, method in METHODS.items() if method.inertia)]
    runs: dict[str, _Run] = {}
    for i, name in enumerate(names):
        own_key = jr.fold_in(run_key, i)
        make = {"ais": _annealed, "smc": _populations}.get(name, _controlled)
        runs[name] = make(name, p, target, prior, scale, own_key, progress)

    results = Results()
    exact = None if target.log_z is None else float(target.log_z)
    for name, done in runs.items():
        _report(results, name, done, exact)
    results.figures["bounds"] = Picture(_draw_bounds(runs, exact), _bounds_caption(exact))
    if any(len(done.curve) for done in runs.values()):
        words = "ELBO on fixed noise against seconds of training, compilation included."
        results.figures["training"] = Picture(_draw_training(runs, exact), words)
    return results


def _drawable(target: Any) -> bool:
    try:
        target.sample(1, key=jr.key(0))
    except ValueError:
        return False
    return True


def _annealed(name, p, target, prior, scale, key, progress):
    pilot_key, judge_key = jr.split(key)
    tick = time.perf_counter()
    with progress.stage(f"{name}: schedule and paths"):
        chain = _chain(p, target, prior, scale)
        if p.steps > 1:
            chain = chain.along(length_schedule(chain, 512, key=pilot_key).lams)
        found = assess(chain, p.samples, backward=_drawable(target), log_z=target.log_z, key=judge_key)
    return _Run(found, time.perf_counter() - tick, np.zeros((0, 2)))


def _populations(name, p, target, prior, scale, key, progress):
    pilot_key, judge_key = jr.split(key)
    tick = time.perf_counter()
    with progress.stage(f"{name}: schedule and islands"):
        chain = _chain(p, target, prior, scale)
        if p.steps > 1:
            chain = chain.along(length_schedule(chain, 512, key=pilot_key).lams)
        found = smc(chain, _ISLAND, islands=p.samples // _ISLAND, key=judge_key).report
    return _Run(found, time.perf_counter() - tick, np.zeros((0, 2)))


def _chain(p, target, prior, scale):
    # Metropolis-adjusted Langevin steps of a tenth of the prior's relaxation time at most.
    kernel = Adjusted(scale**2 * min(0.1, 3.0 / p.steps))
    return Annealing(Geometric(prior, target), prior, jnp.linspace(0.0, 1.0, p.steps + 1), kernel)


def _controlled(name, p, target, prior, scale, key, progress):
    net_key, fit_key, look_key, judge_key = jr.split(key, 4)
    method, _, inertial = name.partition("-")
    sampler = controlled(method, target, dim=target.dim, steps=p.steps, scale=scale, width=p.width, inertia=bool(inertial), key=net_key)
    tick, times = time.perf_counter(), []
    judge = ReverseKL(512)
    every = max(1, p.iterations // 20)

    def note(made, _, done):
        times.append((made, time.perf_counter() - tick))
        done(made)

    with progress.stage(f"{name}: training", p.iterations) as done:
        ends = replay(sampler, 4096, key=look_key) if p.replayed and p.loss != "reverse-kl" else None
        loss = ReverseKL(p.batch) if p.loss == "reverse-kl" else LOSSES[p.loss](p.batch, ends=ends)
        rate = optax.cosine_decay_schedule(p.learning_rate, p.iterations)
        found = fit(
            loss,
            sampler,
            optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
            steps=p.iterations,
            where=learned,
            average=0.99,
            validate=lambda s: judge(s, look_key),
            every=every,
            checkpoint=progress.checkpoint(f"{name}: training"),
            progress=lambda made, value: note(made, value, done),
            key=fit_key,
        )
    # Seconds of this process: a resumed run does not know those of the rounds before.
    curve = np.array([(seconds, -float(found.validation[(made - 1) // every])) for made, seconds in times]).reshape(-1, 2)
    with progress.stage(f"{name}: judging on fresh noise"):
        assessed = assess(found.model, p.samples, backward=_drawable(target), log_z=target.log_z, key=judge_key)
    return _Run(assessed, time.perf_counter() - tick, curve)


def _report(results, name, done, exact):
    found, label = done.found, name.replace("-", "_")
    results.add(f"{label}_log_z", found.log_z, f"{name}: log Z by importance weights", exact=exact)
    if found.log_z_both is not None:
        results.add(f"{label}_log_z_both", found.log_z_both, f"{name}: log Z by Bennett's estimate from both sides", exact=exact)
    results.add(f"{label}_elbo", found.elbo, f"{name}: ELBO, below log Z")
    if found.eubo is not None:
        results.add(f"{label}_eubo", found.eubo, f"{name}: EUBO, above log Z")
    share = "effective share of the paths as importance samples" + (" (of the islands)" if name == "smc" else "")
    results.estimates[f"{label}_efficiency"] = Quantity(float(found.efficiency), f"{name}: {share}")
    if found.efficiency_backward is not None:
        words = f"{name}: the same share seen from exact samples of the target, which falls where modes are missed"
        results.estimates[f"{label}_efficiency_backward"] = Quantity(float(found.efficiency_backward), words)
    results.estimates[f"{label}_seconds"] = Quantity(done.seconds, f"{name}: seconds, compilation and judging included")
    upper = "" if found.eubo is None else f", EUBO {float(found.eubo.value):.3g}"
    best: Estimate = found.best
    results.conclusions.append(
        f"{name}: log Z = {float(best.value):.3f} ± {float(best.stderr):.3f} ({found.trust.verdict}), ELBO {float(found.elbo.value):.3f}"
        f"{upper}, effective share {100 * float(found.efficiency):.3g} %, {done.seconds:.0f} s."
        + (f" Exact: {exact:.4f}." if exact is not None else "")
    )


def _bounds_caption(exact):
    dashed = "; dashed, the exact value" if exact is not None else ""
    return (
        f"From ELBO to EUBO (bars, cut at the frame), and log Z with its error bar (dots; hollow where it is not to be believed){dashed}."
    )


def _draw_bounds(runs, exact):
    figure, (ax,) = panels(width=7.0, height=1.2 + 0.32 * len(runs))
    lows = [float(done.found.elbo.value) for done in runs.values()]
    middle = exact if exact is not None else float(np.median([float(done.found.best.value) for done in runs.values()]))
    reach = max(1.0, *(middle - low for low in lows if np.isfinite(low)))
    reach = min(reach, 4 * max(1.0, float(np.median([middle - low for low in lows]))))
    for row, done in enumerate(runs.values()):
        found = done.found
        top = float(found.best.value) if found.eubo is None else float(found.eubo.value)
        ax.plot([float(found.elbo.value), top], [row, row], color=COLOURS["first"], linewidth=5, alpha=0.35, solid_capstyle="butt")
        sure = found.trust.verdict == "reliable"
        ax.errorbar(
            float(found.best.value),
            row,
            xerr=float(found.best.stderr),
            fmt="o",
            markersize=5,
            color=COLOURS["first"],
            markerfacecolor=COLOURS["first"] if sure else "white",
        )
    if exact is not None:
        ax.axvline(exact, color=COLOURS["exact"], linewidth=1, linestyle="--")
    ax.set_yticks(range(len(runs)), list(runs))
    ax.set(xlabel="log Z and its bounds (nats)", xlim=(middle - 1.1 * reach, middle + 1.1 * reach), ylim=(len(runs) - 0.5, -0.5))
    return figure


def _draw_training(runs, exact):
    figure, (ax,) = panels(width=6.0)
    trained = {name: done.curve for name, done in runs.items() if len(done.curve)}
    for i, (name, curve) in enumerate(trained.items()):
        ax.plot(curve[:, 0], curve[:, 1], color=f"C{i}", marker=".", label=name)
    if exact is not None:
        ax.axhline(exact, color=COLOURS["exact"], linewidth=1, linestyle="--", label="log Z")
    last = [curve[-1, 1] for curve in trained.values() if np.isfinite(curve[-1, 1])]
    if last:
        # Early values of some methods are far below; what matters is near the end.
        low, high = min(last), max([*last, exact] if exact is not None else last)
        ax.set_ylim(low - 1.5 * max(high - low, 0.5), high + 0.2 * max(high - low, 0.5))
    ax.set(xlabel="seconds of training, compilation included", ylabel="ELBO (nats)")
    ax.set_xlim(left=0)
    ax.legend(frameon=False, fontsize=8)
    return figure


EXPERIMENT = Experiment("sample", "sample a density by annealing or by a controlled diffusion, with bounds on its normaliser", Sample, run)
