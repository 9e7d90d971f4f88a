r"""Protocols that keep hard constraints by construction: bounds, a largest speed, a symmetry.

Bounds are kept by the smooth clip
$x = y + \epsilon\ln(1 + e^{(l - y)/\epsilon}) - \epsilon\ln(1 + e^{(y - h)/\epsilon})$, which takes every number into $(l, h)$, increases,
and leaves alone what is a few $\epsilon$ inside. Its inverse is $y = x + \epsilon\ln(1 - e^{-(x - l)/\epsilon}) - \epsilon\ln(1 - e^{-(h -
x)/\epsilon})$. A bound may be infinite.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, ensure, require
from thermojax.protocols._knots import check_rows, on_lines, PiecewiseLinear, Spline
from thermojax.protocols._protocol import AbstractFiniteTime, AbstractModified, ends_of, finite_time, inside_values, Protocol


class Bounded(AbstractModified):
    r"""Another protocol, smoothly clipped to $(l, h)$; its start and stop, which belong to the problem, are reached exactly.

    The clip does not raise the speed of the control inside. Where an end is within a few $\epsilon$ of a bound it opens a jump.
    """

    protocol: AbstractFiniteTime
    """The protocol before the clip."""
    low: Array = eqx.field(converter=as_float)
    """Lower bound, a number or one per control; it may be infinite."""
    high: Array = eqx.field(converter=as_float)
    """Upper bound, likewise."""
    softness: Array = eqx.field(converter=as_float)
    r"""$\epsilon$, the distance from a bound at which the clip sets in, in units of the control."""

    def __init__(self, protocol: Protocol, low: ArrayLike = -jnp.inf, high: ArrayLike = jnp.inf, *, softness: ArrayLike | None = None):
        """`protocol`, clipped as it is; see `like` for one that stays as it is.

        Args:
            protocol: A protocol of finite duration.
            low: Lower bound, a number or one per control.
            high: Upper bound.
            softness: Distance from a bound at which the clip sets in; if omitted, a twentieth of the distance of the bounds, or, for
                one bound, of the distance to the farther end.

        Raises:
            ValueError: if start or stop lie outside the bounds.
        """
        self.protocol = finite_time(protocol)
        self.low, self.high = as_float(low), as_float(high)
        _check_bounds(self.start, self.stop, self.low, self.high)
        soft = _softness(self.start, self.stop, self.low, self.high) if softness is None else as_float(softness)
        self.softness = check_positive(soft, "softness")

    @classmethod
    def like(
        cls, protocol: Protocol, low: ArrayLike = -jnp.inf, high: ArrayLike = jnp.inf, *, softness: ArrayLike | None = None
    ) -> "Bounded":
        """The knots of a `PiecewiseLinear` or a `Spline` stay where they are, if they lie inside; any other protocol is clipped.

        Knots within a hundredth of `softness` of a bound start at that distance. A protocol that is clipped changes where it comes within
        a few times `softness` of a bound.
        """
        clipped = cls(protocol, low, high, softness=softness)
        if not isinstance(protocol, PiecewiseLinear | Spline):
            return clipped
        raw = jax.vmap(lambda knot: unsquash(knot, clipped.low, clipped.high, clipped.softness))(protocol.knots)
        return eqx.tree_at(lambda p: p.protocol.knots, clipped, raw)

    def inside(self, s):
        return squash(self.protocol.inside(s), self.low, self.high, self.softness)

    @property
    def free(self) -> Any:
        """What is free of the protocol before the clip."""
        return self.protocol.free


class SlewLimited(AbstractFiniteTime):
    r"""A continuous protocol whose control never moves faster than `rate`, nor leaves its bounds: piecewise linear, without jumps.

    Each knot is first clipped smoothly to what `rate` allows from the start and towards the stop, and to the bounds. The control is the
    mean of the lower and the upper envelope of what then remains, $\min_k(y_k + r|t - t_k|)$ and $\max_k(y_k - r|t - t_k|)$, with both
    ends among the $y_k$. Both keep the rate and the bounds, and leave a protocol that already does as it is: every such protocol is
    reached. The duration must stay long enough for the way: that is checked when the protocol is made.

    Reference:
        E. J. McShane, Bull. Amer. Math. Soc. 40, 837 (1934), for the envelopes.
    """

    start: Array = eqx.field(converter=as_float)
    """The control at time 0, a number or an array."""
    knots: Float[Array, "knot ..."] = eqx.field(converter=as_float)
    r"""What the control aims at, at the times $\tau j/(K + 1)$, $j = 1 \dots K$, shape ``(knot, *shape of start)``."""
    stop: Array = eqx.field(converter=as_float)
    """The control at time `duration`."""
    rate: Array = eqx.field(converter=as_float)
    r"""Largest $|d\lambda/dt|$, a number or one per control."""
    low: Array = eqx.field(converter=as_float, default=-jnp.inf)
    """Lower bound, a number or one per control."""
    high: Array = eqx.field(converter=as_float, default=jnp.inf)
    """Upper bound."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the protocol takes."""

    def __check_init__(self):
        check_rows(self.knots, self.start, "knots", "knot", 1)
        _check_bounds(self.start, self.stop, self.low, self.high)
        _check_limit(self.rate, self.start, "rate")
        rate, start, stop, duration = _plain(self.rate, self.start, self.stop, self.duration)
        ensure(rate, (rate > 0) & (rate < jnp.inf), "rate", "be positive and finite; without a limit take `Bounded`", rate)
        slack = 1 + 8 * float(jnp.finfo(self.duration.dtype).eps)
        enough = abs(stop - start) <= slack * rate * duration
        ensure(rate, enough, "rate", "be enough to come from `start` to `stop` in `duration`", rate)

    @classmethod
    def like(
        cls,
        protocol: Protocol,
        rate: ArrayLike,
        *,
        low: ArrayLike = -jnp.inf,
        high: ArrayLike = jnp.inf,
        knots: int = 32,
        duration: ArrayLike | None = None,
    ) -> "SlewLimited":
        """The controls of `protocol` at `knots` equal times between its ends, as far as rate and bounds allow.

        Args:
            protocol: Any protocol.
            rate: Largest speed of the control, a number or one per control.
            low: Lower bound.
            high: Upper bound.
            knots: Number of knots.
            duration: How long it takes, for a callable that does not know.

        Raises:
            ValueError: if the rate is too small for the way, or start or stop lie outside the bounds.
        """
        require(knots >= 1, "knots", "be at least 1", knots)
        start, stop, duration = ends_of(protocol, duration)
        values = inside_values(protocol, jnp.linspace(0.0, 1.0, knots + 2, dtype=duration.dtype)[1:-1], duration)
        limited = cls(start, values, stop, rate, low, high, duration)
        return eqx.tree_at(lambda p: p.knots, limited, unsquash(values, *limited._allowed()))

    def inside(self, s):
        return on_lines(self.controls, s)

    @property
    def controls(self) -> Float[Array, "time ..."]:
        """The controls at the times of the knots and at both ends, shape ``(knot + 2, *shape of start)``."""
        aims = jnp.concatenate([self.start[None], squash(self.knots, *self._allowed()), self.stop[None]])
        shares = jnp.linspace(0.0, 1.0, aims.shape[0], dtype=aims.dtype)
        way = self.rate * self.duration * jnp.ones_like(self.start)
        reach = jnp.multiply.outer(jnp.abs(shares[:, None] - shares[None, :]), way)
        return 0.5 * (jnp.min(aims[None] + reach, axis=1) + jnp.max(aims[None] - reach, axis=1))

    def _allowed(self):
        """The interval of each knot, and the softness of its clip."""
        shares = jnp.linspace(0.0, 1.0, self.knots.shape[0] + 2, dtype=self.knots.dtype)[1:-1]
        way = self.rate * self.duration * jnp.ones_like(self.start)
        gone, left = jnp.multiply.outer(shares, way), jnp.multiply.outer(1.0 - shares, way)
        low = jnp.maximum(jnp.maximum(self.start[None] - gone, self.stop[None] - left), (self.low + 0.0 * self.start)[None])
        high = jnp.minimum(jnp.minimum(self.start[None] + gone, self.stop[None] + left), (self.high + 0.0 * self.start)[None])
        # Where the rate is just enough there is no choice; rounding may then cross the two.
        high = jnp.maximum(low, high)
        return low, high, jnp.where(high > low, 0.05 * (high - low), 1.0)

    @property
    def free(self) -> Any:
        """The knots."""
        return self.knots


