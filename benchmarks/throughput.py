"""How close does an ensemble with work and log-ratio come to the rate at which its normals alone can be drawn, and to what do others get?

100 000 trajectories of 1000 Euler steps of a driven quartic trap, float32 unless said otherwise, everybody in turns. NumPy, PyTorch, plain
`lax.scan` and the library sum work in Crooks' order and the log-ratio of the kernels; langesim sums work and heat by itself; torchsde and
diffrax, as their documentation shows, carry work and entropy of the medium as two more components of the state (textbook diffrax on a
hundredth of the trajectories, and torchsde on a fifth of the steps: their cost is linear). All report a mean work: it agrees.

The limit is drawn two ways: by `jax.random.normal`, and by the library, whose numbers are the same and come faster.
"""

import time

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax

from thermojax.plots import COLOURS, panels
from thermojax.speed import ensemble_job, interleaved, normals_only, quartic_trap

LIBRARY, LIMIT, OWN_LIMIT = "thermojax", "jax.random.normal alone", "thermojax's normals alone"
FLOAT64, FLOAT32 = "NumPy, float64", "NumPy, float32"
TEXTBOOK = "diffrax, textbook"


def by_numpy(samples, steps, dtype):
    """The job in NumPy, for all trajectories at once."""

    def run(key):
        rng, h = np.random.default_rng(int(jr.key_data(key)[-1])), dtype(1.0 / steps)
        spread = np.sqrt(2 * h)

        def energy(x, lam):
            square = (x - lam) * (x - lam)
            return dtype(0.25) * square * square

        def force(x, lam):
            gap = x - lam
            return -gap * gap * gap

        x, works, ratios = (np.zeros(samples, dtype) for _ in range(3))
        for k in range(steps):
            first, middle, last = (dtype(s / steps) for s in (k, k + 0.5, k + 1))
            out = force(x, middle) * h
            y = x + out + spread * rng.standard_normal(samples, dtype)
            works += energy(x, middle) - energy(x, first) + energy(y, last) - energy(y, middle)
            back = force(y, middle) * h
            ratios += (out + back) * (y - x + dtype(0.5) * (back - out)) / (2 * h)
            x = y
        return works, ratios

    return run


def step_by_hand(h):
    """One step, its work and its log-ratio, as one would write them for this one potential."""
    energy = lambda x, lam: 0.25 * (x - lam) ** 4
    force = lambda x, lam: -((x - lam) ** 3)

    def step(x, works, ratios, k, zs):
        first, middle, last = k * h, (k + 0.5) * h, (k + 1) * h
        out = force(x, middle) * h
        y = x + out + jnp.sqrt(2 * h) * zs
        works = works + energy(x, middle) - energy(x, first) + energy(y, last) - energy(y, middle)
        back = force(y, middle) * h
        return y, works, ratios + (out + back) * (y - x + 0.5 * (back - out)) / (2 * h)

    return step


def by_hand(samples, steps):
    """A hand-written `lax.scan` over a batch, with a key for each step."""
    step = step_by_hand(1.0 / steps)

    @jax.jit
    def run(key):
        def move(carry, k):
            return step(*carry, k.astype(float), jr.normal(jr.fold_in(key, k), (samples,))), None

        return lax.scan(move, (jnp.zeros(samples),) * 3, jnp.arange(steps))[0][1:]

    return run


def by_path(samples, steps):
    """`vmap` of a hand-written `lax.scan`, with a key for each trajectory."""
    step = step_by_hand(1.0 / steps)

    def one(key):
        def move(carry, k):
            return step(*carry, k.astype(float), jr.normal(jr.fold_in(key, k))), None

        return lax.scan(move, (jnp.zeros(()),) * 3, jnp.arange(steps))[0][1:]

    return jax.jit(lambda key: jax.vmap(one)(jr.split(key, samples)))


def textbook(samples, steps):
    """The way diffrax's documentation shows: `diffeqsolve` under `vmap`, a virtual Brownian tree for each, sums in the state."""
    trap = quartic_trap()

    def drift(t, state, args):
        x, _, _ = state
        force = trap.drift(t, x[None])[0]
        slope = jax.grad(lambda y: trap.drift(t, y[None])[0])(x)
        # F o dx = F dx + D F' dt; the power dV/dt is F for a control that moves at unit speed.
        return jnp.stack([force, force, force**2 + slope])

    def noise(t, state, args):
        one = trap.noise(t)
        return jnp.stack([one, 0.0 * one, one * trap.drift(t, state[:1])[0]])[:, None]

    def solve(key):
        motion = diffrax.VirtualBrownianTree(0.0, 1.0, tol=0.5 / steps, shape=(1,), key=key)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(noise, motion))
        ys = diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 1.0, 1 / steps, jnp.zeros(3), max_steps=steps + 1).ys
        return ys[0, 1], ys[0, 2]

    batch = jax.jit(jax.vmap(solve))
    return lambda key: batch(jr.split(key, samples))


