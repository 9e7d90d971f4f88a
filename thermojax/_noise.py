"""Standard normals: the numbers of `jax.random.normal`, two to four times as fast on a CPU.

There, JAX runs the twenty rounds of its default generator as a loop over arrays, which go through memory five times to keep compilation
short. Written out, they are one loop over the numbers: no array of bits is ever made, and this compiles faster still.
"""

import functools as ft
import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, PRNGKeyArray as Key

# J. K. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC'11: Threefry-2x32 with 20 rounds.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def normals(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """The numbers that ``jax.random.normal(key, shape, dtype)`` returns, to the last bit, for a key of any generator."""
    size = math.prod(shape)
    by_place = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    # The counter of a number is its place among them, as far as one word reaches; the counters of old are JAX's own business.
    if str(jr.key_impl(key)) != "threefry2x32" or not by_place or size >= 2**32:
        return jr.normal(key, shape, dtype)
    half = -(-size // 2)

    def in_halves(words):
        # The compiler for CPUs draws anew for everything that uses them (three coordinates took four times as long, a gradient three
        # times), unless they come out of a loop.
        starts = jnp.arange(2, dtype=np.uint32) * np.uint32(half)
        return lax.map(lambda start: _from(start, (half,), dtype, words), starts).reshape(-1)[:size].reshape(shape)

    return lax.platform_dependent(jr.key_data(key), cpu=in_halves, default=ft.partial(_from, np.uint32(0), shape, dtype))


def _from(start, shape, dtype, words):
    """As many numbers, from the place `start` on."""
    key = jr.wrap_key_data(jnp.append(words, start), impl=_generator())
    return jr.normal(key, shape, dtype)


@ft.cache
def _generator():
    """The generator as JAX sees it, which asks for bits alone; its keys are a key of threefry and the place of the first number."""
    import jax.extend.random as jex

    def refuse(*_):
        raise NotImplementedError("Keys for normals are used once: they make no other keys.")

    names = {"name": "threefry2x32_written_out", "tag": "two"}
    return jex.define_prng_impl(key_shape=(3,), seed=refuse, split=refuse, fold_in=refuse, random_bits=_random_bits, **names)


def _random_bits(key, width, shape):
    places = key[2] + lax.iota(np.uint32, math.prod(shape)).reshape(shape)
    a, b = _threefry(key[0], key[1], jnp.zeros_like(places), places)
    if width == 64:
        return (a.astype(np.uint64) << np.uint64(32)) | b.astype(np.uint64)
    return (a ^ b).astype(f"uint{width}")


def _threefry(key0, key1, a, b):
    """The hash of the counter of two words."""
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    a, b = a + key0, b + key1
    for i in range(5):
        for turn in _ROTATIONS[i % 2]:
            a = a + b
            b = a ^ ((b << np.uint32(turn)) | (b >> np.uint32(32 - turn)))
        a, b = a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + np.uint32(i + 1)
    return a, b
