"""Functions of symmetric positive definite matrices, differentiable where eigenvalues coincide.

Derivatives are those of the equation that the result solves, so that the eigenvectors, which have none there, do not enter.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Matrix = Float[Array, "dim dim"]


def lyapunov(matrix: Matrix, right: Matrix) -> Matrix:
    r"""The solution $A$ of $AC + CA = B$ for a positive definite $C$: symmetric if $B$ is."""
    values, vectors = jnp.linalg.eigh(lax.stop_gradient(matrix))

    def solve(_, b):
        return vectors @ ((vectors.T @ b @ vectors) / (values[:, None] + values[None])) @ vectors.T

    return lax.custom_linear_solve(lambda a: a @ matrix + matrix @ a, right, solve, symmetric=True)


@jax.custom_jvp
def square_root(matrix: Matrix) -> Matrix:
    """The positive definite square root."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None]) @ vectors.T


@square_root.defjvp
def _square_root_jvp(primals, tangents):
    root = square_root(*primals)
    return root, lyapunov(root, *tangents)
