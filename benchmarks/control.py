"""What does a gradient cost, in memory, in time and in noise, and how many trajectories does a protocol take to be found?

Memory: reverse mode through 10 000 steps of 10 000 trajectories of a driven quartic trap with its work, in segments, and forward mode,
each in a process of its own: peak resident memory beyond what the process had before, and time over that of the forward pass.

Trajectories to target: the moving trap L = 5, tau = 1 in 500 steps, from the straight line, until the exact mean work of the protocol is
within 3 % of the least. The work of this trap is linear in the noise: antithetic pairs have its gradient without any.

Noise: the variance of the gradient of the mean work of a quartic trap for one trajectory, and the seconds times variance of each
estimator: what it takes to know the gradient to one unit.
"""

import functools as ft
import multiprocessing
import pathlib
import resource
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import record

from thermojax import exact
from thermojax.distributions import equilibrium, Gaussian
from thermojax.dynamics import Overdamped
from thermojax.functionals import work
from thermojax.optimize import fit, gradient_statistics, Mean, MonteCarlo
from thermojax.potentials import Harmonic
from thermojax.protocols import ramp_with_jumps
from thermojax.speed import interleaved, quartic_trap
from thermojax.store import versions

KNOTS = lambda dynamics: dynamics.protocol.knots


def driven_quartic(samples, steps, *, knots=8, **options):
    """The mean work of a driven quartic trap, and its dynamics with free knots."""
    dynamics = eqx.tree_at(lambda d: d.protocol, quartic_trap(), ramp_with_jumps(0.0, 1.0, knots=knots))
    return MonteCarlo(Mean(work), Gaussian([0.0], [[0.5]]), jnp.linspace(0.0, 1.0, steps + 1), samples, **options), dynamics


def gradient_of(loss, dynamics, mode):
    """The gradient with respect to the knots, or the loss alone if `mode` is None."""
    value = lambda knots, key: loss(eqx.tree_at(KNOTS, dynamics, knots), key)
    transform = {None: lambda f: f, "reverse": jax.grad, "forward": jax.jacfwd}[mode]
    return ft.partial(jax.jit(transform(value)), KNOTS(dynamics))


