r"""Full control of anything on a line: the least work between two equilibria in a given time, with a certificate.

The least dissipated work is $\min_p\,[\mathrm{KL}(p\|\pi_1) + W_2^2(p_0, p)\,\beta/(\mu\tau)]/\beta$ over the density $p$ in which the
process ends (`_transport`). The functional is convex in $p$: a density where it is stationary is the
minimum. It has a dual,

$$\max_\psi\ \Big[\int\psi^c\,dp_0 - \ln\int\pi_1e^{-\psi}\,dy\Big], \qquad
\psi^c(x) = \min_y\Big[\frac{\beta}{\mu\tau}(x - y)^2 - \psi(y)\Big],$$

in which *every* potential $\psi$ gives a lower bound. On a line $p$ is known by the increasing map from $p_0$, and this by the logarithms
of its increments between normal scores $z = \Phi^{-1}(u)$. They are found by BFGS; the potential that belongs to the map,
$\psi' = 2\beta(y - x)/(\mu\tau)$, gives the bound, and what is left between both is the error. Where the map tears a well apart nodes are
too few and this gap is large; the bound still is one.
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
    """The bound from below on the dissipated work, up to quadrature: the value of the dual."""
    gap: Scalar
    """By how much the process found dissipates more than the bound: the error of both."""
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
    # So far out that what is cut off changes no digit, and that the quantiles still have some.
    reach = 6.5 if jnp.finfo(dtype).bits == 64 else 4.0
    z = jnp.linspace(-reach, reach, nodes, dtype=dtype)
    between = 0.5 * (z[1:] + z[:-1])
    h = z[1] - z[0]
    shares, increments = (jax.nn.softmax(-0.5 * a**2) for a in (z, between))
    log_normal = -0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi).astype(dtype)
    x, y = (jnp.interp(ndtr(z), below, faces) for faces, below in (first, last))
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
    bound = _dual(x, y, shares, final, scale, last)
    primal = relative + transport
    return FreeEnd(bound / beta, (primal - bound) / beta, transport / beta, relative / beta, jnp.stack([x, y], axis=1))


def _dual(x, y, shares, final, scale, last):
    """The dual at the potential that belongs to the map from `x` to `y`."""
    low, high = jnp.minimum(last[0][0], y[0]), jnp.maximum(last[0][-1], y[-1])
    ys = jnp.linspace(low, high, _FINE, dtype=y.dtype)
    # Beyond the nodes every particle goes as far as the last one.
    ways = jnp.interp(ys, y, y - x)
    slopes = 2.0 / scale * ways
    steps = 0.5 * (slopes[1:] + slopes[:-1]) * (ys[1] - ys[0])
    psi = jnp.concatenate([jnp.zeros_like(low)[None], jnp.cumsum(steps)])
    psi = psi - jnp.interp(y[y.shape[0] // 2], ys, psi)
    conjugate = jax.vmap(lambda a: jnp.min((a - ys) ** 2 / scale - psi))(x)
    logs = jax.vmap(lambda a: final.log_prob(a[None]))(ys)
    return jnp.sum(shares * conjugate) - logsumexp(logs - psi) - jnp.log(ys[1] - ys[0])
