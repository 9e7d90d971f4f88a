"""How many trajectories, and how many seconds, does it take to find the protocol of least work?

The moving trap L = 5, tau = 1 in 500 steps, from the straight line, until the exact mean work of the protocol is within 3 % of the least
and stays there; seconds of the whole descent of 60 steps of Adam, compilation included, and of one that finds everything compiled. The
work of this trap is linear in the noise: antithetic pairs have its gradient without any.
"""

import time

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

from thermojax import exact
from thermojax.distributions import equilibrium
from thermojax.dynamics import Overdamped
from thermojax.functionals import work
from thermojax.optimize import fit, Mean, MonteCarlo
from thermojax.plots import COLOURS, panels
from thermojax.potentials import Harmonic
from thermojax.protocols import ramp_with_jumps

KNOTS = lambda dynamics: dynamics.protocol.knots
STEPS, DISTANCE, RATE, MOST, GOAL = 500, 5.0, 0.03, 60, 1.03
SETTINGS = {
    "independent, 8 knots, batch 20": (20, "independent", 8),
    "independent, 8 knots, batch 100": (100, "independent", 8),
    "independent, 32 knots, batch 100": (100, "independent", 32),
    "independent, 32 knots, batch 1000": (1000, "independent", 32),
    "antithetic, 32 knots, batch 2": (2, "antithetic", 32),
}


def descend(samples, noise, knots):
    """Trajectories until the goal is reached for good, seconds of the first and of a second descent, and the work on the way."""
    dynamics = Overdamped(Harmonic(1.0), ramp_with_jumps(0.0, DISTANCE, knots=knots))
    loss = MonteCarlo(Mean(work), equilibrium(Harmonic(1.0), 0.0), jnp.linspace(0.0, 1.0, STEPS + 1), samples, noise=noise)
    least = float(exact.moving_trap_optimal_work(DISTANCE, 1.0))
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE * DISTANCE, MOST))
    judge = lambda d: exact.moving_trap_work_of(d.protocol) / least
    seconds = []
    for _ in range(2):
        tick = time.perf_counter()
        found = fit(loss, dynamics, optimizer=optimizer, steps=MOST, where=KNOTS, validate=judge, every=1, key=jr.key(0))
        over = np.asarray(found.validation)
        seconds.append(time.perf_counter() - tick)
    bad = np.flatnonzero(over > GOAL)
    steps = int(bad[-1]) + 2 if bad.size else 1
    taken = steps * samples if steps <= MOST else None
    return {"trajectories": taken, "first_seconds": seconds[0], "seconds": seconds[1], "batch": samples, "over_least": over.tolist()}


def measure(*, smoke, peers):
    """The table."""
    del peers
    found = {}
    print(f"{'':36s} {'trajectories':>14s} {'first (s)':>10s} {'again (s)':>10s} {'last / least':>13s}")
    for name, setting in list(SETTINGS.items())[-1 if smoke else 0 :]:
        row = found[name] = descend(*setting)
        last = row["over_least"][-1]
        print(f"{name:36s} {row['trajectories']!s:>14s} {row['first_seconds']:10.1f} {row['seconds']:10.2f} {last:13.4f}")
    return found


def draw(found):
    """The work on the way."""
    figure, (ax,) = panels(width=5.6)
    for k, (name, row) in enumerate(found.items()):
        over, colour = np.array(row["over_least"]), COLOURS["second" if name.startswith("antithetic") else "first"]
        taken = np.arange(1, len(over) + 1) * row["batch"]
        ax.plot(taken, over - 1, color=colour, linestyle=["-", "--", "-.", ":", "-"][k], label=name)
    ax.axhline(GOAL - 1, color=COLOURS["exact"], linewidth=1, label="3 %")
    ax.set(xscale="log", yscale="log", xlabel="trajectories", ylabel="mean work / least $-$ 1")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)
    return figure
