"""How fast is this machine: the step rate of an ensemble against the rate at which its normals alone can be drawn."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax

from thermojax._noise import normals
from thermojax.dynamics import Overdamped
from thermojax.ensemble import accumulate
from thermojax.functionals import log_ratio, work
from thermojax.protocols import Ramp


def interleaved(jobs: dict[str, Callable[[Any], Any]], *, rounds: int = 7, warm: bool = False) -> dict[str, float]:
    """Median seconds of each job, called with a fresh key in every round; the jobs take turns, so that noise hits all alike.

    Each is called once before, unless they are `warm`.
    """
    laps: dict[str, list[float]] = {name: [] for name in jobs}
    for job in () if warm else jobs.values():
        jax.block_until_ready(job(jr.key(0)))
    for i in range(rounds):
        for name, job in jobs.items():
            tick = time.perf_counter()
            jax.block_until_ready(job(jr.key(i + 1)))
            laps[name].append(time.perf_counter() - tick)
    return {name: statistics.median(times) for name, times in laps.items()}


def quartic_trap() -> Overdamped:
    """A driven quartic trap, the cheap force of the benchmarks."""
    return Overdamped(lambda x, lam: 0.25 * jnp.sum((x - lam) ** 4), Ramp(0.0, 1.0))


def normals_only(samples: int, steps: int, *, own: bool = False) -> Callable[[Any], Any]:
    """A job that draws the normals of an ensemble and does nothing else: the limit for a cheap force.

    By `jax.random.normal`, or as the library draws them itself (`own`): the same numbers, faster.
    """

    @jax.jit
    def draw(key):
        def step(total, k):
            step_key, shape = jr.fold_in(key, k), (samples, 1)
            return total + (normals(step_key, shape, total.dtype) if own else jr.normal(step_key, shape)), None

        return lax.scan(step, jnp.zeros((samples, 1)), jnp.arange(steps))[0]

    return draw


def ensemble_job(samples: int, steps: int) -> Callable[[Any], Any]:
    """A job that runs the quartic trap and sums work and log-ratio."""
    dynamics, ts, x0s = quartic_trap(), jnp.linspace(0.0, 1.0, steps + 1), jnp.zeros((samples, 1))
    return lambda key: accumulate((work, log_ratio), dynamics, x0s, ts, key=key)


def gradient_job(samples: int, steps: int) -> Callable[[Any], Any]:
    """A job that differentiates the means of work and log-ratio with respect to the protocol, in reverse mode."""
    dynamics, ts, x0s = quartic_trap(), jnp.linspace(0.0, 1.0, steps + 1), jnp.zeros((samples, 1))

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(protocol, key):
        driven = eqx.tree_at(lambda d: d.protocol, dynamics, protocol)
        _, (works, ratios) = accumulate((work, log_ratio), driven, x0s, ts, key=key)
        return jnp.mean(works) + jnp.mean(ratios)

    return lambda key: gradient(dynamics.protocol, key)