class Symmetric(AbstractModified):
    r"""Another protocol, made its own time reversal.

    With sign $-1$, $\lambda(\tau - t) - m = -(\lambda(t) - m)$ about the middle $m$ of start and stop; with sign $+1$, for cycles,
    $\lambda(\tau - t) = \lambda(t)$. A largest speed of the control is kept; bounds are if they are as far from $m$ on both sides, or the
    sign is $+1$.
    """

    protocol: AbstractFiniteTime
    """The protocol of which the symmetric part is taken."""
    sign: Array
    """-1 for a drive from start to stop, +1 for a cycle; a whole number, or one per control."""

    def __init__(self, protocol: Protocol, sign: ArrayLike = -1):
        """The symmetric part of a protocol of finite duration.

        Raises:
            ValueError: if a control is to be a cycle that does not end where it started.
        """
        self.protocol, self.sign = finite_time(protocol), jnp.asarray(sign)
        require(jnp.issubdtype(self.sign.dtype, jnp.integer), "sign", "be a whole number, 1 or -1", self.sign.dtype)
        _check_limit(self.sign, self.start, "sign")
        known, start, stop = _plain(self.sign, self.start, self.stop)
        ensure(known, abs(known) == 1, "sign", "be 1 or -1", known)
        ensure(known, (known == -1) | (start == stop), "sign", "be -1 where the control ends elsewhere than it started", known)

    @classmethod
    def like(cls, protocol: Protocol, *, sign: ArrayLike = -1) -> "Symmetric":
        """The symmetric part of `protocol`: itself, if it is symmetric."""
        return cls(protocol, sign)

    def inside(self, s):
        ahead, back = self.protocol.inside(s), self.protocol.inside(1.0 - s)
        odd, even = self.start + self.stop + ahead - back, ahead + back
        return 0.5 * jnp.where(self.sign > 0, even, odd)

    @property
    def free(self) -> Any:
        """What is free of the protocol."""
        return self.protocol.free


