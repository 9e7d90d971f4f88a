"""Densities on a line: their integrals by Gauss's rule in many small cells, their draws by inversion, both to rounding."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax._array import Scalar

_CELLS = 512
_NODES = 8


@eqx.filter_jit
def log_integral(log_density: Callable[[Array], Array], low: Scalar, high: Scalar) -> Scalar:
    r"""$\ln\int_a^b e^{f(x)}\,dx$ of a smooth $f$, given for arrays of any shape; differentiable in what $f$ and the ends depend on."""
    return logsumexp(_log_masses(log_density, _edges(low, high)))


@eqx.filter_jit
def draw_line(log_density: Callable[[Array], Array], low: Scalar, high: Scalar, n: int, *, key: Key) -> Float[Array, " n"]:
    r"""Independent draws from the density $\propto e^{f(x)}$ on $[a, b]$: a cell by its mass, then the place in it by Newton's method."""
    cell_key, place_key = jr.split(key)
    edges = _edges(low, high)
    logs = _log_masses(log_density, edges)
    cumulative = jnp.cumsum(jnp.exp(logs - jnp.max(logs)))
    marks = cumulative[-1] * jr.uniform(cell_key, (n,), edges.dtype)
    cells = jnp.minimum(jnp.searchsorted(cumulative, marks, side="right"), _CELLS - 1)
    left, right, mass = edges[cells], edges[cells + 1], logs[cells]
    shares = jr.uniform(place_key, (n,), edges.dtype)

    def newton(_, x):
        excess = jnp.exp(_log_mass(log_density, left, x) - mass) - shares
        return jnp.clip(x - excess * jnp.exp(mass - log_density(x)), left, right)

    return jax.lax.fori_loop(0, 6, newton, left + shares * (right - left))


def _edges(low, high):
    return low + (high - low) * jnp.linspace(0.0, 1.0, _CELLS + 1, dtype=low.dtype)


def _log_masses(log_density, edges):
    return _log_mass(log_density, edges[:-1], edges[1:])


def _log_mass(log_density, left, right):
    """Of each interval between `left` and `right`, shape ``(interval,)``; nothing for an empty one."""
    places, weights = (jnp.asarray(part, left.dtype)[None] for part in np.polynomial.legendre.leggauss(_NODES))
    half = 0.5 * (right - left)[:, None]
    logs = log_density(left[:, None] + half * (1.0 + places))
    return logsumexp(logs, axis=1, b=half * weights)
