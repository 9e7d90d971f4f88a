"""What does a training step of a controlled sampler cost, and how long does a generative flow network learn?

Controlled Monte Carlo diffusion on the ten-dimensional funnel, reverse divergence, against a scheme that looks at every state twice, the
same network and numbers both ways: it evaluates the kernel of a step and its reversal each by itself, the way the method is written
down, two gradients of the annealed density and two calls of the network for each step, path by path, with a key for each path. The
gradients agree.

A generative flow network learns the 8 x 8 hypergrid by trajectory balance, from 32 000 trajectories in batches of 16: seconds of the first
training, compilation included, and of one that finds everything compiled, and how far the ends of its walks are from R/Z, exactly.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.flatten_util import ravel_pytree

from thermojax.gflownets import balance_optimizer, exactly, explore, GFlowNet, Hypergrid, learned as of_policy, Network, TrajectoryBalance
from thermojax.optimize import fit
from thermojax.plots import COLOURS, panels
from thermojax.samplers import controlled, learned, ReverseKL, walk
from thermojax.speed import interleaved
from thermojax.targets import Funnel


def twice(sampler, samples, key):
    """The mean log-ratio by kernels that are evaluated one by one."""
    steps, dim = sampler.log_steps.shape
    betas = jnp.concatenate([jnp.zeros(1), jnp.cumsum(jax.nn.softmax(sampler.tempering))])

    def annealed(k, x):
        return (1 - betas[k]) * sampler.log_first(x) + betas[k] * sampler.target(x)

    def field(k, x):
        force = sampler.network.clipped(jax.grad(sampler.target)(x))
        control, _ = sampler.network(k / steps, x, force)
        return jax.grad(lambda y: annealed(k, y))(x), control[0]

    def log_normal(x, mean, scale):
        return jnp.sum(-0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi))

    def path(key):
        start_key, noise_key = jr.split(key)
        x = sampler.first(jr.normal(start_key, (dim,)))

        def step(carry, k):
            x, total, key = carry
            key, own = jr.split(key)
            h = jnp.exp(sampler.log_steps[k])
            scale = jnp.sqrt(2 * h)
            pull, control = field(k, x)
            ahead = x + h * pull + scale * control
            y = ahead + scale * jr.normal(own, (dim,))
            pull, control = field(k + 1, y)
            back = y + h * pull - scale * control
            return (y, total + log_normal(y, ahead, scale) - log_normal(x, back, scale), key), None

        (last, total, _), _ = lax.scan(step, (x, sampler.log_first(x), noise_key), jnp.arange(steps))
        return total - sampler.target(last)

    return jnp.mean(jax.vmap(path)(jr.split(key, samples)))


def jobs(samples, steps):
    """Value and gradient of the loss, both ways, and the paths alone."""
    sampler = controlled("cmcd", Funnel(), dim=10, steps=steps, key=jr.key(0))
    mask = jax.tree.map(lambda _: False, sampler)
    params, fixed = eqx.partition(sampler, eqx.tree_at(learned, mask, replace_fn=lambda part: jax.tree.map(lambda _: True, part)))
    params, rest = eqx.partition(params, eqx.is_inexact_array)
    fixed = eqx.combine(fixed, rest)

    def gradient(loss):
        run = jax.jit(lambda params, key: jax.value_and_grad(lambda p: loss(eqx.combine(p, fixed), key))(params))
        return lambda key: run(params, key)

    alone = jax.jit(lambda key: jnp.mean(walk(sampler, samples, key=key).log_ratios))
    return {"once": gradient(ReverseKL(samples)), "twice": gradient(lambda s, key: twice(s, samples, key)), "paths alone": alone}


def of_samplers(settings, rounds):
    """Milliseconds of a training step both ways, and their ratio."""
    found = {}
    for samples, steps in settings:
        both = jobs(samples, steps)
        # Other noise, the same mean: the gradients agree within their noise.
        values = {name: float(ravel_pytree(both[name](jr.key(1)))[0][0]) for name in ("once", "twice")}
        seconds = interleaved(both, rounds=rounds)
        ratio = seconds["twice"] / seconds["once"]
        print(
            f"{samples:4d} paths of {steps:3d} steps: {1e3 * seconds['once']:.1f} ms with one look per state, "
            f"{1e3 * seconds['twice']:.1f} ms with two, ratio {ratio:.2f}; "
            f"gradient over paths alone {seconds['once'] / seconds['paths alone']:.2f}; "
            f"losses {values['once']:.3f} and {values['twice']:.3f}"
        )
        found[f"{samples} paths, {steps} steps"] = {**seconds, "ratio": ratio, "losses": values}
    return found


def of_flows(side, trajectories, batch=16):
    """Seconds to train a flow network on a grid of `side` x `side`, and its distance from the target before and after."""
    grid = Hypergrid(side, 2)
    graph = explore(grid)
    start = GFlowNet(grid, Network(grid, width=128, depth=2, key=jr.key(0)), 0.0, graph)
    steps, seconds = trajectories // batch, []
    optimizer = balance_optimizer(steps, rate=3e-3, log_z_rate=0.1)
    for _ in range(2):
        tick = time.perf_counter()
        found = fit(TrajectoryBalance(batch, 0.1), start, optimizer=optimizer, steps=steps, where=of_policy, key=jr.key(1))
        jax.block_until_ready(found.history)
        seconds.append(time.perf_counter() - tick)
    distances = [float(exactly(model, graph).l1) for model in (start, found.model)]
    print(
        f"hypergrid of {side} x {side}, {steps * batch} trajectories: {seconds[0]:.1f} s, compiled {seconds[1]:.1f} s "
        f"({1e3 * seconds[1] / steps:.2f} ms a step); distance from R/Z {distances[0]:.3f} -> {distances[1]:.3f}"
    )
    return {"trajectories": steps * batch, "first_seconds": seconds[0], "seconds": seconds[1], "distances": distances}


def measure(*, smoke, peers):
    """Both tables."""
    del peers
    samplers = of_samplers([(16, 8)] if smoke else [(128, 64), (512, 64), (128, 256)], 2 if smoke else 15)
    return {"samplers": samplers, "flow network": of_flows(*((4, 160) if smoke else (8, 32_000)))}


def draw(found):
    """Milliseconds of a step."""
    figure, (ax,) = panels(width=6.4, height=2.8)
    looks = {"paths alone": "exact", "once": "first", "twice": "faint"}
    names = {"paths alone": "paths alone", "once": "gradient, one look", "twice": "gradient, two looks"}
    for k, (job, colour) in enumerate(looks.items()):
        values = [1e3 * row[job] for row in found["samplers"].values()]
        ax.barh([row + 0.27 * (k - 1) for row in range(len(values))], values, height=0.25, color=COLOURS[colour], label=names[job])
    ax.set_yticks(range(len(found["samplers"])), list(found["samplers"]))
    ax.set(xlabel="milliseconds of a training step")
    ax.legend(loc="lower right", frameon=False, fontsize=8)
    return figure
