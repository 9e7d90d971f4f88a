r"""How far a noising process carries the data, and how fast: the cost of its schedule.

The density moves with the local velocity of the probability flow, the mean velocity of all paths through a point,
$\nu(t, x) = \alpha'\langle x_0|x\rangle + (\sqrt v)'\langle\epsilon|x\rangle = \alpha'\,\hat x_0 - \tfrac12 v'\,s$, with the denoised
data $\hat x_0 = (x + v\,s)/\alpha$ (Tweedie). It is $f - \tfrac12\sigma^2 s$, written so that no coefficient diverges where the noise
begins.

The action is that of a path which takes unit time, so that schedules with other horizons compare: $A = (t_1 - t_0)\int\langle|\nu|^2
\rangle dt$. With the length $L = \int\sqrt{\langle|\nu|^2\rangle}\,dt$ and the distance $W_2$ between the two ends, $W_2^2 \le L^2 \le A$.
Both are sharp: the first for the geodesic, the second for a constant speed. The length does not depend on the clock, and on every path of
densities there is a clock of constant speed. The entropy production rate is $\langle|\nu|^2\rangle/D$ (`entropy_rates`).

Integrals over time take Gauss-Legendre nodes in $u$ with $t = t_0 + (t_1 - t_0)\sin^2(\pi u/2)$, so that speeds that behave as powers of
the square root of the distance from an end do no harm.

References:
    J.-D. Benamou, Y. Brenier, Numer. Math. 84, 375 (2000). M. S. Albergo, N. M. Boffi, E. Vanden-Eijnden, arXiv:2303.08797 (2023), for
    the velocity as a conditional mean.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key
from numpy.polynomial import legendre

from thermojax._array import as_scalar, Scalar
from thermojax._check import ensure, library_of, require
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.dynamics import AbstractNoising, Score
from thermojax.generative._entropy import average, check_method, points
from thermojax.generative._scores import MixtureScore, score_to_data


class Transport(NamedTuple):
    """The cost of carrying data along a noising process."""

    action: Scalar
    r"""$A = (t_1 - t_0)\int\langle|\nu|^2\rangle dt$."""
    length: Scalar
    r"""$L = \int\sqrt{\langle|\nu|^2\rangle}\,dt$."""
    ts: Float[Array, " node"]
    """Times of the quadrature, between the next two."""
    speeds: Float[Array, " node"]
    r"""$\sqrt{\langle|\nu|^2\rangle}$ at these times, per unit of the process's own time."""
    start: Scalar
    """Earliest time."""
    horizon: Scalar
    """Latest time."""
    action_error: Scalar
    """Standard error of `action`; zero by quadrature."""
    length_error: Scalar
    """Standard error of `length`; zero by quadrature."""
    speed_errors: Float[Array, " node"]
    """Standard errors of `speeds`; zero by quadrature."""


def transport_cost(
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    *,
    score: Score | None = None,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    nodes: int = 128,
    samples: int | None = None,
    key: Key | None = None,
) -> Transport:
    r"""Action and length of the path of densities that a noising process takes.

    Args:
        noising: The noising process.
        data: The density of the data.
        score: ``score(t, x)`` whose flow carries the exact marginals; the exact one if omitted.
        start: Earliest time.
        horizon: Latest time.
        nodes: Times of the quadrature; none of them is an end.
        samples: Configurations to average over at each time, drawn anew for each. If omitted, quadrature, in one dimension only.
        key: Random key, for samples only.

    Returns:
        Action and length, with the speed at the nodes; `constant_speed_grid` reads it.

    Raises:
        ValueError: if times have no meaning, or samples or their key are missing.
    """
    check_method(data, samples, key)
    require(nodes >= 1, "nodes", "be at least 1", nodes)
    start, horizon = as_scalar(start), as_scalar(horizon)
    good = library_of(horizon - start).isfinite(horizon - start) & (horizon > start)
    horizon = ensure(horizon, good, "horizon", "be finite and later than `start`", horizon)
    return _transport_cost(noising, data, MixtureScore(noising, data) if score is None else score, start, horizon, nodes, samples, key)


