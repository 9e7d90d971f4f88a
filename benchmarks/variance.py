"""How long does the mean work of a driven quartic trap take to a relative standard error of 1e-4, at the same step?

Plain Monte Carlo against antithetic pairs, quasi-random bridges, controls from linear response and combinations of them, 1000 Euler steps
from a point and from equilibrium: variance times cost, in interleaved rounds, and one run that goes all the way. The exact mean of the
same chain comes from a grid.
"""

import functools as ft
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import ndtr

from thermojax import accumulate, equilibrium, mean
from thermojax.fokker_planck import expected_sum, Grid
from thermojax.functionals import work
from thermojax.plots import COLOURS, panels
from thermojax.speed import interleaved, quartic_trap
from thermojax.store import versions
from thermojax.variance import controlled, paired, replicated_mean, response_control, sobol_bridges, stein_controls

TARGET = 1e-4
REPLICATES = 32

STARTS = ("point", "equilibrium")
# One and the same, so that nothing is compiled twice.
trap = ft.cache(quartic_trap)


def exact_means(ts):
    """The mean work of the Euler chain on this grid, from the origin and from equilibrium."""
    with jax.enable_x64(True):
        # The origin is the middle of a cell.
        grid = Grid(-5.025, 5.975, 220)
        means = expected_sum(work, quartic_trap(), grid, jnp.asarray(ts, jnp.float64), nodes=12)
        density = jnp.exp(-0.25 * grid.lines[0] ** 4)
        origin = int(jnp.argmin(jnp.abs(grid.lines[0])))
        return {"point": float(means[origin]), "equilibrium": float(jnp.sum(density * means) / jnp.sum(density))}


def states_at(start, z):
    """First states from one standard normal each: the inverse of their distribution function."""
    if start == "point":
        return jnp.zeros_like(z)
    x = jnp.linspace(-4.5, 4.5, 20_001)
    weight = jnp.exp(-0.25 * x**4)
    cumulative = jnp.cumsum(weight) - 0.5 * weight
    return jnp.interp(ndtr(z), cumulative / jnp.sum(weight), x)


def pilot(start, count, steps, key):
    """The control from linear response, on a grid of `steps`."""
    start_key, key = jr.split(key)
    x0s = states_at(start, jr.normal(start_key, (count, 1)))
    return response_control(work, trap(), x0s, jnp.linspace(0.0, 1.0, steps + 1), key=key)


