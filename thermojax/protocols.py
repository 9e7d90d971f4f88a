r"""Protocols: schedules $t \mapsto \lambda(t)$ of the control parameter.

A protocol is any callable of one time. Optimal protocols of finite duration jump at both ends, so the classes here
distinguish the value *at* an end from the value just inside: a protocol with jumps returns its first value at
$t \le 0$ and its last at $t \ge \tau$, and in between what the jumps lead to. A stepper reads the clock inside its
step (`thermojax.steppers`), so a jump at an end costs exactly the work of one sudden switch.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, require

Protocol = Callable[[Array], Array]


class AbstractProtocol(eqx.Module):
    r"""A schedule of the control parameter, $t \mapsto \lambda(t)$."""

    @abc.abstractmethod
    def __call__(self, t: Scalar) -> Float[Array, "..."]:
        """The control at time `t`."""


class Constant(AbstractProtocol):
    """A control that does not change."""

    value: Array = eqx.field(converter=as_float)
    """The control, a number or an array."""

    def __call__(self, t):
        del t
        return self.value


class Ramp(AbstractProtocol):
    """A straight line from `start` to `stop` in `duration`, constant outside."""

    start: Array = eqx.field(converter=as_float)
    """The control at time 0, a number or an array."""
    stop: Array = eqx.field(converter=as_float)
    """The control at time `duration`, of the same shape."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the ramp takes."""

    def __check_init__(self):
        _check_ends(self.start, self.stop, self.duration)

    def __call__(self, t):
        return self.start + (self.stop - self.start) * jnp.clip(t / self.duration, 0.0, 1.0)


class PiecewiseLinear(AbstractProtocol):
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
        _check_ends(self.start, self.stop, self.duration)
        shape = self.knots.shape
        good = len(shape) >= 1 and shape[0] >= 2 and shape[1:] == self.start.shape
        require(good, "knots", f"have shape (knot >= 2, {', '.join(map(str, self.start.shape))})", f"shape {shape}")

    @property
    def jumps(self) -> tuple[Array, Array]:
        r"""The jumps $\lambda(0^+) - \lambda(0)$ and $\lambda(\tau) - \lambda(\tau^-)$."""
        return self.knots[0] - self.start, self.stop - self.knots[-1]

    def __call__(self, t):
        intervals = self.knots.shape[0] - 1
        position = jnp.clip(t / self.duration, 0.0, 1.0) * intervals
        left = jnp.clip(jnp.floor(position), 0, intervals - 1)
        below, above = self.knots[left.astype(int)], self.knots[left.astype(int) + 1]
        inside = below + (position - left) * (above - below)
        # A grid that ends a rounding error before the duration has still come to the end.
        slack = 8 * jnp.finfo(inside.dtype).eps * self.duration
        return jnp.where(t <= slack, self.start, jnp.where(t >= self.duration - slack, self.stop, inside))


class Reverse(AbstractProtocol):
    """The same protocol run backwards in time."""

    protocol: Protocol
    """The protocol of the forward experiment."""
    duration: Scalar = eqx.field(converter=as_scalar)
    """Its duration: the reversed protocol at time 0 is the forward one at this time."""

    def __check_init__(self):
        check_positive(self.duration, "duration")

    def __call__(self, t):
        return self.protocol(self.duration - t)


def ramp_with_jumps(start: ArrayLike, stop: ArrayLike, duration: ArrayLike = 1.0, *, knots: int = 32) -> PiecewiseLinear:
    """The straight line as a `PiecewiseLinear` protocol: where an optimisation starts from (its jumps are zero)."""
    require(knots >= 2, "knots", "be at least 2", knots)
    start, stop = as_float(start), as_float(stop)
    return PiecewiseLinear(start, jnp.linspace(start, stop, knots), stop, duration)


def _check_ends(start, stop, duration):
    require(start.shape == stop.shape, "stop", f"have the shape of `start`, {start.shape}", f"shape {stop.shape}")
    check_positive(duration, "duration")
