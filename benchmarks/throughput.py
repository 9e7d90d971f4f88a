"""How close does an ensemble with work and log-ratio come to the rate at which its normals alone can be drawn, and what does a gradient
cost?

``python benchmarks/throughput.py`` runs 10 000 trajectories of 1000 steps of a driven quartic trap, five ways that take turns, and prints
a table; ``--smoke`` does a small version in seconds. Results go to ``benchmarks/results/throughput.json``.
"""

import time

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import record

from thermojax.speed import ensemble_job, gradient_job, interleaved, normals_only, quartic_trap
from thermojax.store import versions


def textbook(samples, steps):
    """The way diffrax's documentation shows: `diffeqsolve` under `vmap`, with a virtual Brownian tree for each trajectory."""
    dynamics = quartic_trap()

    def one(key):
        motion = diffrax.VirtualBrownianTree(0.0, 1.0, tol=0.5 / steps, shape=(1,), key=key)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, x, args: dynamics.drift(jnp.asarray(t), x)),
            diffrax.ControlTerm(lambda t, x, args: dynamics.noise(jnp.asarray(t))[None, None], motion),
        )
        return diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, 1.0, 1 / steps, jnp.zeros(1), max_steps=steps + 1).ys

    solve = jax.jit(jax.vmap(one))
    return lambda key: solve(jr.split(key, samples))


def main(*, smoke: bool) -> dict:
    """Measure and print the table."""
    samples, steps, rounds = (1000, 50, 3) if smoke else (10_000, 1000, 7)
    jobs = {
        "normals alone (the limit)": normals_only(samples, steps),
        "ensemble with work and log-ratio": ensemble_job(samples, steps),
        "its reverse-mode gradient": gradient_job(samples, steps),
    }
    compiled = {}
    for name, job in jobs.items():
        tick = time.perf_counter()
        jax.block_until_ready(job(jr.key(0)))
        compiled[name] = time.perf_counter() - tick
    seconds = interleaved(jobs, rounds=rounds)
    # A hundred times slower: a tenth of the trajectories, once, is enough to see it.
    few = samples // 10
    slow = "vmap(diffeqsolve), VirtualBrownianTree"
    seconds[slow] = 10 * interleaved({slow: textbook(few, steps)}, rounds=1 if smoke else 2)[slow]

    limit, forward = (seconds[name] for name in list(jobs)[:2])
    print(f"{samples} trajectories x {steps} steps, float32, {versions()['device']}; medians of {rounds} interleaved rounds")
    print(f"{'':42s} {'million steps/s':>16s} {'of the limit':>13s} {'compile + first (s)':>20s}")
    for name, s in seconds.items():
        print(f"{name:42s} {samples * steps / s / 1e6:16.1f} {limit / s:13.3f} {compiled.get(name, float('nan')):20.2f}")
    ratio = seconds["its reverse-mode gradient"] / forward
    print(f"gradient over forward pass: {ratio:.2f}")
    return {
        "samples": samples,
        "steps": steps,
        "seconds": seconds,
        "of_limit": limit / forward,
        "gradient_over_forward": ratio,
    }


if __name__ == "__main__":
    record.run(main, __doc__)
