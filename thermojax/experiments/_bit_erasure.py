"""Erase one bit: a particle in two wells is brought into the right one, by hand and by a protocol found by gradient descent."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array
from pydantic import Field

from thermojax.dynamics import Overdamped
from thermojax.estimators import mean
from thermojax.experiments._experiment import Experiment, Parameters, Picture, Progress, Quantity, Results
from thermojax.fokker_planck import energetics, evolve, Grid, propose_grid
from thermojax.functionals import work
from thermojax.optimize import ErrorRate, fit, Mean, MonteCarlo
from thermojax.plots import COLOURS, histogram, panels
from thermojax.protocols import PiecewiseLinear
from thermojax.switching import drive, equilibrium_at
from thermojax.theorems import integral_fluctuation_theorem, landauer


class BitErasure(Parameters):
    """Parameters of `bit-erasure`; k_B = 1, the temperature is 1, wells at -1 and 1, mobility 1."""

    barrier: float = Field(4.0, gt=0, description="height of the barrier of the memory, in units of k_BT")
    tau: float = Field(8.0, gt=0, description="duration of the erasure")
    tilt: float = Field(4.0, gt=0, description="largest tilt of the protocol made by hand")
    steps: int = Field(1600, ge=2, description="time steps of the simulation")
    knots: int = Field(24, ge=5, description="knots of each control")
    iterations: int = Field(300, ge=1, description="gradient steps")
    batch: int = Field(500, ge=2, description="trajectories in a gradient step")
    learning_rate: float = Field(0.15, gt=0, description="first step of Adam; falls to zero as a cosine")
    penalty: float = Field(20.0, ge=0, description="price of an error in units of k_BT")
    samples: int = Field(50_000, ge=1000, description="trajectories that judge a protocol, with fresh noise")
    cells: int = Field(400, ge=50, description="cells of the Fokker-Planck equation")


def memory(barrier: float):
    """Two wells; the controls are the strength of the barrier between them and a tilt to the right."""

    def potential(x, lam):
        return barrier * jnp.sum(x**4 - 2.0 * lam[0] * x**2) - lam[1] * jnp.sum(x)

    return potential


def by_hand(tau: float, tilt: float, knots: int) -> PiecewiseLinear:
    """Lower the barrier, tilt, raise the barrier, take the tilt away: a quarter of the time each."""
    s = np.linspace(0.0, 1.0, knots)
    barrier = np.interp(s, [0, 0.25, 0.5, 0.75, 1], [1, 0, 0, 1, 1])
    push = np.interp(s, [0, 0.25, 0.5, 0.75, 1], [0, 0, 1, 1, 0])
    return PiecewiseLinear(start=[1.0, 0.0], knots=np.stack([barrier, tilt * push], axis=1), stop=[1.0, 0.0], duration=tau)


def run(parameters: BitErasure, key: jax.Array, progress: Progress) -> Results:
    """Optimise from the protocol made by hand, judge both on fresh noise and by the Fokker-Planck equation."""
    p = parameters
    fit_key, hand_key, found_key = jr.split(key, 3)
    ts = jnp.linspace(0.0, p.tau, p.steps + 1)
    hand = by_hand(p.tau, p.tilt, p.knots)
    dynamics = Overdamped(memory(p.barrier), hand)
    initial = equilibrium_at(dynamics, 0.0)

    with progress.stage("optimising both controls", p.iterations) as done:
        rate = optax.cosine_decay_schedule(p.learning_rate, p.iterations)
        # An error counts as a smooth step in the last position, so that its gradient exists.
        cost = Mean(work) + p.penalty * ErrorRate(lambda x: x[0], 0.1)
        optimum = fit(
            MonteCarlo(cost, initial, ts, p.batch, segments=20),
            dynamics,
            optimizer=optax.chain(optax.clip_by_global_norm(10.0), optax.adam(rate)),
            steps=p.iterations,
            where=lambda d: d.protocol.knots,
            checkpoint=progress.checkpoint("optimising both controls"),
            progress=lambda k, loss: done(k),
            key=fit_key,
        ).model.protocol

    protocols = {"hand": hand, "found": optimum}
    corners = [jnp.asarray([b, t]) for b in (0.0, 1.5) for t in (-2 * p.tilt, 2 * p.tilt)]
    grid = propose_grid(dynamics.potential, corners, cells=p.cells)
    driven = {name: eqx.tree_at(lambda d: d.protocol, dynamics, protocol) for name, protocol in protocols.items()}
    with progress.stage("solving the Fokker-Planck equation"):
        oracles = {name: energetics(d, initial, grid, ts) for name, d in driven.items()}
        flows = {name: evolve(d, initial, grid, ts[:: max(1, p.steps // 200)]) for name, d in driven.items()}
    with progress.stage("judging both protocols on fresh noise"):
        keys = {"hand": hand_key, "found": found_key}
        drives = {name: drive(d, ts, p.samples, initial=initial, key=keys[name]) for name, d in driven.items()}

    results = Results()
    bit = float(np.log(2.0))
    costs = {name: float(oracle.work) for name, oracle in oracles.items()}
    errors = {name: float(_left_mass(grid, oracle.density)) for name, oracle in oracles.items()}
    for name, words in (("hand", "made by hand"), ("found", "found by gradient descent")):
        works, right = drives[name].work, drives[name].x1s[:, 0] > 0
        failed = mean(jnp.where(right, 0.0, 1.0))
        closed = integral_fluctuation_theorem(jnp.asarray(drives[name].total_work))
        results.add(f"work_{name}", mean(works), f"mean work of the protocol {words}, against Fokker-Planck", exact=costs[name])
        results.add(f"error_{name}", failed, f"error rate of the protocol {words}, against Fokker-Planck", exact=errors[name])
        results.add(f"landauer_{name}", landauer(works, right, beta=1.0), "mean work above Landauer's bound at this error rate")
        results.add(f"jarzynski_{name}", closed, "mean of exp(-work) - 1: the free energy is what it was", exact=0.0)
    results.estimates["bit"] = Quantity(bit, "k_BT ln 2: the least work that erases a bit without errors, in infinite time")
    by = {name: f"{costs[name]:.3g} k_BT with {100 * errors[name]:.2g} % errors" for name in protocols}
    results.conclusions.append(f"By hand the bit costs {by['hand']}; the protocol found, {by['found']}. Landauer: {bit:.3g} k_BT.")
    weak = [name for name, q in results.estimates.items() if q.trustworthy is False]
    if weak:
        results.conclusions.append(f"Not to be believed: {', '.join(weak)}, exponential averages that rare trajectories decide.")
    results.figures["protocols"] = Picture(
        _draw_protocols(protocols, p), "Barrier and tilt: by hand (grey), and found by gradient descent, which jumps at both ends."
    )
    results.figures["densities"] = Picture(
        _draw_densities(flows),
        "The density in the course of the erasure, from the Fokker-Planck equation: two wells, then one.",
    )
    results.figures["work"] = Picture(
        _draw_work(drives, bit), "Work of single erasures; some cost less than k_BT ln 2, the mean never does."
    )
    return results


def _left_mass(grid: Grid, density: Array) -> Array:
    return grid.integrate(jnp.where(grid.lines[0] < 0, density, 0.0))


def _draw_protocols(protocols, p):
    figure, axes = panels(2)
    times = np.concatenate([[-0.03, 0.0], np.linspace(1e-4, 1 - 1e-4, 400), [1.0, 1.03]]) * p.tau
    for ax, control, label in zip(axes, (0, 1), ("strength of the barrier", "tilt"), strict=True):
        for name, colour, words in (("hand", "faint", "by hand"), ("found", "first", "found")):
            values = np.asarray(jax.vmap(protocols[name])(jnp.asarray(times)))[:, control]
            ax.plot(times, values, color=COLOURS[colour], label=words)
        ax.set(xlabel="time t", ylabel=label)
    axes[0].legend(frameon=False)
    return figure


def _draw_densities(flows):
    figure, axes = panels(2)
    for ax, (name, flow) in zip(axes, flows.items(), strict=True):
        x = np.asarray(flow.grid.lines[0])
        kept = np.abs(x) < 2
        ax.pcolormesh(np.asarray(flow.ts), x[kept], np.asarray(flow.densities).T[kept], cmap="Blues", shading="nearest", vmin=0)
        ax.grid(visible=False)
        ax.set(xlabel="time t", ylabel="position x", title="by hand" if name == "hand" else "found")
    return figure


def _draw_work(drives, bit):
    figure, (ax,) = panels()
    both = np.concatenate([np.asarray(d.work) for d in drives.values()])
    low, high = np.quantile(both, [0.0005, 0.9995])
    bins = np.linspace(low, high, 90)
    for name, colour, words in (("hand", "second", "by hand"), ("found", "first", "found")):
        histogram(ax, np.asarray(drives[name].work), label=words, colour=COLOURS[colour], bins=bins)
    ax.axvline(bit, color=COLOURS["exact"], linestyle="--", linewidth=1, label="ln 2")
    ax.set(xlabel="work W / k_BT", ylabel="probability density")
    ax.legend(frameon=False)
    return figure


EXPERIMENT = Experiment("bit-erasure", "erase one bit with two controls: work against k_BT ln 2, by hand and optimised", BitErasure, run)
