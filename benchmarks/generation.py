"""How much faster than plain NumPy does the library generate by the reversed process, with the entropy of every path?

10 000 paths of 1000 Euler steps of the reversal of a symmetric mixture, noised by dx = -x dt + sqrt(2) dW until t = 10, with the midpoint
entropy of the medium summed and a histogram of where they end. NumPy in float64, one path after the other, as scripts in the literature
do it (timed on a few paths: the cost is linear), and vectorised over paths; the library in float32, compiled, with and without the
log-ratio of its kernels; and the normals alone, the limit for a cheap score.
"""

import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from thermojax.distributions import GaussianMixture
from thermojax.dynamics import OrnsteinUhlenbeck, Reversed
from thermojax.ensemble import accumulate
from thermojax.functionals import log_ratio, medium_entropy_stratonovich
from thermojax.generative import MixtureScore
from thermojax.plots import COLOURS, panels
from thermojax.speed import interleaved, normals_only
from thermojax.steppers import EulerMaruyama

HORIZON = 10.0
BINS = np.linspace(-5.0, 5.0, 101)


def plain(samples, steps):
    """The job in NumPy, for all paths at once."""

    def density(x, t):
        m, v = np.exp(-t), 1.0
        weights = [np.exp(-((x - sign * m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v) for sign in (1, -1)]
        return m, v, weights

    def score(x, t):
        m, v, (right, left) = density(x, t)
        return (-(x - m) / v * right - (x + m) / v * left) / (right + left)

    def run(key):
        rng = np.random.default_rng(int(jr.key_data(key)[-1]))
        h, entropy = HORIZON / steps, np.zeros(samples)
        x = np.where(rng.random(samples) < 0.5, 1.0, -1.0) * np.exp(-HORIZON) + rng.normal(size=samples)
        for k in range(steps):
            t = HORIZON - k * h
            moved = x + (x + 2 * score(x, t)) * h + np.sqrt(2 * h) * rng.normal(size=samples)
            middle = 0.5 * (x + moved)
            entropy += (middle + 2 * score(middle, t)) * (moved - x)
            x = moved
        return np.histogram(x, BINS, density=True)[0], entropy.mean()

    return run


def path_by_path(paths, steps):
    """The job in NumPy, for one path after the other."""

    def run(key):
        seeds = np.random.default_rng(int(jr.key_data(key)[-1])).integers(2**31, size=paths)
        return [plain(1, steps)(jr.key(int(seed))) for seed in seeds]

    return run


def library(samples, steps, functionals):
    """The job in the library."""
    data, noising = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [1.0, 1.0]), OrnsteinUhlenbeck()
    dynamics = Reversed(noising, MixtureScore(noising, data), HORIZON)
    start = noising.marginal(data, jnp.asarray(HORIZON))
    draw = jax.jit(lambda key: start.sample(samples, key=key))
    read = jax.jit(lambda xs, sums: (jnp.histogram(xs, BINS, density=True)[0], [jnp.mean(a) for a in sums]))
    ts = jnp.linspace(0.0, HORIZON, steps + 1)

    def run(key):
        start_key, noise_key = jr.split(key)
        return read(*accumulate(functionals, dynamics, draw(start_key), ts, stepper=EulerMaruyama(clock=0.0), key=noise_key))

    return run


def measure(*, smoke, peers):
    """The table."""
    del peers
    samples, steps, rounds, few = (1000, 50, 2, 2) if smoke else (10_000, 1000, 5, 10)
    jobs = {
        "NumPy, path by path": path_by_path(few, steps),
        "NumPy, vectorised": plain(samples, steps),
        "library": library(samples, steps, (medium_entropy_stratonovich,)),
        "library, with the kernels' log-ratio": library(samples, steps, (medium_entropy_stratonovich, log_ratio)),
        "normals alone": normals_only(samples, steps),
    }
    first = {}
    for name, job in jobs.items():
        tick = time.perf_counter()
        jax.block_until_ready(job(jr.key(0)))
        first[name] = time.perf_counter() - tick
    seconds = interleaved(jobs, rounds=rounds, warm=True)
    seconds["NumPy, path by path"] *= samples / few
    print(f"{samples} paths x {steps} steps; medians of {rounds} interleaved rounds")
    print(f"{'':38s} {'million steps/s':>16s} {'over vectorised':>16s} {'compile + first (s)':>20s}")
    for name, s in seconds.items():
        print(f"{name:38s} {samples * steps / s / 1e6:16.3g} {seconds['NumPy, vectorised'] / s:16.3g} {first[name]:20.2f}")
    found = {
        "samples": samples,
        "steps": steps,
        "seconds": seconds,
        "first_call_seconds": first,
        "over_path_by_path": seconds["NumPy, path by path"] / seconds["library"],
        "over_vectorised": seconds["NumPy, vectorised"] / seconds["library"],
        "limit_over_vectorised": seconds["NumPy, vectorised"] / seconds["normals alone"],
        "paths_timed_one_by_one": few,
    }
    for name in ("over_path_by_path", "over_vectorised", "limit_over_vectorised"):
        print(f"{name}: {found[name]:.3g}")
    return found


def draw(found):
    """Rates as bars."""
    figure, (ax,) = panels(width=6.4, height=2.6)
    rates = sorted((found["samples"] * found["steps"] / s / 1e6, name) for name, s in found["seconds"].items())
    for row, (rate, name) in enumerate(rates):
        ax.barh(row, rate, color=COLOURS["first" if name.startswith("library") else "faint"], height=0.7)
        ax.annotate(f"{rate:.3g}", (rate, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(range(len(rates)), [name for _, name in rates])
    ax.set(xscale="log", xlabel="million steps per second, entropy summed")
    return figure
