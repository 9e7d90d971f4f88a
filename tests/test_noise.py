"""The normals of an ensemble: JAX's own numbers, drawn faster."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import needs_x64

from thermojax import _noise
from thermojax._noise import normals

SHAPES = [(), (5,), (1000, 1, 1), (7, 3, 2), (0, 2)]
by_jax = jax.jit(jr.normal, static_argnums=(1, 2))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, pytest.param(jnp.float64, marks=needs_x64)])
def test_normals_are_those_of_jax_to_the_last_bit(key, shape, dtype):
    drawn = jax.jit(normals, static_argnums=(1, 2))(key, shape, dtype)
    assert drawn.dtype == dtype
    np.testing.assert_array_equal(drawn, by_jax(key, shape, dtype))


def test_normals_of_many_keys_and_of_other_generators_are_those_of_jax(key):
    many = jax.jit(jax.vmap(lambda k: normals(k, (9, 2), jnp.float32)))
    np.testing.assert_array_equal(many(jr.split(key, 4)), jax.vmap(lambda k: jr.normal(k, (9, 2), jnp.float32))(jr.split(key, 4)))
    other = jr.key(5, impl="rbg")
    np.testing.assert_array_equal(normals(other, (6,), jnp.float32), jr.normal(other, (6,), jnp.float32))


def test_a_hash_with_one_wrong_rotation_is_seen(key, monkeypatch):
    _, second = _noise._ROTATIONS
    monkeypatch.setattr(_noise, "_ROTATIONS", ((13, 15, 26, 7), second))
    wrong = normals(key, (97,), jnp.float32)
    jax.clear_caches()  # it must not be found by others
    assert not np.array_equal(wrong, by_jax(key, (97,), jnp.float32))


@pytest.mark.parametrize("transform", [jax.jacrev, jax.jacfwd])
def test_what_is_differentiated_sees_the_same_numbers(key, transform):
    slope = jax.jit(transform(lambda x: x * normals(key, (7, 3), jnp.float32)))(jnp.asarray(2.0, jnp.float32))
    np.testing.assert_array_equal(slope, by_jax(key, (7, 3), jnp.float32))