def squash(y: Array, low: Array, high: Array, softness: Array) -> Array:
    """Any number into the interval, increasing; the identity a few times `softness` inside."""
    # Farther out the result is the bound to rounding.
    y = jnp.clip(y, low - 40.0 * softness, high + 40.0 * softness)
    return jnp.clip(y + _excess(low - y, softness) - _excess(y - high, softness), low, high)


def unsquash(x: Array, low: Array, high: Array, softness: Array) -> Array:
    """The inverse of `squash`, of points at least a hundredth of `softness` inside."""
    x = jnp.clip(x, low, high)
    # On a bound it is infinite.
    log = lambda distance: jnp.log(-jnp.expm1(-jnp.maximum(distance / softness, 0.01)))
    return x + softness * (log(x - low) - log(high - x))


def _excess(distance, softness):
    """A smooth maximum of the distance and zero; zero if it is infinite, with a derivative of zero."""
    finite = jnp.isfinite(distance)
    return jnp.where(finite, softness * jax.nn.softplus(jnp.where(finite, distance, 0.0) / softness), 0.0)


def _softness(start, stop, low, high):
    width = high - low
    ends = jnp.stack([abs(end - bound) + 0.0 * start for end in (start, stop) for bound in (low, high)])
    reach = jnp.max(jnp.where(jnp.isfinite(ends), ends, 0.0), axis=0)
    return 0.05 * jnp.where(jnp.isfinite(width), width, jnp.where(reach > 0, reach, 1.0))


def _plain(*values):
    """Known numbers as NumPy arrays, on which a check compiles nothing."""
    return values if any(isinstance(value, Tracer) for value in values) else tuple(map(np.asarray, values))


def _check_limit(value, start, name):
    require(value.shape in ((), start.shape), name, f"be a number or have the shape of `start`, {start.shape}", f"shape {value.shape}")


def _check_bounds(start, stop, low, high):
    for name, bound in (("low", low), ("high", high)):
        _check_limit(bound, start, name)
    start, stop, low, high = _plain(start, stop, low, high)
    ensure(low, low < high, "low", f"be less than `high`, {high}", low)
    for name, end in (("start", start), ("stop", stop)):
        ensure(end, (low <= end) & (end <= high), name, f"lie between the bounds {low} and {high}", end)
