"""What does a training step of a controlled sampler cost, against a scheme that looks at every state twice?

Controlled Monte Carlo diffusion on the ten-dimensional funnel, reverse divergence, the same network and numbers both ways. The scheme with
two looks evaluates the kernel of a step and its reversal each by itself, the way the method is written down: two gradients of the
annealed density and two calls of the network for each step, path by path, with a key for each path. The gradients agree.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import record
from jax import lax
from jax.flatten_util import ravel_pytree

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


def main(*, smoke):
    """Milliseconds of a training step both ways, and their ratio."""
    result = {}
    for samples, steps in [(16, 8)] if smoke else [(128, 64), (512, 64), (128, 256)]:
        found = jobs(samples, steps)
        # Other noise, the same mean: the gradients agree within their noise.
        values = {name: float(ravel_pytree(found[name](jr.key(1)))[0][0]) for name in ("once", "twice")}
        seconds = interleaved(found, rounds=3 if smoke else 15)
        ratio = seconds["twice"] / seconds["once"]
        print(
            f"{samples:4d} paths of {steps:3d} steps: {1e3 * seconds['once']:.1f} ms with one look per state, "
            f"{1e3 * seconds['twice']:.1f} ms with two, ratio {ratio:.2f}; "
            f"gradient over paths alone {seconds['once'] / seconds['paths alone']:.2f}; "
            f"losses {values['once']:.3f} and {values['twice']:.3f}"
        )
        result[f"{samples}x{steps}"] = {**seconds, "ratio": ratio, "losses": values}
    return result


if __name__ == "__main__":
    record.run(main, __doc__)
