"""How much memory does an ensemble take, against the number of steps?

A million trajectories of a driven quartic trap with work and log-ratio, float32: each number of steps in a process of its own, whose peak
resident memory is compared with what it had after its imports. Compilation is in it.
"""

import multiprocessing
import time

import jax
import jax.numpy as jnp
import jax.random as jr

from benchmarks.resident import peak, resident
from thermojax.ensemble import accumulate
from thermojax.functionals import log_ratio, work
from thermojax.plots import COLOURS, panels
from thermojax.speed import quartic_trap


def grown(samples, steps):
    """Mebibytes at most beyond those after import, and seconds; to be called in a fresh process."""
    before, tick = resident(), time.perf_counter()
    dynamics, ts = quartic_trap(), jnp.linspace(0.0, 1.0, steps + 1)
    jax.block_until_ready(accumulate((work, log_ratio), dynamics, jnp.zeros((samples, 1)), ts, key=jr.key(0)))
    return peak() - before, time.perf_counter() - tick


def measure(*, smoke, peers):
    """The table."""
    del peers
    samples, lengths = (10_000, (20,)) if smoke else (1_000_000, (100, 1000, 10_000))
    rows = []
    print(f"{samples} trajectories\n{'steps':>8s} {'MiB above import':>18s} {'seconds':>10s}")
    for steps in lengths:
        # Linux counts the peak of a process from that of the one it was made by, which has computed nothing yet.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            size, seconds = pool.apply(grown, (samples, steps))
        rows.append({"steps": steps, "mebibytes": size, "seconds": seconds})
        print(f"{steps:8d} {size:18.0f} {seconds:10.1f}")
    return {"samples": samples, "rows": rows}


def draw(found):
    """Memory against steps."""
    figure, (ax,) = panels(width=4.6, height=3.2)
    steps, sizes = ([row[what] for row in found["rows"]] for what in ("steps", "mebibytes"))
    ax.plot(steps, sizes, "o-", color=COLOURS["first"])
    ax.set(xscale="log", xlabel=f"steps of {found['samples']} trajectories", ylim=(0, 1.2 * max(sizes)))
    ax.set_ylabel("peak memory above import (MiB)")
    return figure
