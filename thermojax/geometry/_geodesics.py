"""Geodesics of a thermodynamic metric, as protocols."""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, ArrayLike
from numpy.polynomial import legendre

from thermojax._array import Scalar
from thermojax._check import ensure, library_of, require
from thermojax.geometry._friction import check_control, check_scale
from thermojax.geometry._length import crowded, Metric, metric_at, norm, positive, smallest
from thermojax.geometry._panels import Panels, panels
from thermojax.protocols import PiecewiseLinear

_PANELS, _ORDER = 48, 16


class Geodesic(NamedTuple):
    """The cheapest way between two controls in linear response."""

    protocol: PiecewiseLinear
    """The protocol: passed at constant speed in the metric, ends exact, without jumps."""
    length: Scalar
    r"""The thermodynamic length $\mathcal L$."""
    excess_work: Scalar
    r"""The excess work of linear response, $\mathcal L^2/\tau$."""
    residual: Scalar
    """By what fraction the excess work could still fall, estimated from its gradient in twice as many polynomials; zero for one control."""


def geodesic(
    metric: Metric,
    start: ArrayLike | Sequence[float],
    stop: ArrayLike | Sequence[float],
    duration: ArrayLike = 1.0,
    *,
    knots: int = 129,
    modes: int = 16,
) -> Geodesic:
    r"""The geodesic from `start` to `stop`: the protocol of least excess work in linear response.

    For one control it is $\dot\lambda \propto \zeta^{-1/2}$, by quadrature. For several it minimises the energy
    $\int\lambda'^\mathsf{T}\zeta\,\lambda'\,ds$ of the straight line and `modes` polynomials that vanish at both ends (integrated
    Legendre polynomials, for which a flat metric is well conditioned), by BFGS from the straight line. A metric may return nan where
    there is no equilibrium: the search turns back there. What is found is a local minimum.

    Linear response is for slow protocols: in short times, and over high barriers, its geodesic can cost more than the straight line, and
    the true optimum jumps at both ends.

    Args:
        metric: $\lambda \mapsto \zeta(\lambda)$; see `thermodynamic_length`.
        start: The first control, a number or of shape ``(control,)``.
        stop: The last control.
        duration: $\tau$.
        knots: Knots of the protocol, equal in time.
        modes: Polynomials for several controls; more for metrics that change sharply. The residual shows whether they are enough.

    Raises:
        ValueError: if the ends are the same or of different shapes, or the metric is not positive definite on the way.

    Reference:
        D. A. Sivak, G. E. Crooks, Phys. Rev. Lett. 108, 190602 (2012); P. R. Zulkowski et al., Phys. Rev. E 86, 041148 (2012).
    """
    start, stop, duration = check_control(start, "start"), check_control(stop, "stop"), check_scale(duration, "duration")
    require(stop.shape == start.shape, "stop", f"have the shape of `start`, {start.shape}", f"shape {stop.shape}")
    require(knots >= 3, "knots", "be at least 3", knots)
    require(modes >= 1, "modes", "be at least 1", modes)
    xp = library_of(stop - start)
    stop = ensure(stop, xp.any(xp.asarray(stop - start) != 0), "stop", "differ from `start`", stop)
    stop = stop.astype(start.dtype)
    if start.ndim == 0:
        coefficients, residual = jnp.zeros((0,), start.dtype), jnp.zeros((), start.dtype)
    else:
        coefficients, residual, least = _relaxed(metric, start, stop, modes)
        coefficients = positive(coefficients, least)
    places, length, least = _passed(metric, start, stop, coefficients, knots)
    places = positive(places, least)
    return Geodesic(PiecewiseLinear(start, places, stop, duration), length, length**2 / duration.astype(length.dtype), residual)


class _Rule(NamedTuple):
    """A quadrature on [0, 1], and the polynomials and their derivatives at both ends and at its nodes."""

    panels: Panels
    at: Array
    values: Array
    slopes: Array

    def path(self, start: Array, stop: Array, coefficients: Array) -> tuple[Array, Array]:
        """The straight line and what the polynomials add to it: the controls and their rates of change."""
        straight = jax.vmap(lambda s: start + (stop - start) * s)(self.at)
        if start.ndim == 0:
            return straight, jnp.broadcast_to(stop - start, straight.shape)
        rates = jax.vmap(lambda rate: stop - start + rate)(self.slopes @ coefficients)
        return straight + self.values @ coefficients, rates