def constant_speed_grid(transport: Transport, steps: int) -> Float[Array, " time"]:
    """Times between which the density moves equal lengths: the clock of constant speed, whose action per unit time is the least.

    Args:
        transport: What `transport_cost` found; the lengths are equal to about 1e-6.
        steps: Number of intervals.

    Returns:
        Increasing times from `start` to `horizon`, shape ``(steps + 1,)``.
    """
    require(steps >= 1, "steps", "be at least 1", steps)
    nodes = transport.speeds.shape[0]
    places = np.linspace(-1.0, 1.0, 8 * max(nodes, 256) + 1)
    widths = _clock(nodes)[2]
    dtype = transport.speeds.dtype
    densities = transport.speeds * jnp.asarray(widths, dtype)
    # Noise in the speeds must not make the length fall.
    lengths = lax.cummax(jnp.asarray(_integration(nodes, places), dtype) @ densities)
    targets = lengths[-1] * jnp.arange(1, steps, dtype=dtype) / steps
    duration = transport.horizon - transport.start
    found = jnp.interp(targets, lengths, jnp.asarray(_eased(places), dtype))
    return jnp.concatenate([transport.start[None], transport.start + duration * found, transport.horizon[None]])


@eqx.filter_jit
def _transport_cost(noising, data, score, start, horizon, nodes, samples, key):
    weights, shares, widths = (jnp.asarray(a, start.dtype) for a in _clock(nodes))
    # In low precision the outermost nodes may round to the ends, where processes are singular.
    ts = jnp.clip(start + (horizon - start) * shares, jnp.nextafter(start, horizon), jnp.nextafter(horizon, start))

    def at(inputs):
        t, time_key = inputs
        xs, point_weights = points(noising.marginal(data, t), samples, time_key)
        shrinking, spreading = jax.grad(noising.alpha)(t), 0.5 * jax.grad(noising.variance)(t)

        def square(x):
            s = score(t, x)
            return jnp.sum((shrinking * score_to_data(noising, t, x, s) - spreading * s) ** 2)

        return average(jax.vmap(square)(xs), point_weights, samples)

    squares, errors = lax.map(at, (ts, None if key is None else jr.split(key, nodes)))
    speeds = jnp.sqrt(squares)
    speed_errors = jnp.where(speeds > 0, 0.5 * errors / jnp.where(speeds > 0, speeds, 1.0), 0.0)
    dts = (horizon - start) * weights * widths
    # The samples of different times are independent.
    total_error = lambda e: jnp.sqrt(jnp.sum((dts * e) ** 2))
    return Transport(
        action=(horizon - start) * jnp.sum(dts * squares),
        length=jnp.sum(dts * speeds),
        ts=ts,
        speeds=speeds,
        start=start,
        horizon=horizon,
        action_error=(horizon - start) * total_error(errors),
        length_error=total_error(speed_errors),
        speed_errors=speed_errors,
    )


def _eased(places):
    """The share of the time that has passed at places between -1 and 1."""
    return np.sin(0.25 * np.pi * (places + 1.0)) ** 2


def _clock(nodes):
    """Gauss-Legendre weights on (-1, 1), the shares of the time at the nodes, and their derivatives."""
    places, weights = legendre.leggauss(nodes)
    return weights, _eased(places), 0.25 * np.pi * np.sin(0.5 * np.pi * (places + 1.0))


def _integration(nodes, places):
    """The matrix that takes values at the Gauss-Legendre nodes to the integrals, from -1 to `places`, of the polynomial through them."""
    abscissae, weights = legendre.leggauss(nodes)
    orders = np.arange(nodes)
    coefficients = (orders[:, None] + 0.5) * weights[None] * legendre.legvander(abscissae, nodes - 1).T
    values = legendre.legvander(places, nodes)
    # (2n + 1) times the integral of P_n is P_{n+1} - P_{n-1}.
    integrals = (values[:, 1:] - np.concatenate([np.full((len(places), 1), -1.0), values[:, : nodes - 1]], axis=1)) / (2 * orders + 1)
    return integrals @ coefficients
