"""Converters for the fields of models: numbers become floating-point arrays, so that they can be differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

Scalar = Float[Array, ""]


def as_float(value: ArrayLike | list | tuple) -> Array:
    """Return `value` as a floating-point array: an array of such numbers in its own precision, all else in the default one."""
    array = jnp.asarray(value)
    if jnp.iscomplexobj(array):
        raise TypeError(f"`value` must be real, got {value}.")
    known = isinstance(value, jax.Array | np.ndarray) and jnp.issubdtype(array.dtype, jnp.floating) and not array.weak_type
    return array if known else array.astype(float)


def as_scalar(value: Float[ArrayLike, ""] | int) -> Scalar:
    """Return `value` as one number of floating-point type."""
    return as_float(value)


def cast(tree: PyTree, dtype: jnp.dtype) -> PyTree:
    """Return `tree` with every floating-point array in the precision `dtype`."""

    def convert(leaf):
        floating = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if floating else leaf

    return jax.tree.map(convert, tree)