def _rule(modes, count, order, dtype):
    rule = panels(jnp.zeros((), dtype), jnp.ones((), dtype), count, order)
    u = (2 * np.arange(count)[:, None] + 1 + legendre.leggauss(order)[0][None]) / count - 1.0
    at = np.concatenate([[-1.0], u.ravel(), [1.0]])
    p = legendre.legvander(at, modes + 1)
    # Integrals of Legendre polynomials, scaled so that their derivatives are orthonormal.
    scale = np.sqrt(2 * np.arange(1, modes + 1) + 1)[None]
    return _Rule(rule, *(jnp.asarray(a, dtype) for a in (0.5 * (at + 1.0), (p[:, 2:] - p[:, :-2]) / (2 * scale), scale * p[:, 1:-1])))


@eqx.filter_jit
def _relaxed(metric, start, stop, modes):
    """The path of least energy, by what fraction that could fall, and the smallest eigenvalue of the metric on the straight line."""
    dtype = start.dtype
    squares = lambda lams, rates: jax.vmap(lambda lam, rate: _square(metric, lam, rate))(lams, rates)
    rule = _resolving(modes, dtype)
    line = jnp.zeros((modes, start.shape[0]), dtype)
    found, least = squares(*rule.path(start, stop, line))
    # Units in which the metric in the middle is one, and so is the energy of the line.
    scale = rule.panels.integral(_inner(found, rule))
    units = jnp.sqrt(scale) * jnp.linalg.inv(jnp.linalg.cholesky(metric_at(metric, 0.5 * (start + stop))))

    def energy(coefficients, rule):
        found, least = squares(*rule.path(start, stop, coefficients @ units))
        # No metric, no energy: the search turns back.
        return jnp.where(jnp.all(least > 0), rule.panels.integral(_inner(found, rule)) / scale, jnp.nan)

    tolerance = 10 * float(jnp.finfo(dtype).eps) ** 0.75
    # optimistix is not written for strict dtype promotion.
    with jax.numpy_dtype_promotion("standard"):
        best = optx.minimise(energy, optx.BFGS(tolerance, tolerance), line, rule, max_steps=500, throw=False).value
    value, slopes = jax.value_and_grad(energy)(jnp.concatenate([best, line]), _resolving(2 * modes, dtype))
    return best @ units, 0.25 * jnp.sum(slopes**2) / value, jnp.min(least)


@eqx.filter_jit
def _passed(metric, start, stop, coefficients, knots):
    """The path at constant speed: its knots, its length, and the smallest eigenvalue of the metric on it."""
    rule = _rule(coefficients.shape[0], _PANELS, _ORDER, start.dtype)
    lams, rates = rule.path(start, stop, coefficients)
    squares, least = crowded(lambda both: _square(metric, *both), (lams, rates))
    speeds = jnp.sqrt(squares)
    inside = _inner(speeds, rule)
    length = rule.panels.integral(inside)
    zero = jnp.zeros_like(length)
    arcs = jnp.concatenate([zero[None], rule.panels.below(inside).ravel(), length[None]])
    columns = lambda a: a.reshape(a.shape[0], -1).T
    wanted = jnp.linspace(zero, length, knots)
    places = jax.vmap(lambda ys, slopes: _hermite(wanted, arcs, ys, slopes / speeds))(columns(lams), columns(rates))
    places = places.T.reshape(knots, *start.shape).at[0].set(start).at[-1].set(stop)
    return places, length, jnp.min(least)


def _resolving(modes, dtype):
    """A quadrature for squares of the first `modes` polynomials."""
    return _rule(modes, -(-modes // 4), 8, dtype)


def _inner(values, rule):
    return values[1:-1].reshape(rule.panels.nodes.shape)


def _square(metric, lam, rate):
    zeta = metric_at(metric, lam)
    return norm(zeta, rate), smallest(zeta)


def _hermite(x, xs, ys, slopes):
    """The cubic through the values and slopes on both sides of each `x`."""
    left = jnp.clip(jnp.searchsorted(xs, x, side="right") - 1, 0, xs.shape[0] - 2)
    x0, x1, y0, y1 = xs[left], xs[left + 1], ys[left], ys[left + 1]
    h = jnp.where(x1 > x0, x1 - x0, 1.0)
    t = jnp.clip((x - x0) / h, 0.0, 1.0)
    rise = t * t * (3.0 - 2.0 * t)
    return y0 + rise * (y1 - y0) + h * t * (1.0 - t) * ((1.0 - t) * slopes[left] - t * slopes[left + 1])
