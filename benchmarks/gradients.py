"""What does a gradient cost, in time, in memory and in noise, against the number of steps and against a PyTorch loop's backward pass?

Against PyTorch: the means of work and log-ratio of a driven quartic trap and their gradient with respect to the ends of the ramp, forward
and backward, in turns; many trajectories and few steps, and the other way round.

Against steps: 10 000 trajectories of the trap with its work and a protocol of eight knots, each way in a process of its own: reverse mode,
whole and in as many segments as the root of the steps, and forward mode; peak resident memory beyond what the process had before, and
time over that of the forward pass.

Noise: the variance of the gradient of the mean work for one trajectory, and the seconds times variance of each estimator: what it takes
to know the gradient to one unit.
"""

import functools as ft
import multiprocessing

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from benchmarks.resident import peak, resident
from thermojax.distributions import Gaussian
from thermojax.functionals import work
from thermojax.optimize import gradient_statistics, Mean, MonteCarlo
from thermojax.plots import COLOURS, panels
from thermojax.protocols import ramp_with_jumps
from thermojax.speed import gradient_job, interleaved, quartic_trap

BACKWARD = "PyTorch loop, backward"
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


def against_steps(samples, lengths, rounds):
    """The table of time and memory."""
    found = {}
    print(f"{samples} trajectories; medians of {rounds}, in turns with the forward pass")
    print(f"{'':32s} {'steps':>8s} {'peak (MiB)':>12s} {'seconds':>10s} {'over forward':>13s}")
    for steps in lengths:
        settings = {
            "forward pass": (None, 1),
            "reverse mode": ("reverse", 1),
            "reverse mode, segments": ("reverse", round(steps**0.5)),
            "forward mode, 8 knots": ("forward", 1),
        }
        for name, (mode, segments) in settings.items():
            # Linux counts the peak of a process from that of the one it was made by, which has computed nothing yet.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                size, seconds, forward = pool.apply(memory_of, (mode, segments, samples, steps, rounds))
            row = {"steps": steps, "segments": segments, "peak_mebibytes": size, "seconds": seconds, "over_forward": seconds / forward}
            found.setdefault(name, []).append(row)
            print(f"{name:32s} {steps:8d} {size:12.0f} {seconds:10.3f} {seconds / forward:13.2f}")
    return found


def against_pytorch(sizes, rounds, peers):
    """The table of forward and backward passes."""
    found = {}
    for samples, steps in sizes:
        jobs = {"thermojax": gradient_job(samples, steps)} | peers.jobs(samples, steps, [BACKWARD])
        seconds = interleaved(jobs, rounds=rounds)
        ratio = seconds[BACKWARD] / seconds["thermojax"] if BACKWARD in seconds else None
        found[f"{samples}x{steps}"] = {"seconds": seconds, "times_as_fast_as_pytorch": ratio}
        rates = ", ".join(f"{name} {samples * steps / s / 1e6:.1f}" for name, s in seconds.items())
        print(f"gradient of {samples} x {steps}, million steps/s: {rates}" + (f"; ratio {ratio:.2f}" if ratio else ""))
    return found


def noise(samples, steps, repeats, rounds, most=None):
    """The table of gradient noise."""
    settings = {
        "pathwise, reverse": ("reverse", {}),
        "pathwise, forward": ("forward", {}),
        "pathwise, reverse, antithetic": ("reverse", {"noise": "antithetic"}),
        "likelihood-ratio, reverse": ("reverse", {"gradient": "likelihood-ratio"}),
    }
    problems = {name: (*driven_quartic(samples, steps, **options), mode) for name, (mode, options) in list(settings.items())[:most]}
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


def measure(*, smoke, peers):
    """The tables."""
    # First, while this process is small.
    found = {"samples": 1000 if smoke else 10_000}
    found["steps"] = against_steps(found["samples"], (50,) if smoke else (100, 1000, 10_000), 2 if smoke else 3)
    found["pytorch"] = against_pytorch([(1000, 50)] if smoke else [(100_000, 100), (10_000, 1000)], 2 if smoke else 5, peers)
    found["noise"] = noise(200, 50, 10, 3, most=1) if smoke else noise(1000, 200, 100, 7)
    return found


def draw(found):
    """Memory and time against steps."""
    figure, axes = panels(2, width=4.2, height=3.2)
    looks = {"forward pass": ("faint", "-"), "reverse mode": ("first", "-"), "reverse mode, segments": ("first", "--")}
    looks |= {"forward mode, 8 knots": ("second", "-")}
    for ax, what, label in zip(axes, ("peak_mebibytes", "over_forward"), ("peak memory (MiB)", "time / forward pass"), strict=True):
        for name, (colour, style) in looks.items():
            rows = found["steps"][name]
            ax.plot([r["steps"] for r in rows], [r[what] for r in rows], style, marker="o", markersize=4, color=COLOURS[colour], label=name)
        ax.set(xscale="log", xlabel="steps", ylabel=label)
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