def ways(start, control, ts, intervals):
    """Jobs that estimate the mean work from `count` trajectories."""
    density = equilibrium(trap().potential, 0.0)

    def rows(x0s, controls):
        return controls[:, None] if start == "point" else jnp.concatenate([controls[:, None], stein_controls(density, x0s)], axis=1)

    def pairs_of_states(key, count):
        half = states_at(start, jr.normal(key, (count // 2, 1)))
        return jnp.concatenate([half, -half])

    def plain(key, count):
        start_key, key = jr.split(key)
        x0s = states_at(start, jr.normal(start_key, (count, 1)))
        return mean(accumulate(work, trap(), x0s, ts, key=key)[1])

    def antithetic(key, count):
        start_key, key = jr.split(key)
        return mean(paired(accumulate(work, trap(), pairs_of_states(start_key, count), ts, noise="antithetic", key=key)[1]))

    def bridged(key, count):
        sobol_key, key = jr.split(key)
        z, noise = sobol_bridges(points=count // REPLICATES, replicates=REPLICATES, intervals=intervals, start=1, key=sobol_key)
        return replicated_mean(accumulate(work, trap(), states_at(start, z), ts, noise=noise, key=key)[1], replicates=REPLICATES)

    def responding(key, count):
        start_key, key = jr.split(key)
        x0s = states_at(start, jr.normal(start_key, (count, 1)))
        _, (works, controls) = accumulate((work, control), trap(), x0s, ts, key=key)
        return mean(controlled(works, rows(x0s, controls)))

    def both(key, count):
        start_key, key = jr.split(key)
        x0s = pairs_of_states(start_key, count)
        _, (works, controls) = accumulate((work, control), trap(), x0s, ts, noise="antithetic", key=key)
        return mean(controlled(paired(works), paired(rows(x0s, controls))))

    def bridged_and_controlled(key, count):
        sobol_key, key = jr.split(key)
        z, noise = sobol_bridges(points=count // REPLICATES, replicates=REPLICATES, intervals=intervals, start=1, key=sobol_key)
        x0s = states_at(start, z)
        _, (works, controls) = accumulate((work, control), trap(), x0s, ts, noise=noise, key=key)
        return replicated_mean(controlled(works, rows(x0s, controls)), replicates=REPLICATES)

    return {
        "plain": plain,
        "antithetic pairs": antithetic,
        "bridges": bridged,
        "controls": responding,
        "controls, antithetic": both,
        "controls, bridges": bridged_and_controlled,
    }


def measure(*, smoke, peers):
    """The tables."""
    del peers
    steps, count, rounds = (50, 1024, 2) if smoke else (1000, 65_536, 5)
    pilot_paths, pilot_steps, intervals = (500, 25, 8) if smoke else (8000, 100, 32)
    ts = jnp.linspace(0.0, 1.0, steps + 1)
    exact, result = exact_means(ts), {}
    print(
        f"mean work of {steps} Euler steps, {count} trajectories, float32, {versions()['device']}; medians of {rounds} interleaved rounds"
    )
    for start in STARTS:
        lap = time.perf_counter()
        jax.block_until_ready(pilot(start, pilot_paths, pilot_steps, jr.key(100)).first)
        compiled = time.perf_counter() - lap
        lap = time.perf_counter()
        control = jax.block_until_ready(pilot(start, pilot_paths, pilot_steps, jr.key(101)))
        pilot_seconds = time.perf_counter() - lap
        jobs = ways(start, control, ts, intervals)
        estimates = {name: job(jr.key(7), count) for name, job in jobs.items()}
        seconds = interleaved({name: lambda key, job=job: job(key, count) for name, job in jobs.items()}, rounds=rounds)
        print(f"\nfrom {start}: exact {exact[start]:.7f}; pilot {pilot_seconds:.2f} s (first time, with compilation, {compiled:.1f} s)")
        table = {}
        for name, estimate in estimates.items():
            value, stderr = float(estimate.value), float(estimate.stderr)
            extra = pilot_seconds if "controls" in name else 0.0
            needed = seconds[name] * (stderr / abs(exact[start]) / TARGET) ** 2 + extra
            pull = (value - exact[start]) / stderr
            table[name] = {"value": value, "stderr": stderr, "seconds": seconds[name], "seconds_to_target": needed, "pull": pull}
            gain = table["plain"]["seconds_to_target"] / needed
            print(
                f"{name:22s} {value:.6f} ± {stderr:.1e} ({pull:+.1f} errors) in {seconds[name]:6.2f} s; "
                f"to {TARGET:g}: {needed:9.2f} s, {gain:7.1f} times as fast as plain"
            )
        result[start] = {"exact": exact[start], "pilot_seconds": pilot_seconds, "pilot_compiled": compiled, "ways": table}
    if not smoke:
        result["all_the_way"] = all_the_way(result, ts, pilot_paths, pilot_steps, intervals, exact)
    return result | {"steps": steps, "samples": count, "target": TARGET}


def all_the_way(result, ts, pilot_paths, pilot_steps, intervals, exact):
    """One run to the target from equilibrium with antithetic controls, pilot included, compiled before."""
    start, name, block = "equilibrium", "controls, antithetic", 65_536
    row = result[start]["ways"][name]
    blocks = int(np.ceil(1.1 * (row["stderr"] / exact[start] / TARGET) ** 2))
    lap = time.perf_counter()
    job = ways(start, pilot(start, pilot_paths, pilot_steps, jr.key(200)), ts, intervals)[name]
    estimates = [job(jr.fold_in(jr.key(201), i), block) for i in range(blocks)]
    value = float(np.mean([e.value for e in estimates]))
    stderr = float(np.sqrt(np.sum([float(e.stderr) ** 2 for e in estimates])) / blocks)
    seconds = time.perf_counter() - lap
    relative = stderr / exact[start]
    print(f"\nall the way: {name}, from {start}: {blocks * block} trajectories, {value:.7f} ± {stderr:.1e}, relative {relative:.2e}")
    print(f"in {seconds:.2f} s with the pilot; plain Monte Carlo would take {result[start]['ways']['plain']['seconds_to_target']:.0f} s")
    return {"value": value, "stderr": stderr, "relative": relative, "seconds": seconds, "trajectories": blocks * block}


def draw(result):
    """Seconds to the target, for each way."""
    picture, axes = panels(2)
    for ax, start in zip(axes, STARTS, strict=True):
        table = result[start]["ways"]
        seconds = [row["seconds_to_target"] for row in table.values()]
        ax.barh(range(len(table)), seconds, color=[COLOURS["faint"], *[COLOURS["first"]] * (len(table) - 1)])
        for place, s in enumerate(seconds):
            ax.text(s * 1.15, place, f"{s:,.0f} s" if s > 100 else f"{s:.1f} s", va="center", fontsize=8)
        ax.set_yticks(range(len(table)), list(table))
        ax.invert_yaxis()
        ax.axvline(seconds[0] / 3, color=COLOURS["second"], linewidth=1, linestyle="--", label="a third of plain")
        ax.set(xscale="log", xlim=(min(seconds) / 3, max(seconds) * 12), title=f"from {'a point' if start == 'point' else start}")
        ax.set_xlabel(f"seconds to a relative standard error of {result['target']:g}")
        ax.legend(fontsize=8, loc="lower right")
    return picture
