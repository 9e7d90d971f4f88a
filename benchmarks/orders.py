"""Which one-step kernel reaches a given weak error of mean work and of <x^2> with the least time?

It follows the chain of each stepper on a grid (a driven quartic trap from equilibrium, 8 to 256 steps; no sampling noise), takes the
difference to continuous time, and measures what a step of 20 000 trajectories with work costs.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from thermojax import accumulate, Diffrax, EulerMaruyama
from thermojax.fokker_planck import expected_sum, Grid
from thermojax.functionals import work
from thermojax.plots import COLOURS, panels
from thermojax.speed import interleaved, quartic_trap
from thermojax.store import versions

STEPPERS = {
    "Euler": EulerMaruyama,
    "Heun": lambda: Diffrax(diffrax.Heun()),
    "ShARK": lambda: Diffrax(diffrax.ShARK()),
    "SRA1": lambda: Diffrax(diffrax.SRA1()),
    "midpoint": lambda: Diffrax(diffrax.Midpoint()),
}
ORDERS = {"Euler": 1, "Heun": 2}
OBSERVABLES = ("work", "square")
TARGET = 1e-3


def chain_means(stepper, steps, cells):
    """Mean work and mean gain of the squared position, from equilibrium."""
    grid = Grid(-5.5, 6.5, cells)
    both = lambda step: jnp.stack([work(step), jnp.sum(step.x1**2 - step.x0**2)])
    means = expected_sum(both, quartic_trap(), grid, jnp.linspace(0.0, 1.0, steps + 1), stepper=stepper, nodes=12)
    density = jnp.exp(-0.25 * grid.lines[0] ** 4)
    return np.asarray(jnp.tensordot(density / jnp.sum(density), means, 1))


def cost(samples, steps, rounds):
    """Seconds of one step of one trajectory with work, for each stepper."""
    dynamics, x0s, ts = quartic_trap(), jnp.zeros((samples, 1)), jnp.linspace(0.0, 1.0, steps + 1)
    jobs = {name: lambda key, make=make: accumulate(work, dynamics, x0s, ts, stepper=make(), key=key) for name, make in STEPPERS.items()}
    return {name: s / samples / steps for name, s in interleaved(jobs, rounds=rounds).items()}


def measure(*, smoke, peers):
    """The table."""
    del peers
    sizes, cells = ([8, 16, 32], 120) if smoke else ([8, 16, 32, 64, 128, 256], 240)
    seconds = cost(1000, 20, 2) if smoke else cost(20_000, 200, 7)
    with jax.enable_x64(True):
        best = 64 if smoke else 512
        limit = (4 * chain_means(STEPPERS["Heun"](), best, cells) - chain_means(STEPPERS["Heun"](), best // 2, cells)) / 3
        means = {name: {n: chain_means(make(), n, cells) for n in sizes} for name, make in STEPPERS.items()}
    curves = {}
    for name, values in means.items():
        errors = {n: np.abs(value - limit) for n, value in values.items()}
        curves[name] = {n: (1e5 * n * seconds[name], *errors[n]) for n in sizes}
    for name, order in ORDERS.items():
        gain, values = 2**order, means[name]
        pairs = {n: np.abs((gain * values[n] - values[n // 2]) / (gain - 1) - limit) for n in sizes[1:]}
        # Both runs of a pair are paid for.
        curves[f"{name}, extrapolated"] = {n: (1.5e5 * n * seconds[name], *error) for n, error in pairs.items()}
    print(f"seconds of 100 000 trajectories, float32, {versions()['device']}; errors of mean work and of <x^2> (float64, on a grid)")
    for name, rows in curves.items():
        for n, (s, *errors) in rows.items():
            print(f"{name:22s} {n:4d} steps {s:8.3f} s " + " ".join(f"{e:10.2e}" for e in errors))
    reach = {name: seconds_to(rows, TARGET * abs(limit[0])) for name, rows in curves.items()}
    for name, s in reach.items():
        print(f"{name:22s} relative error of the mean work {TARGET:g}: {s:.3f} s, {reach['Euler'] / s:.1f} times as fast as Euler")
    return {
        "limit": dict(zip(OBSERVABLES, map(float, limit), strict=True)),
        "seconds_per_step": seconds,
        "curves": {name: [[n, *map(float, row)] for n, row in rows.items()] for name, rows in curves.items()},
        "seconds_to_target": reach,
        "target": TARGET,
    }


def seconds_to(rows, error):
    """Seconds at which the error of the work falls below `error`, along the line through the last two points of a curve."""
    (s0, e0, _), (s1, e1, _) = list(rows.values())[-2:]
    slope = np.log(e1 / e0) / np.log(s1 / s0)
    return float(s1 * (error / e1) ** (1 / slope))


def draw(result):
    """Weak error against seconds."""
    picture, axes = panels(2)
    looks = {
        "Euler": (COLOURS["first"], "o-"),
        "Euler, extrapolated": (COLOURS["first"], "o--"),
        "Heun": (COLOURS["second"], "s-"),
        "Heun, extrapolated": (COLOURS["second"], "s--"),
        "ShARK": (COLOURS["exact"], "^-"),
        "SRA1": (COLOURS["exact"], "v:"),
        "midpoint": (COLOURS["faint"], "d-"),
    }
    titles = ("mean work", r"mean square of the position, $\langle x_\tau^2\rangle$")
    curves = result["curves"]
    for column, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        for name, (colour, style) in looks.items():
            rows = np.array(curves[name])
            ax.loglog(rows[:, 1], rows[:, 2 + column], style, color=colour, markersize=4, linewidth=1.2, label=name)
        ax.set(xlabel="seconds of 100 000 trajectories", ylabel="|weak error|", title=title)
    axes[1].legend(fontsize=7, ncols=2)
    return picture
