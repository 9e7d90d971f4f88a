"""Drag a harmonic trap in finite time with as little work as possible, and find the protocol by gradient descent."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from pydantic import Field

from thermojax import exact
from thermojax.baths import Isothermal
from thermojax.distributions import equilibrium
from thermojax.dynamics import Overdamped
from thermojax.ensemble import accumulate
from thermojax.estimators import exponential_mean, jarzynski, mean
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.functionals import log_ratio, path_log_ratio, work
from thermojax.optimize import fit, Mean, MonteCarlo
from thermojax.plots import COLOURS, curve, histogram, panels
from thermojax.potentials import Harmonic
from thermojax.protocols import ramp_with_jumps
from thermojax.steppers import EulerMaruyama, ExactLinear


class MovingTrap(Parameters):
    """Parameters of `moving-trap`; k_B = 1."""

    distance: float = Field(1.0, gt=0, description="how far the trap moves")
    tau: float = Field(1.0, gt=0, description="how long it takes")
    stiffness: float = Field(1.0, gt=0, description="spring constant of the trap")
    mobility: float = Field(1.0, gt=0, description="mobility of the particle")
    beta: float = Field(1.0, gt=0, description="inverse temperature of the bath")
    steps: int = Field(250, ge=2, description="time steps of the simulation")
    stepper: Literal["exact", "euler"] = Field("exact", description="exact relaxation in each step, or Euler-Maruyama")
    knots: int = Field(32, ge=2, description="knots of the piecewise linear protocol, its free ends included")
    iterations: int = Field(400, ge=1, description="gradient steps")
    batch: int = Field(2000, ge=2, description="trajectories in a gradient step")
    learning_rate: float = Field(0.03, gt=0, description="first step of Adam, in units of the distance; falls to zero as a cosine")
    samples: int = Field(100_000, ge=100, description="trajectories that judge a protocol, with fresh noise")


def run(parameters: MovingTrap, key: jax.Array, progress: Progress) -> Results:
    """Optimise from the linear ramp, judge ramp and optimum on fresh noise, and test Jarzynski and the integral fluctuation theorem."""
    p = parameters
    fit_key, ramp_key, optimum_key = jr.split(key, 3)
    ts = jnp.linspace(0.0, p.tau, p.steps + 1)
    stepper = ExactLinear() if p.stepper == "exact" else EulerMaruyama()
    potential = Harmonic(p.stiffness)
    ramp = ramp_with_jumps(0.0, p.distance, p.tau, knots=p.knots)
    dynamics = Overdamped(potential, ramp, Isothermal(p.beta), p.mobility)
    initial, final = (equilibrium(potential, lam, beta=p.beta) for lam in (0.0, p.distance))

    with progress.stage("optimising the protocol", p.iterations) as done:
        rate = optax.cosine_decay_schedule(p.learning_rate * p.distance, p.iterations)
        found = fit(
            MonteCarlo(Mean(work), initial, ts, p.batch, stepper=stepper),
            dynamics,
            optimizer=optax.adam(rate),
            steps=p.iterations,
            where=lambda d: d.protocol.knots,
            checkpoint=progress.checkpoint("optimising the protocol"),
            progress=lambda k, loss: done(k),
            key=fit_key,
        )
    optimum = found.model.protocol

    def judge(protocol, key):
        start_key, noise_key = jr.split(key)
        driven = eqx.tree_at(lambda d: d.protocol, dynamics, protocol)
        x0s = initial.sample(p.samples, key=start_key)
        x1s, (works, ratios) = accumulate((work, log_ratio), driven, x0s, ts, stepper=stepper, key=noise_key)
        return works, path_log_ratio(initial, final, x0s, x1s, ratios)

    with progress.stage("judging ramp and optimum on fresh noise"):
        ramp_works, _ = judge(ramp, ramp_key)
        works, ratios = jax.block_until_ready(judge(optimum, optimum_key))

    scales = {"stiffness": p.stiffness, "mobility": p.mobility}
    least = float(exact.moving_trap_optimal_work(p.distance, p.tau, **scales))
    steady = float(exact.moving_trap_work(p.distance, p.tau, **scales))
    best = exact.moving_trap_optimal_protocol(p.distance, p.tau, **scales)
    first, last = optimum.jumps

    results = Results()
    results.add("work_linear", mean(ramp_works), "mean work of the linear ramp", exact=steady)
    results.add("work_optimised", mean(works), "mean work of the protocol found, on fresh noise", exact=least)
    jump = float(best.jumps[0])
    results.estimates["jump_first"] = Quantity(float(first), "jump of the protocol found at the start", exact=jump)
    results.estimates["jump_last"] = Quantity(float(last), "jump of the protocol found at the end", exact=jump)
    results.add(
        "jarzynski_delta_f",
        jarzynski(works, beta=p.beta),
        "free-energy difference by Jarzynski's equality: moving a trap costs none",
        exact=0.0,
    )
    results.add(
        "mean_log_ratio",
        mean(ratios),
        "mean log-ratio of the path measures: dissipated work in units of k_BT, and the shadow work of the time step (none if exact)",
    )
    results.add(
        "ift", exponential_mean(ratios), "mean of exp(-log-ratio): one by the integral fluctuation theorem, at every time step", exact=1.0
    )
    results.figures["protocol"] = Picture(
        _draw_protocol(optimum, best, p),
        "The protocol found by gradient descent from the linear ramp (faint), and the exact optimum (dashed); it jumps at both ends.",
    )
    results.figures["work"] = Picture(
        _draw_works(np.asarray(ramp_works), np.asarray(works), (steady, least), p.beta),
        "Work of the ramp and of the protocol found, on fresh noise; dashed, the exact Gaussians, of variance twice the mean over beta.",
    )
    found_work = float(jnp.mean(works))
    results.conclusions.append(
        f"The protocol found costs {found_work:.4g}, against {least:.4g} at best and {steady:.4g} for the ramp: "
        f"{100 * (1 - found_work / steady):.1f} % less than the ramp."
    )
    weak = [name for name, q in results.estimates.items() if q.trustworthy is False]
    if weak:
        results.conclusions.append(
            f"Not to be believed: {', '.join(weak)}. With a dissipation of {p.beta * least:.3g} k_BT the exponential averages are carried "
            f"by trajectories that are too rare for {p.samples} samples; their error bars are too small."
        )
    return results


def _draw_protocol(optimum, best, p):
    figure, (ax,) = panels()
    # Just outside the duration too, so that the jumps are seen.
    ts = np.concatenate([[-0.05 * p.tau, 0.0], np.linspace(1e-4, 1 - 1e-4, 400) * p.tau, [p.tau, 1.05 * p.tau]])
    ax.plot([0, p.tau], [0, p.distance], color=COLOURS["faint"], label="linear ramp")
    ax.plot(ts, jax.vmap(optimum)(jnp.asarray(ts)), color=COLOURS["first"], label="found")
    ax.plot(ts, jax.vmap(best)(jnp.asarray(ts)), color=COLOURS["exact"], linestyle="--", linewidth=1, label="exact optimum")
    ax.set(xlabel="time t", ylabel="position of the trap λ(t)", xlim=(-0.05 * p.tau, 1.05 * p.tau))
    ax.legend(frameon=False)
    return figure


def _draw_works(ramp_works, works, means, beta):
    figure, (ax,) = panels()
    both = np.concatenate([ramp_works, works])
    low, high = np.nanquantile(both, [0.0005, 0.9995])
    bins = np.linspace(low, high, 80)
    histogram(ax, ramp_works, label="linear ramp", colour=COLOURS["second"], bins=bins)
    histogram(ax, works, label="found", colour=COLOURS["first"], bins=bins)
    for average in means:
        variance = 2 * average / beta
        curve(ax, lambda w, m=average, v=variance: np.exp(-((w - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v), bins[0], bins[-1])
    ax.set(xlabel="work W", ylabel="probability density")
    ax.legend(frameon=False)
    return figure


EXPERIMENT = Experiment("moving-trap", "drag a harmonic trap with least work; protocol found by gradient descent", MovingTrap, run)