def work_of(answer):
    """Mean work and its standard error from what a job returns."""
    if isinstance(answer, dict):
        return answer["work"], answer["stderr"]
    works = np.asarray(answer[1][0] if jnp.ndim(answer[0]) == 2 else answer[0], float)
    return works.mean(), works.std() / len(works) ** 0.5


def measure(*, smoke, peers):
    """The tables: seconds of everybody for the whole job, and of the library against its limit."""
    samples, steps, rounds, fewer, slow = (2000, 50, 2, 100, 50) if smoke else (100_000, 1000, 3, 1000, 200)
    scale = {TEXTBOOK: samples / fewer, "torchsde": steps / slow}
    jobs = {
        LIBRARY: ensemble_job(samples, steps),
        "lax.scan over a batch": by_hand(samples, steps),
        "vmap of lax.scan": by_path(samples, steps),
        FLOAT32: by_numpy(samples, steps, np.float32),
        FLOAT64: by_numpy(samples, steps, np.float64),
        TEXTBOOK: textbook(fewer, steps),
        **peers.jobs(samples, steps, ["PyTorch loop", "langesim"]),
        **peers.jobs(samples, slow, ["torchsde"]),
    }
    first, works = {}, {}
    for name, job in jobs.items():
        tick = time.perf_counter()
        works[name] = work_of(jax.block_until_ready(job(jr.key(0))))
        first[name] = time.perf_counter() - tick
    seconds = {name: s * scale.get(name, 1.0) for name, s in interleaved(jobs, rounds=rounds, warm=True).items()}
    limits = {LIBRARY: jobs[LIBRARY], LIMIT: normals_only(samples, steps), OWN_LIMIT: normals_only(samples, steps, own=True)}
    pace = interleaved(limits, rounds=3 if smoke else 7)

    print(f"{samples} trajectories x {steps} steps; medians of {rounds} interleaved rounds (limits: 7)")
    print(f"{'':28s} {'million steps/s':>16s} {'thermojax is':>14s} {'mean work':>20s}")
    for name, s in sorted(seconds.items(), key=lambda item: item[1]):
        mean, stderr = works[name]
        print(f"{name:28s} {samples * steps / s / 1e6:16.1f} {s / seconds[LIBRARY]:12.1f} x {mean:10.4f} ± {stderr:.4f}")
    for name in (LIMIT, OWN_LIMIT):
        print(f"{name:28s} {samples * steps / pace[name] / 1e6:16.1f}   the library runs at {pace[name] / pace[LIBRARY]:.2f} of it")
    return {
        "samples": samples,
        "steps": steps,
        "seconds": seconds,
        "first_call_seconds": first,
        "mean_work": {name: {"value": float(mean), "stderr": float(stderr)} for name, (mean, stderr) in works.items()},
        "times_as_fast_as": {name: s / seconds[LIBRARY] for name, s in seconds.items() if name != LIBRARY},
        "limit_seconds": pace,
        "of_limit": pace[LIMIT] / pace[LIBRARY],
        "of_own_limit": pace[OWN_LIMIT] / pace[LIBRARY],
    }


def draw(found):
    """Rates as bars, the limits as lines."""
    figure, (ax,) = panels(width=7.2, height=3.4)
    count = found["samples"] * found["steps"] / 1e6
    rates = sorted((count / s, name) for name, s in found["seconds"].items())
    for row, (rate, name) in enumerate(rates):
        ax.barh(row, rate, color=COLOURS["first" if name == LIBRARY else "faint"], height=0.7)
        ax.annotate(f"{rate:.3g}", (rate, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    for name, style in ((LIMIT, "--"), (OWN_LIMIT, ":")):
        ax.axvline(count / found["limit_seconds"][name], color=COLOURS["exact"], linestyle=style, linewidth=1, label=name)
    ax.set_yticks(range(len(rates)), [name for _, name in rates])
    ax.set(xlabel="million steps per second, work and log-ratio (or entropy) summed", xscale="log", xlim=(0.1, 3 * rates[-1][0]))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8)
    return figure
