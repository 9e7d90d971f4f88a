"""A crooked quartic target and its annealing by Langevin moves, solved on a grid."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thermojax._array import as_float
from thermojax.annealing import Geometric
from thermojax.distributions import Gaussian

GRID = np.linspace(-6.0, 6.0, 601)
SPACING = GRID[1] - GRID[0]


class Quartic(eqx.Module):
    """ln gamma = -a x^4 + b x^2 + c x, in one dimension: two wells of different depth."""

    coefficients: jax.Array = eqx.field(converter=as_float, default=(0.25, 0.8, 0.3))

    def __call__(self, x):
        a, b, c = self.coefficients
        return jnp.sum(-a * x**4 + b * x**2 + c * x)


def quartic_path():
    return Geometric(Gaussian([0.2], 1.2), Quartic())


def weights_on_grid(path=None, lam=1.0):
    """The density at `lam` on the grid, not normalised."""
    path = quartic_path() if path is None else path
    return np.exp(np.asarray(jax.vmap(lambda x: path(x, jnp.asarray(lam, float)))(points()), float))


def points():
    return jnp.asarray(GRID[:, None], float)


def moments(*, power=1):
    """Z and the mean of x to a power."""
    weights = weights_on_grid()
    return SPACING * np.sum(weights), np.sum(weights * GRID**power) / np.sum(weights)


def chain_of_kernels(kernel, path, lams, monkeypatch, *, shadow=lambda s: s):
    r"""$\alpha\mapsto\langle e^{-\alpha\ell}\rangle_P$ of a chain, by transfer matrices on the grid.

    The transition density is Euler's, written here; where each move goes and its shadow work are what the kernel itself says for the noise
    that leads from one point of the grid to another.
    """
    # The key is taken for the noise.
    monkeypatch.setattr("thermojax.annealing._kernels.jr.normal", lambda key, shape, dtype: jnp.broadcast_to(key, shape).astype(dtype))

    @eqx.filter_jit
    def level(kernel, lam0, lam1, index):
        h = kernel.step if kernel.step.ndim == 0 else kernel.step[index]
        slopes = jax.vmap(jax.grad(lambda x: path(x, lam1)))(points())[:, 0]
        grid = points()[:, 0]
        zs = (grid[None, :] - (grid + h * slopes)[:, None]) / jnp.sqrt(2 * h)

        def one(x, z):
            there, s = kernel(path, path.at(x, gradient=True), lam1, index, z)
            return there.x[0], s

        there, shadows = jax.vmap(lambda x, row: jax.vmap(lambda z: one(x, z))(row))(points(), zs)
        rises = jax.vmap(lambda x: path(x, lam1) - path(x, lam0))(points())
        return -0.5 * zs**2 - 0.5 * jnp.log(4 * jnp.pi * h), shadows, rises, there - grid[None, :]

    levels = [jax.tree.map(np.asarray, level(kernel, *lams[k : k + 2], jnp.asarray(k))) for k in range(len(lams) - 1)]
    assert max(np.max(np.abs(away)) for _, _, _, away in levels) < 1e-9
    first = weights_on_grid(path, 0.0)

    def average(alpha):
        value = np.ones_like(GRID)
        for logs, shadows, rises, _ in levels[::-1]:
            # Far off the grid's middle one factor overflows where the other is zero.
            exponents = np.clip(logs - alpha * shadow(shadows), -700, 300)
            value = np.exp(alpha * rises) * (SPACING * np.exp(exponents) @ value)
        return SPACING * np.sum(first * value)

    return average


def mean_ratio(average, alpha, *, h=1e-4):
    r"""$\langle\ell e^{-\alpha\ell}\rangle/\langle e^{-\alpha\ell}\rangle$: the mean under P for $\alpha = 0$, under Q for 1."""
    return -(np.log(average(alpha + h)) - np.log(average(alpha - h))) / (2 * h)
