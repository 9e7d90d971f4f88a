r"""Full control of anything on a line: the least work between two equilibria in a given time, with a certificate.

The least dissipated work is $\min_p\,[\mathrm{KL}(p\|\pi_1) + W_2^2(p_0, p)\,\beta/(\mu\tau)]/\beta$ over the density $p$ in which the
process ends (`_transport`). The functional is convex in $p$: a density where it is stationary is the
minimum. It has a dual,

$$\max_\psi\ \Big[\int\psi^c\,dp_0 - \ln\int\pi_1e^{-\psi}\,dy\Big], \qquad
\psi^c(x) = \min_y\Big[\frac{\beta}{\mu\tau}(x - y)^2 - \psi(y)\Big],$$

in which *every* potential $\psi$ gives a lower bound. On a line $p$ is known by the increasing map from $p_0$, and this by the logarithms
of its increments between normal scores $z = \Phi^{-1}(u)$. They are found by BFGS. Either potential that belongs to the map,
$\psi' = 2\beta(y - x)/(\mu\tau)$ and $\psi = \ln(\pi_1/p)$, gives a bound; the better one counts, and what is left between both sides is
the error. Where the map tears a well apart nodes are too few and this gap is large; the bound still is one, since the minima are those
of all $y$: $\psi$ is on straight lines between the points of a grid, and each minimum one of parabolas.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax import lax
from jax.scipy.special import logsumexp, ndtr
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, cast, Scalar
from thermojax._check import require
from thermojax.distributions import AbstractDistribution
from thermojax.geometry._transport import diffused, tabulated

_FINE = 1 << 14
_STEPS = 2000


class FreeEnd(NamedTuple):
    """The least dissipation between two equilibria on a line."""

    dissipated: Scalar
    """The bound from below on the dissipated work, the value of the dual; its quadrature errs by 1e-6 (in float32 by 3e-4) at most for
    densities that are Gaussian."""
    gap: Scalar
    """By how much the process found dissipates more than the bound: the error of both; below zero by that of the quadrature at most."""
    transport: Scalar
    r"""Work that the process found dissipates on the way, $W_2^2(p_0, p)/(\mu\tau)$."""
    relaxation: Scalar
    r"""Work that it dissipates after the end, $\mathrm{KL}(p\|\pi_1)/\beta$."""
    places: Float[Array, "node 2"]
    """Where the process takes particles: from the first column to the second; equally spaced in normal scores."""


def free_end(
    start: AbstractDistribution,
    final: AbstractDistribution,
    duration: ArrayLike,
    *,
    beta: ArrayLike = 1.0,
    mobility: ArrayLike = 1.0,
    nodes: int = 257,
) -> FreeEnd:
    r"""The least work, beyond $\Delta F$, of any protocol in time $\tau$ from one equilibrium to the potential of another, on a line.

    The bound of `full_control` without Gaussians: whatever potentials are applied on the way, and however they jump, overdamped dynamics
    dissipate at least `FreeEnd.dissipated`. It is a bound for every protocol of fewer controls.

    Args:
        start: Equilibrium of the first potential, as for `transport_bound`.
        final: Equilibrium of the last potential, with a smooth `log_prob`.
        duration: $\tau$.
        beta: Inverse temperature.
        mobility: $\mu$.
        nodes: Places at which the map is known.

    Raises:
        ValueError: if the densities are not on a line, or numbers are not positive.
        TypeError: if a density is not known well enough.
    """
    require(nodes >= 17, "nodes", "be at least 17", nodes)
    scale, beta = diffused(duration, beta, mobility), as_scalar(beta)
    return _free_end(tabulated(start, "start"), tabulated(final, "final"), final, scale, beta, nodes)


@eqx.filter_jit
def _free_end(first, last, final, scale, beta, nodes):
    dtype = first[0].dtype
    final, scale, beta = cast((final, scale, beta), dtype)
    # So far out that what is cut off changes no digit.
    reach = 6.5 if jnp.finfo(dtype).bits == 64 else 5.2
    z = jnp.linspace(-reach, reach, nodes, dtype=dtype)
    between = 0.5 * (z[1:] + z[:-1])
    h = z[1] - z[0]
    shares, increments = (jax.nn.softmax(-0.5 * a**2) for a in (z, between))
    log_normal = -0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi).astype(dtype)
    x, y = (_quantiles(z, *table) for table in (first, last))
    middle, roots = nodes // 2, jnp.sqrt(increments)

    def places(unknown):
        ahead = jnp.cumsum(jnp.exp(unknown[1:] / roots) * h)
        ahead = jnp.concatenate([jnp.zeros_like(h)[None], ahead])
        return unknown[0] + ahead - ahead[middle]

    def costs(unknown):
        y = places(unknown)
        logs = log_normal - jax.vmap(lambda a: final.log_prob(a[None]))(y)
        relative = jnp.sum(shares * logs) - jnp.sum(roots * unknown[1:])
        return relative, jnp.sum(shares * (y - x) ** 2) / scale

    def total(unknown):
        relative, transport = costs(unknown)
        return relative + transport

    def coordinates(y):
        steps = jnp.maximum(jnp.diff(y) / h, jnp.finfo(dtype).eps)
        return jnp.concatenate([y[middle][None], roots * jnp.log(steps)])

    # From the best place on the way between staying and full relaxation.
    ways = jax.vmap(lambda share: coordinates(x + share * (y - x)))(jnp.linspace(0.0, 1.0, 17, dtype=dtype))
    begin = ways[jnp.argmin(lax.map(total, ways))]
    tolerance = float(jnp.finfo(dtype).eps) ** 0.6
    # optimistix is not written for strict dtype promotion.
    with jax.numpy_dtype_promotion("standard"):
        solver = optx.BFGS(tolerance, tolerance)
        found = optx.minimise(lambda unknown, _: total(unknown), solver, begin, max_steps=_STEPS, throw=False).value
    relative, transport = costs(found)
    y = places(found)
    # Both potentials of the best map are the same; of one that is almost the best, either may give the better bound.
    middles = 0.5 * (y[1:] + y[:-1])
    logs = jax.vmap(lambda a: final.log_prob(a[None]))(middles)
    densities = -0.5 * between**2 - 0.5 * jnp.log(2 * jnp.pi).astype(dtype) - jnp.log(jnp.diff(y) / h)
    low, high = jnp.minimum(last[0][0], y[0]), jnp.maximum(last[0][-1], y[-1])
    ys = jnp.linspace(low, high, _FINE, dtype=dtype)
    slopes = jnp.diff(logs - densities) / jnp.diff(middles)
    potentials = jnp.stack([_integrated(ys, y, 2.0 / scale * (y - x)), _integrated(ys, y[1:-1], slopes)])
    bound = jnp.max(lax.map(lambda psi: _dual(psi, ys, x, shares, final, scale), potentials))
    primal = relative + transport
    return FreeEnd(bound / beta, (primal - bound) / beta, transport / beta, relative / beta, jnp.stack([x, y], axis=1))


def _quantiles(z, faces, below, above):
    """The quantiles of normal scores, each from the side on which the probability has digits."""
    upper = jnp.interp(ndtr(-z), above[::-1], faces[::-1])
    return jnp.where(z < 0, jnp.interp(ndtr(z), below, faces), upper)


def _integrated(ys, places, slopes):
    """The potential with these slopes at `places`, zero in the middle of them."""
    slopes = jnp.interp(ys, places, slopes)
    psi = jnp.concatenate([jnp.zeros_like(ys[:1]), jnp.cumsum(0.5 * (slopes[1:] + slopes[:-1]) * jnp.diff(ys))])
    return psi - jnp.interp(places[places.shape[0] // 2], ys, psi)


def _dual(psi, ys, x, shares, final, scale):
    """The dual at a potential on straight lines between the points `ys`."""
    h = ys[1] - ys[0]

    def least(a):
        # Between two points this is a parabola: a chord, less `share * (1 - share)` of its bend.
        costs, bend = (a - ys) ** 2 / scale - psi, h**2 / scale
        left, rise = costs[:-1], jnp.diff(costs)
        share = jnp.clip(0.5 - 0.5 * rise / bend, 0.0, 1.0)
        return jnp.min(left + share * rise - share * (1.0 - share) * bend)

    # Simpson's rule between the points, since the potential has a corner at each.
    logs, halfway = (jax.vmap(lambda a: final.log_prob(a[None]))(places) for places in (ys, ys[:-1] + 0.5 * h))
    terms = jnp.concatenate([logs - psi, halfway - 0.5 * (psi[1:] + psi[:-1]) + jnp.log(2.0).astype(h.dtype)])
    return jnp.sum(shares * jax.vmap(least)(x)) - logsumexp(terms) - jnp.log(h / 3.0)
