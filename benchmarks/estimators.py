"""How long do Bennett's estimate and the Fokker-Planck oracle take, and to how many digits does pymbar agree?

Bennett's estimate of a million samples on each side against pymbar's of the same samples; mean work of a trap on 1000 cells and 1000
steps, and its gradient with respect to 32 knots, against the forward pass and against the tridiagonal solves alone.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pymbar
from jax.lax.linalg import tridiagonal_solve

from thermojax.distributions import equilibrium
from thermojax.dynamics import Overdamped
from thermojax.estimators import bar
from thermojax.fokker_planck import mean_work, propose_grid
from thermojax.plots import COLOURS, panels
from thermojax.potentials import Harmonic
from thermojax.protocols import PiecewiseLinear, ramp_with_jumps
from thermojax.speed import interleaved


def bennett(samples):
    rng = np.random.default_rng(0)
    forward, backward = rng.normal(1.5, 1.0, samples), rng.normal(-0.5, 1.0, samples)
    on_device = jnp.asarray(forward), jnp.asarray(backward)
    jobs = {"bar": lambda key: bar(*on_device, beta=1.0).value, "pymbar": lambda key: pymbar.bar(forward, backward)["Delta_f"]}
    gap = abs(float(jobs["bar"](None)) - float(jobs["pymbar"](None)))
    return jobs, gap


def oracle(cells, steps):
    trap, ramp = Harmonic(), ramp_with_jumps(0.0, 1.0, 2.0, knots=32)
    grid = propose_grid(trap, [0.0, 1.0], cells=cells)
    start, ts = equilibrium(trap, 0.0), jnp.linspace(0.0, 2.0, steps + 1)
    work = jax.jit(lambda knots: mean_work(Overdamped(trap, PiecewiseLinear(0.0, knots, 1.0, 2.0)), start, grid, ts))
    both = jax.jit(jax.value_and_grad(work))
    diagonal, side = jnp.full(cells, 3.0), jnp.full(cells, -1.0)
    lower, upper = side.at[0].set(0.0), side.at[-1].set(0.0)
    solve = lambda x, _: (tridiagonal_solve(lower, diagonal, upper, x[:, None])[:, 0], None)
    # Two stages a step.
    solves = jax.jit(lambda x: jax.lax.scan(solve, x, length=2 * steps)[0])
    return {
        "tridiagonal solves alone": lambda key: solves(jnp.ones(cells)),
        "mean work": lambda key: work(ramp.knots),
        "its gradient": lambda key: both(ramp.knots),
    }


def measure(*, smoke, peers):
    """The table, in double precision."""
    del peers
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        return _measure(*((10_000, 200, 100, 2) if smoke else (1_000_000, 1000, 1000, 7)))
    finally:
        jax.config.update("jax_enable_x64", before)


def _measure(samples, cells, steps, rounds):
    jobs, gap = bennett(samples)
    solver = oracle(cells, steps)
    first = {}
    for name, job in solver.items():
        tick = time.perf_counter()
        jax.block_until_ready(job(None))
        first[name] = time.perf_counter() - tick
    seconds = interleaved(jobs | solver, rounds=rounds)
    print(f"float64; medians of {rounds} interleaved rounds; {samples} samples a side, {cells} cells, {steps} steps")
    print(f"{'':28s} {'seconds':>9s} {'compile + first (s)':>20s}")
    for name, s in seconds.items():
        print(f"{name:28s} {s:9.4f} {f'{first[name]:.2f}' if name in first else '':>20s}")
    found = {
        "samples": samples,
        "cells": cells,
        "steps": steps,
        "seconds": seconds,
        "first_call_seconds": first,
        "bar_over_pymbar": seconds["bar"] / seconds["pymbar"],
        "bar_minus_pymbar": gap,
        "mean_work_over_solves": seconds["mean work"] / seconds["tridiagonal solves alone"],
        "gradient_over_mean_work": seconds["its gradient"] / seconds["mean work"],
    }
    for name in ("bar_over_pymbar", "bar_minus_pymbar", "mean_work_over_solves", "gradient_over_mean_work"):
        print(f"{name}: {found[name]:.3g}")
    return found


def draw(found):
    """Seconds as bars."""
    figure, (ax,) = panels(width=6.4, height=2.6)
    labels = {"bar": "Bennett's estimate", "pymbar": "the same, pymbar", "tridiagonal solves alone": "solves of the grid alone"}
    labels |= {"mean work": "mean work on the grid", "its gradient": "its gradient, 32 knots"}
    longest = max(found["seconds"].values())
    for row, (name, seconds) in enumerate(reversed(found["seconds"].items())):
        ax.barh(row, seconds, color=COLOURS["faint" if name in ("pymbar", "tridiagonal solves alone") else "first"], height=0.7)
        ax.annotate(f"{seconds:.3g} s", (seconds, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(range(len(found["seconds"])), [labels[name] for name in reversed(found["seconds"])])
    ax.set(xlim=(0, 1.15 * longest), xlabel="seconds")
    return figure
