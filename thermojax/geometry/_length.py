"""Thermodynamic length and work of linear response along a path of controls."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, Scalar
from thermojax._check import ensure, library_of, require
from thermojax.geometry._friction import check_scale
from thermojax.geometry._panels import panels
from thermojax.protocols import Bounded, Monotone, Neural, PiecewiseLinear, Reverse, SlewLimited, Spline, Symmetric

Metric = Callable[[Array], Array]
Path = ArrayLike | Sequence | Callable[[Array], Array]

# How many controls a metric is asked about side by side.
_CROWD = 256
_ORDER = 8


def thermodynamic_length(metric: Metric, path: Path, duration: ArrayLike | None = None, *, count: int = 64) -> Scalar:
    r"""The thermodynamic length $\int\sqrt{\dot\lambda^\mathsf{T}\zeta(\lambda)\,\dot\lambda}\,dt$ of a path of controls.

    It does not depend on how fast the path is passed, and bounds the excess work of linear response in time $\tau$ from below by
    $\mathcal L^2/\tau$. Jumps of a protocol at its ends are not part of it.

    Args:
        metric: $\lambda \mapsto \zeta(\lambda)$: a number for a number, shape ``(control, control)`` for ``(control,)``; `Friction`, or any
            callable, such as an interpolation of simulated frictions. One that is an `eqx.Module` is compiled once for all its numbers.
        path: Controls that straight lines join, shape ``(point,)`` or ``(point, control)``; or a protocol.
        duration: How long the protocol takes; its own `duration` if omitted. Of no account for a path of points.
        count: Panels of the quadrature, of eight nodes each, at least; those of a path with knots, changed or not, end at these.

    Returns:
        The length, in units of the root of energy times time.

    Raises:
        ValueError: if the metric has another shape, or is not positive definite everywhere on the path.

    Reference:
        D. A. Sivak, G. E. Crooks, Phys. Rev. Lett. 108, 190602 (2012).
    """
    protocol = _protocol(path, 1.0 if duration is None else duration)
    rule, squares = _squares(metric, protocol, duration, count)
    return rule.integral(jnp.sqrt(squares))


def linear_response_work(metric: Metric, path: Path, duration: ArrayLike | None = None, *, count: int = 64) -> Scalar:
    r"""The excess work of linear response, $\int_0^\tau\dot\lambda^\mathsf{T}\zeta(\lambda)\,\dot\lambda\,dt$: work beyond $\Delta F$ for
    protocols that are slow compared to the relaxation of the system, without jumps.

    A straight line costs $\Delta\lambda\int\zeta\,d\lambda/\tau$, a geodesic the least possible, $\mathcal L^2/\tau$.

    Args:
        metric: As for `thermodynamic_length`.
        path: Controls that straight lines join, equally long in time; or a protocol.
        duration: $\tau$; a protocol's own `duration` if omitted.
        count: As for `thermodynamic_length`.

    Returns:
        The excess work.

    Raises:
        ValueError: if the metric has another shape, is not positive definite everywhere on the path, or there is no duration.
    """
    rule, squares = _squares(metric, _protocol(path, duration), duration, count)
    return rule.integral(squares)


def _protocol(path, duration):
    if callable(path):
        return path
    knots = as_float(path)
    rule = "be a protocol, or at least two controls of shape (point,) or (point, control)"
    require(knots.ndim in (1, 2) and knots.shape[0] >= 2 and knots.size > 0, "path", rule, f"shape {knots.shape}")
    require(duration is not None, "duration", "be given for a path of points", "none")
    return PiecewiseLinear(knots[0], knots, knots[-1], check_scale(duration, "duration"))


def _squares(metric, protocol, duration, count):
    """The quadrature in time, and the squared speed at its nodes."""
    require(count >= 1, "count", "be at least 1", count)
    duration = getattr(protocol, "duration", None) if duration is None else duration
    require(duration is not None, "duration", "be given for a protocol without one of its own", "none")
    duration = check_scale(duration, "duration")
    pieces = _pieces(protocol)
    count = pieces * -(-count // pieces)
    rule, squares, least = _speeds(metric, protocol, duration, count)
    return rule, positive(squares, least)


def _pieces(protocol):
    """Of how many parts, equally long in time, a protocol is made: where they meet it may have a corner."""
    if isinstance(protocol, Bounded | Neural | Symmetric | Reverse):
        return _pieces(protocol.protocol)
    if isinstance(protocol, SlewLimited):
        return protocol.knots.shape[0] + 1
    return protocol.knots.shape[0] - 1 if isinstance(protocol, PiecewiseLinear | Monotone | Spline) else 1


@eqx.filter_jit
def _speeds(metric, protocol, duration, count):
    rule = panels(jnp.zeros_like(duration), duration, count, _ORDER)

    def square(t):
        lam, rate = jax.jvp(protocol, (t,), (jnp.ones_like(t),))
        zeta = metric_at(metric, lam)
        return norm(zeta, rate), smallest(zeta)

    squares, least = crowded(square, rule.nodes.ravel())
    return rule, squares.reshape(rule.nodes.shape), jnp.min(least)


def crowded(function: Callable, xs: Any) -> Any:
    """`function` of each of `xs`, some side by side and the crowds in turn: the last one is filled up, so that all are one program."""
    count = jax.tree.leaves(xs)[0].shape[0]
    rounds = -(-count // _CROWD)
    size = -(-count // rounds)
    fill = lambda a: jnp.concatenate([a, jnp.broadcast_to(a[-1:], (rounds * size - count, *a.shape[1:]))])
    found = lax.map(jax.vmap(function), jax.tree.map(lambda a: fill(a).reshape(rounds, size, *a.shape[1:]), xs))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], found)


def metric_at(metric: Metric, lam: Array) -> Float[Array, "..."]:
    """The metric at one control, of the shape that belongs to it."""
    require(lam.ndim <= 1, "path", "have controls that are numbers or vectors", f"controls of shape {lam.shape}")
    zeta = jnp.asarray(metric(lam))
    require(zeta.shape == lam.shape + lam.shape, "metric", f"return shape {lam.shape + lam.shape} here", f"shape {zeta.shape}")
    return zeta


def norm(zeta: Array, rate: Array) -> Scalar:
    r"""$v^\mathsf{T}\zeta v$."""
    return zeta * rate**2 if zeta.ndim == 0 else rate @ zeta @ rate


def smallest(zeta: Array) -> Scalar:
    """The smallest eigenvalue of a metric, nan if it is not finite; without derivative."""
    zeta = lax.stop_gradient(zeta)
    return zeta if zeta.ndim == 0 else jnp.linalg.eigvalsh(zeta)[0]


def positive(value: Any, least: Any) -> Any:
    """Return `value` if the smallest eigenvalue of the metric along a path is positive."""
    xp = library_of(least)
    rule = "be finite and positive definite everywhere on the path"
    return ensure(value, xp.isfinite(least) & (xp.asarray(least) > 0), "metric", rule, f"a smallest eigenvalue {least}")