def peak():
    """The most mebibytes that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident():
    """The mebibytes that this process has; their peak where the system does not tell."""
    sizes = pathlib.Path("/proc/self/statm")
    return int(sizes.read_text().split()[1]) * resource.getpagesize() / 2**20 if sizes.exists() else peak()


def memory_of(mode, segments, samples, steps, rounds):
    """Peak mebibytes of one setting, its seconds and those of a forward pass; to be called in a fresh process."""
    loss, dynamics = driven_quartic(samples, steps, segments=segments)
    knots = KNOTS(dynamics)
    jobs = [gradient_of(loss, dynamics, way).func.lower(knots, jr.key(0)).compile() for way in (mode, None)]
    before = resident()
    jax.block_until_ready(jobs[0](knots, jr.key(0)))
    grown = peak() - before
    laps = interleaved({name: ft.partial(job, knots) for name, job in zip(("gradient", "forward"), jobs, strict=True)}, rounds=rounds)
    return grown, laps["gradient"], laps["forward"]


def memory(samples, steps, rounds, segments):
    """The table of memory."""
    settings = {"forward pass": (None, 1), "forward mode, 8 knots": ("forward", 1)}
    settings |= {f"reverse mode, segments = {n}": ("reverse", n) for n in segments}
    found = {}
    print(f"memory: {samples} trajectories x {steps} steps, float32; medians of {rounds}, in turns with the forward pass")
    print(f"{'':32s} {'peak (MiB)':>12s} {'seconds':>10s} {'over forward':>13s}")
    for name, (mode, cut) in settings.items():
        # Linux counts the peak of a process from that of the one it was made by, which has computed nothing yet.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            size, seconds, forward = pool.apply(memory_of, (mode, cut, samples, steps, rounds))
        found[name] = {"peak_mebibytes": size, "seconds": seconds, "over_forward": seconds / forward}
        print(f"{name:32s} {size:12.0f} {seconds:10.2f} {seconds / forward:13.2f}")
    return found


def to_target(samples, noise, rate, *, knots, most, steps=500, distance=5.0):
    """Trajectories until the exact work is within 3 % of the least for good, seconds of the whole descent, and where it ends."""
    dynamics = Overdamped(Harmonic(1.0), ramp_with_jumps(0.0, distance, knots=knots))
    loss = MonteCarlo(Mean(work), equilibrium(Harmonic(1.0), 0.0), jnp.linspace(0.0, 1.0, steps + 1), samples, noise=noise)
    least = float(exact.moving_trap_optimal_work(distance, 1.0))
    optimizer = optax.adam(optax.cosine_decay_schedule(rate * distance, most))
    judge = lambda d: exact.moving_trap_work_of(d.protocol) / least
    tick = time.perf_counter()
    found = fit(loss, dynamics, optimizer=optimizer, steps=most, where=KNOTS, validate=judge, every=1, key=jr.key(0))
    seconds = time.perf_counter() - tick
    # From where it stays there.
    bad = np.flatnonzero(np.asarray(found.validation) > 1.03)
    steps_taken = int(bad[-1]) + 2 if bad.size else 1
    taken = steps_taken * samples if steps_taken <= most else None
    return {"trajectories": taken, "seconds": seconds, "over_least": float(found.validation[-1])}


def targets(*, smoke):
    """The table of trajectories to target."""
    settings = {
        "independent, 8 knots, batch 20": (20, "independent", 0.03, 8, 60),
        "independent, 8 knots, batch 100": (100, "independent", 0.03, 8, 60),
        "independent, 32 knots, batch 100": (100, "independent", 0.03, 32, 60),
        "independent, 32 knots, batch 1000": (1000, "independent", 0.03, 32, 60),
        "antithetic, 32 knots, batch 2": (2, "antithetic", 0.03, 32, 60),
    }
    found = {}
    print(f"{'trajectories to target':36s} {'trajectories':>14s} {'seconds':>10s} {'last / least':>13s}")
    for name, (samples, noise, rate, knots, most) in list(settings.items())[-1 if smoke else 0 :]:
        row = found[name] = to_target(samples, noise, rate, knots=knots, most=most)
        print(f"{name:36s} {row['trajectories']!s:>14s} {row['seconds']:10.1f} {row['over_least']:13.4f}")
    return found


def noise(samples, steps, repeats, rounds):
    """The table of gradient noise."""
    settings = {
        "pathwise, reverse": ("reverse", {}),
        "pathwise, forward": ("forward", {}),
        "pathwise, reverse, antithetic": ("reverse", {"noise": "antithetic"}),
        "likelihood-ratio, reverse": ("reverse", {"gradient": "likelihood-ratio"}),
    }
    problems = {name: (*driven_quartic(samples, steps, **options), mode) for name, (mode, options) in settings.items()}
    jobs = {name: gradient_of(*problem) for name, problem in problems.items()}
    seconds = interleaved(jobs, rounds=rounds)
    found = {}
    print(f"noise: {samples} trajectories x {steps} steps, 8 knots; {repeats} calls")
    print(f"{'':32s} {'variance x trajectories':>24s} {'seconds':>10s} {'variance x seconds':>19s}")
    for name, (loss, dynamics, mode) in problems.items():
        spread = gradient_statistics(loss, dynamics, where=KNOTS, mode=mode, repeats=repeats, key=jr.key(0)).variance
        value, error = (float(a) * samples for a in (spread.value, spread.stderr))
        found[name] = {"variance": value, "stderr": error, "seconds": seconds[name]}
        print(f"{name:32s} {value:15.3g} ± {error:6.2g} {seconds[name]:10.4f} {value / samples * seconds[name]:19.3g}")
    return found


def main(*, smoke: bool) -> dict:
    """Measure and print the tables."""
    print(versions()["device"])
    sizes = (1000, 200, 2, (10,)) if smoke else (10_000, 10_000, 3, (1, 10, 100))
    # First, while this process is small.
    found = {"samples": sizes[0], "steps": sizes[1], "memory": memory(*sizes)}
    found["targets"] = targets(smoke=smoke)
    found["noise"] = noise(200, 50, 10, 3) if smoke else noise(1000, 200, 100, 7)
    return found


if __name__ == "__main__":
    record.run(main, __doc__)
