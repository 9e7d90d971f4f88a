"""What thermojax needs of the array library it runs on."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest


@pytest.mark.parametrize("rows", [100, 20_000, 40_000])
def test_compiled_sums_of_products_agree_with_the_same_sums_in_pieces(rows):
    # jaxlib 0.10.2 fails here on the CPU (jax issue 39103), which is why pyproject.toml excludes it.
    matrix = jr.normal(jr.key(0), (3, 3))
    xs = jr.normal(jr.key(1), (rows, 3))
    squares = jax.jit(jax.vmap(lambda x: jnp.sum((matrix @ x) ** 2)))
    whole = squares(xs)
    pieces = jnp.concatenate([squares(xs[i : i + 50]) for i in range(0, rows, 50)])
    assert jnp.allclose(whole, pieces, rtol=1e-5)
