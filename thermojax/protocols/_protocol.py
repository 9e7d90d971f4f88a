"""What a protocol is, what happens at its ends, and the protocols that have no shape to optimise."""

import abc
from collections.abc import Callable
from typing import Any, cast

import equinox as eqx
import jax
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


class AbstractFiniteTime(AbstractProtocol):
    r"""A protocol from `start` to `stop` in `duration`, constant outside, that may jump at both ends.

    Implement `inside`, a function of the share $s = t/\tau$ of the duration, and `free`. A derivative in time is meant just inside: at
    the ends themselves it is zero.
    """

    start: eqx.AbstractVar[Array]
    stop: eqx.AbstractVar[Array]
    duration: eqx.AbstractVar[Scalar]

    def __check_init__(self):
        check_ends(self.start, self.stop, self.duration)

    @abc.abstractmethod
    def inside(self, s: Scalar) -> Float[Array, "..."]:
        """The control at the share `s` of the duration; at 0 and 1 its limits just inside the ends."""

    @property
    @abc.abstractmethod
    def free(self) -> Any:
        """The leaves that shape the protocol: what an optimisation moves."""

    @property
    def jumps(self) -> tuple[Array, Array]:
        r"""The jumps $\lambda(0^+) - \lambda(0)$ and $\lambda(\tau) - \lambda(\tau^-)$."""
        nothing = jnp.zeros_like(self.duration)
        return self.inside(nothing) - self.start, self.stop - self.inside(nothing + 1.0)

    def __call__(self, t):
        at_start, at_end = at_ends(t, t, self.duration)
        inside = self.inside(jnp.clip(t / self.duration, 0.0, 1.0))
        return jnp.where(at_start, self.start, jnp.where(at_end, self.stop, inside))


class AbstractModified(AbstractFiniteTime):
    """Another protocol, changed inside: its start, its stop and its duration stay."""

    protocol: eqx.AbstractVar[AbstractFiniteTime]

    @property
    def start(self) -> Array:
        """The control before the protocol; likewise `stop` and `duration`."""
        return self.protocol.start

    @property
    def stop(self) -> Array:
        """See `start`."""
        return self.protocol.stop

    @property
    def duration(self) -> Scalar:
        """See `start`."""
        return self.protocol.duration


class Constant(AbstractProtocol):
    """A control that does not change."""

    value: Array = eqx.field(converter=as_float)
    """The control, a number or an array."""

    def __call__(self, t):
        del t
        return self.value


class Ramp(AbstractFiniteTime):
    """A straight line from `start` to `stop` in `duration`, constant outside."""

    start: Array = eqx.field(converter=as_float)
    """The control at time 0, a number or an array."""
    stop: Array = eqx.field(converter=as_float)
    """The control at time `duration`, of the same shape."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the ramp takes."""

    def inside(self, s):
        return between(self.start, self.stop, s)

    @property
    def free(self) -> Any:
        """Nothing."""
        return ()


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
        check_ends(self.first, self.last, self.duration)

    def __call__(self, t):
        return self.protocol(t)

    def kicks(self, t0: Scalar, t1: Scalar) -> tuple[Array, Array]:
        """The changes of the velocity at the beginning and at the end of a step from `t0` to `t1`."""
        at_start, at_end = at_ends(t0, t1, self.duration)
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


def sampled(
    protocol: Protocol, *, points: int = 201, duration: ArrayLike | None = None
) -> tuple[Float[Array, " time"], Float[Array, "time ..."]]:
    """Times and controls of a protocol for a figure: a line through them shows its jumps as vertical strokes.

    Args:
        protocol: Any protocol.
        points: Equally spaced times inside, the limits just inside both ends included; the two ends themselves come on top.
        duration: How long it takes, for a callable that does not know.

    Raises:
        ValueError: if the duration is not known, or there are fewer than two points.
    """
    require(points >= 2, "points", "be at least 2", points)
    start, stop, duration = ends_of(protocol, duration)
    shares = jnp.linspace(0.0, 1.0, points, dtype=duration.dtype)
    controls = jnp.concatenate([start[None], inside_values(protocol, shares, duration), stop[None]])
    return duration * jnp.concatenate([shares[:1], shares, shares[-1:]]), controls


def ends_of(protocol: Protocol, duration: ArrayLike | None) -> tuple[Array, Array, Scalar]:
    """The controls before and after a protocol, and its duration.

    Raises:
        ValueError: if the duration is not known.
    """
    found = getattr(protocol, "duration", None) if duration is None else duration
    require(found is not None, "duration", f"be given for a protocol that does not know its own, like {_name(protocol)}", "None")
    taken = as_scalar(found)  # pyright: ignore[reportArgumentType]
    check_positive(taken, "duration")
    return as_float(protocol(jnp.zeros_like(taken))), as_float(protocol(taken)), taken


def inside_values(protocol: Protocol, shares: Float[Array, " share"], duration: Scalar) -> Float[Array, "share ..."]:
    """The controls at these shares of the duration, those at 0 and 1 just inside the ends."""
    if isinstance(protocol, AbstractFiniteTime) and duration is protocol.duration:
        return jax.vmap(protocol.inside)(shares)
    # Twice the slack that `at_ends` allows.
    inset = 16 * jnp.finfo(duration.dtype).eps
    return jax.vmap(lambda s: as_float(protocol(duration * s)))(jnp.clip(shares, inset, 1.0 - inset))


def finite_time(protocol: Protocol) -> AbstractFiniteTime:
    """`protocol`, if it tells apart its ends and what is just inside.

    Raises:
        ValueError: if it does not.
    """
    rule = "be one of a finite duration, like a `Ramp`; make one of any callable by `PiecewiseLinear.like`"
    require(isinstance(protocol, AbstractFiniteTime), "protocol", rule, _name(protocol))
    return cast(AbstractFiniteTime, protocol)


def check_ends(start: Array, stop: Array, duration: Scalar) -> None:
    """Raise ``ValueError`` unless both ends have one shape and the duration is positive."""
    require(start.shape == stop.shape, "stop", f"have the shape of `start`, {start.shape}", f"shape {stop.shape}")
    check_positive(duration, "duration")


def at_ends(t0: Scalar, t1: Scalar, duration: Scalar) -> tuple[Array, Array]:
    """Whether a step begins at the start and ends at the end: a grid that is a rounding error short has still come to the end."""
    slack = 8 * jnp.finfo(duration.dtype).eps * duration
    return t0 <= slack, t1 >= duration - slack


def between(first: Array, last: Array, share: Scalar) -> Array:
    """The point at this share of the way, `first` and `last` themselves at 0 and 1."""
    way = last - first
    return jnp.where(share < 0.5, first + share * way, last - (1.0 - share) * way)


def _name(protocol):
    return getattr(protocol, "__name__", type(protocol).__name__)
