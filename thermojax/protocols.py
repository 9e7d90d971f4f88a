r"""Protocols: schedules $t \mapsto \lambda(t)$ of the control parameter.

A protocol is any callable of one time. Optimal protocols of finite duration jump at both ends, so the classes here
distinguish the value *at* an end from the value just inside: a protocol with jumps returns its first value at
$t \le 0$ and its last at $t \ge \tau$, and in between what the jumps lead to. A stepper reads the clock inside its
step (`thermojax.steppers`), so a jump at an end costs exactly the work of one sudden switch. Those of underdamped
dynamics also kick the velocity at both ends (`Kicked`).
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
        at_start, at_end = _at_ends(t, t, self.duration)
        return jnp.where(at_start, self.start, jnp.where(at_end, self.stop, inside))


class Kicked(AbstractProtocol):
    r"""A protocol that also kicks the velocity at both ends, as the optimal protocols of underdamped dynamics do.

    A kick changes every velocity at once, $v \to v + \Delta v$. In a harmonic trap it is what a delta function in $\lambda(t)$ does:
    $\Delta v = (k/m)\int\lambda\,dt$ over the instant.

    Reference:
        A. Gomez-Marin, T. Schmiedl, U. Seifert, J. Chem. Phys. 129, 024114 (2008).
    """

    protocol: Protocol
    """The control."""
    first: Array = eqx.field(converter=as_float)
    """Change of the velocity at time 0, a number or one per coordinate."""
    last: Array = eqx.field(converter=as_float)
    """Change of the velocity at time `duration`."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the protocol takes."""

    def __check_init__(self):
        _check_ends(self.first, self.last, self.duration)

    def __call__(self, t):
        return self.protocol(t)

    def kicks(self, t0: Scalar, t1: Scalar) -> tuple[Array, Array]:
        """The changes of the velocity at the beginning and at the end of a step from `t0` to `t1`."""
        at_start, at_end = _at_ends(t0, t1, self.duration)
        nothing = jnp.zeros_like(self.first)
        return jnp.where(at_start, self.first, nothing), jnp.where(at_end, self.last, nothing)


class Reverse(AbstractProtocol):
    """The same protocol run backwards in time: a state that it drove, with its velocity turned round, goes back where it came from."""

    protocol: Protocol
    """The protocol of the forward experiment."""
    duration: Scalar = eqx.field(converter=as_scalar)
    """Its duration: the reversed protocol at time 0 is the forward one at this time."""

    def __check_init__(self):
        check_positive(self.duration, "duration")

    def __call__(self, t):
        return self.protocol(self.duration - t)

    def kicks(self, t0: Scalar, t1: Scalar) -> tuple[Array, Array] | None:
        """The changes of the velocity at both ends of a step: those of the forward protocol in the other order."""
        found = kicks(self.protocol, self.duration - t1, self.duration - t0)
        return None if found is None else (found[1], found[0])


def kicks(protocol: Protocol | None, t0: Scalar, t1: Scalar) -> tuple[Array, Array] | None:
    """The changes of the velocity at the beginning and at the end of a step from `t0` to `t1`; None for a protocol without kicks."""
    found = getattr(protocol, "kicks", None)
    return None if found is None else found(t0, t1)


def ramp_with_jumps(start: ArrayLike, stop: ArrayLike, duration: ArrayLike = 1.0, *, knots: int = 32) -> PiecewiseLinear:
    """The straight line as a `PiecewiseLinear` protocol: where an optimisation starts from (its jumps are zero)."""
    require(knots >= 2, "knots", "be at least 2", knots)
    start, stop = as_float(start), as_float(stop)
    return PiecewiseLinear(start, jnp.linspace(start, stop, knots), stop, duration)


def _check_ends(start, stop, duration):
    require(start.shape == stop.shape, "stop", f"have the shape of `start`, {start.shape}", f"shape {stop.shape}")
    check_positive(duration, "duration")


def _at_ends(t0, t1, duration):
    """Whether a step begins at the start and ends at the end: a grid that is a rounding error short has still come to the end."""
    slack = 8 * jnp.finfo(duration.dtype).eps * duration
    return t0 <= slack, t1 >= duration - slack
