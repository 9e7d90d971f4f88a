"""Gauss-Legendre quadrature in equal panels, with running integrals: of spectral order in each panel."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.polynomial import legendre

from thermojax._array import Scalar


class Panels(NamedTuple):
    """Nodes and weights of the quadrature over an interval, shape ``(panel, node)``, and what running integrals need."""

    nodes: Float[Array, "panel node"]
    """Where the integrand is read."""
    weights: Float[Array, "panel node"]
    """What it is multiplied with."""
    running: Float[Array, "node node"]
    """Integrals from the beginning of a panel to each node of the polynomial through its nodes, in units of half its width."""
    spectrum: Float[Array, "node node"]
    """Legendre coefficients of that polynomial."""

    def integral(self, values: Float[Array, "panel node"]) -> Scalar:
        """The integral over the interval."""
        return jnp.sum(self.weights * values)

    def below(self, values: Float[Array, "panel node"]) -> Float[Array, "panel node"]:
        """The integral from the lower end to every node, accurate in small values at that end."""
        return _running(self, self.running, self.weights, values)

    def above(self, values: Float[Array, "panel node"]) -> Float[Array, "panel node"]:
        """The integral from every node to the upper end, accurate in small values at that end."""
        return _running(self, self.running, self.weights[::-1, ::-1], values[::-1, ::-1])[::-1, ::-1]

    def roughness(self, values: Float[Array, "panel node"]) -> Scalar:
        """What the two highest coefficients of every panel would integrate to, in absolute value: zero for a resolved integrand."""
        highest = jnp.sum(jnp.abs(values @ self.spectrum[-2:].T), axis=1)
        return jnp.sum(jnp.sum(self.weights, axis=1) * highest)


def panels(low: Array, high: Array, count: int, order: int) -> Panels:
    """`count` equal panels from `low` to `high` with `order` nodes each."""
    dtype = jnp.result_type(low)
    u, w = legendre.leggauss(order)
    # The polynomial through the nodes has coefficients (2k + 1)/2 w_j P_k(u_j); P_k integrates to (P_{k+1} - P_{k-1})/(2k + 1).
    at_nodes = legendre.legvander(u, order)
    degrees = np.arange(order)
    spectrum = (degrees + 0.5)[:, None] * at_nodes[:, :order].T * w[None]
    integrated = np.concatenate([(u + 1.0)[:, None], (at_nodes[:, 2:] - at_nodes[:, :-2]) / (2 * degrees[1:] + 1)[None]], axis=1)
    u, w, running, spectrum = (jnp.asarray(a, dtype) for a in (u, w, integrated @ spectrum, spectrum))
    half = 0.5 * (high - low) / count
    middles = low + half * (2.0 * jnp.arange(count, dtype=dtype) + 1.0)
    return Panels(middles[:, None] + half * u[None], jnp.broadcast_to(half * w, (count, order)), running, spectrum)


def _running(rule, matrix, weights, values):
    ends = jnp.cumsum(jnp.sum(weights * values, axis=1))
    before = jnp.concatenate([jnp.zeros(1, values.dtype), ends[:-1]])
    half = 0.5 * jnp.sum(rule.weights[0])
    return before[:, None] + half * (values @ matrix.T)
