"""Protocols through knots at equal distances in time."""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import ensure, require
from thermojax.protocols._protocol import AbstractFiniteTime, between, ends_of, inside_values, Protocol


class PiecewiseLinear(AbstractFiniteTime):
    r"""Straight lines between `knots` at equal distances in time, with free jumps at both ends.

    The knots sit at $0^+ = t_0 < \dots < t_{K-1} = \tau^-$; the control jumps from `start` to the first knot at time 0 and from the
    last knot to `stop` at time `duration`. Only the knots are meant to be optimised: the ends belong to the problem.
    """

    start: Array = eqx.field(converter=as_float)
    """The control before the protocol, a number or an array."""
    knots: Float[Array, "knot ..."] = eqx.field(converter=as_float)
    """The control inside, shape ``(knot,)`` or ``(knot, *shape of start)``, at least two."""
    stop: Array = eqx.field(converter=as_float)
    """The control after the protocol."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the protocol takes."""

    def __check_init__(self):
        check_rows(self.knots, self.start, "knots", "knot", 2)

    @classmethod
    def like(cls, protocol: Protocol, *, knots: int = 32, duration: ArrayLike | None = None) -> "PiecewiseLinear":
        """The controls of `protocol` at equal times, with its jumps; `duration` for a callable that does not know its own."""
        return cls(*_sampled_at_knots(protocol, knots, duration))

    def inside(self, s):
        return on_lines(self.knots, s)

    @property
    def free(self) -> Any:
        """The knots."""
        return self.knots


class Spline(AbstractFiniteTime):
    """A cubic spline through `knots` at equal distances in time, with free jumps at both ends.

    Its third derivative is continuous at the second knot and at the last but one ("not a knot"), so that every cubic is in it; through
    two or three knots it is the line or the parabola. It may overshoot between knots: see `Bounded`.
    """

    start: Array = eqx.field(converter=as_float)
    """The control before the protocol, a number or an array."""
    knots: Float[Array, "knot ..."] = eqx.field(converter=as_float)
    """The control inside, shape ``(knot, *shape of start)``, at least two; the first and the last just inside the ends."""
    stop: Array = eqx.field(converter=as_float)
    """The control after the protocol."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the protocol takes."""

    def __check_init__(self):
        check_rows(self.knots, self.start, "knots", "knot", 2)

    @classmethod
    def like(cls, protocol: Protocol, *, knots: int = 8, duration: ArrayLike | None = None) -> "Spline":
        """The spline through the controls of `protocol` at equal times, with its jumps."""
        return cls(*_sampled_at_knots(protocol, knots, duration))

    def inside(self, s):
        intervals = self.knots.shape[0] - 1
        left, w = _place(s, intervals)
        curvatures = jnp.asarray(_curvatures(intervals + 1), self.knots.dtype)
        # The second derivatives are linear in the knots: only the two that are needed are made.
        weights = (w**3 - w) * curvatures[left + 1] + ((1 - w) ** 3 - (1 - w)) * curvatures[left]
        return between(self.knots[left], self.knots[left + 1], w) + combine(weights / 6, self.knots)

    @property
    def free(self) -> Any:
        """The knots."""
        return self.knots


class Monotone(AbstractFiniteTime):
    r"""A protocol that never turns round: piecewise linear, with jumps at both ends, all in the direction from `start` to `stop`.

    The way is shared out by a softmax of the logits: the first jump, the intervals, the last jump, for each control by itself. A share may
    be as small as you like, but not zero.
    """

    start: Array = eqx.field(converter=as_float)
    """The control before the protocol, a number or an array."""
    logits: Float[Array, "share ..."] = eqx.field(converter=as_float)
    """Logarithms of the shares up to a constant, shape ``(share, *shape of start)``: two jumps and at least one interval."""
    stop: Array = eqx.field(converter=as_float)
    """The control after the protocol."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the protocol takes."""

    def __check_init__(self):
        check_rows(self.logits, self.start, "logits", "share", 3)

    @classmethod
    def like(cls, protocol: Protocol, *, knots: int = 32, duration: ArrayLike | None = None) -> "Monotone":
        """The controls of `protocol` at equal times; a share below a hundredth of an equal one (as a jump of zero) starts there.

        Raises:
            ValueError: if `protocol` turns round between two of these times.
        """
        start, values, stop, duration = _sampled_at_knots(protocol, knots, duration)
        steps = jnp.diff(jnp.concatenate([start[None], values, stop[None]]), axis=0)
        way = (stop - start)[None]
        shares = jnp.where(way == 0, 1.0 / (knots + 1), steps / jnp.where(way == 0, 1.0, way))
        slack = 100 * jnp.finfo(shares.dtype).eps
        good = (shares >= -slack) & ((way != 0) | (steps == 0))
        shares = ensure(shares, good, "protocol", "never turn round", f"steps {steps}")
        return cls(start, jnp.log(jnp.maximum(shares, 0.01 / (knots + 1))), stop, duration)

    @property
    def knots(self) -> Float[Array, "knot ..."]:
        """The controls at equal times."""
        gone = jnp.cumsum(jax.nn.softmax(self.logits, axis=0), axis=0)[:-1]
        return self.start[None] + jnp.minimum(gone, 1.0) * (self.stop - self.start)[None]

    def inside(self, s):
        return on_lines(self.knots, s)

    @property
    def free(self) -> Any:
        """The logits."""
        return self.logits


def ramp_with_jumps(start: ArrayLike, stop: ArrayLike, duration: ArrayLike = 1.0, *, knots: int = 32) -> PiecewiseLinear:
    """The straight line as a `PiecewiseLinear` protocol: where an optimisation starts from (its jumps are zero)."""
    require(knots >= 2, "knots", "be at least 2", knots)
    start, stop = as_float(start), as_float(stop)
    return PiecewiseLinear(start, jnp.linspace(start, stop, knots), stop, duration)


def on_lines(knots: Float[Array, "knot ..."], s: Scalar) -> Array:
    """The value at the share `s` of the way along straight lines between knots at equal distances."""
    left, w = _place(s, knots.shape[0] - 1)
    return between(knots[left], knots[left + 1], w)


def combine(weights: Array, rows: Array) -> Array:
    """Sums of rows with these weights: in full precision also where the hardware would rather not."""
    return jnp.tensordot(weights, rows, 1, precision="highest")


def check_rows(rows: Array, start: Array, name: str, axis: str, least: int) -> None:
    """Raise ``ValueError`` unless there are enough rows, each of the shape of `start`."""
    shape = rows.shape
    good = len(shape) >= 1 and shape[0] >= least and shape[1:] == start.shape
    require(good, name, f"have shape ({axis} >= {least}, {', '.join(map(str, start.shape))})", f"shape {shape}")


def _place(s, intervals):
    """The interval in which a share of the duration lies, and the share of that interval that has gone."""
    position = s * intervals
    left = jnp.clip(jnp.floor(position), 0, intervals - 1)
    return left.astype(int), position - left


def _sampled_at_knots(protocol, knots, duration):
    require(knots >= 2, "knots", "be at least 2", knots)
    start, stop, duration = ends_of(protocol, duration)
    values = inside_values(protocol, jnp.linspace(0.0, 1.0, knots, dtype=duration.dtype), duration)
    return start, values, stop, duration


@ft.cache
def _curvatures(knots):
    """The matrix that takes the knots of a spline to its second derivatives there, for a distance of one."""
    if knots < 3:
        return np.zeros((knots, knots))
    bends = np.diff(np.eye(knots), 2, axis=0)
    if knots == 3:
        return np.repeat(bends, 3, axis=0)
    equations = np.zeros((knots, knots))
    inner = np.arange(1, knots - 1)
    equations[inner, inner - 1] = equations[inner, inner + 1] = 1.0
    equations[inner, inner] = 4.0
    equations[0, :3] = equations[-1, -3:] = 1.0, -2.0, 1.0
    return np.linalg.solve(equations, np.pad(6 * bends, ((1, 1), (0, 0))))
