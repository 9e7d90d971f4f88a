"""States: a configuration, or a point of phase space.

A configuration is an array of shape ``(dim,)``. Underdamped dynamics move a `Phase`: position and velocity together, two arrays of
that shape. Whatever holds many states (an ensemble, a stored path) holds them as arrays, or as a `Phase` of arrays, with the further
axes in front.
"""

from typing import Any, NamedTuple, TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._check import require


class Phase(NamedTuple):
    """Position and velocity, each of shape ``(dim,)``, or ``(..., dim)`` for many."""

    position: Array
    velocity: Array

    def flipped(self) -> "Phase":
        """The same place with the velocity turned round: time reversal of a state."""
        return Phase(self.position, -self.velocity)


if TYPE_CHECKING:
    # Which of the two a dynamics moves is known at run time only.
    State = Any
    States = Any
    Amplitude = Any
else:
    State = Float[Array, " dim"] | Phase
    States = Float[Array, "sample dim"] | Phase
    Amplitude = Float[Array, "..."] | Phase


def position_of(x: Any) -> Array:
    """The configuration in a state."""
    return x.position if isinstance(x, Phase) else x


def check_states(x0s: ArrayLike | Phase) -> States:
    """Return initial states as floating-point arrays of shape ``(sample, dim)``.

    Raises:
        TypeError, ValueError: if they are not real, or have another shape.
    """
    if not isinstance(x0s, Phase):
        return check_configurations(x0s)
    position, velocity = (check_configurations(a, f"x0s.{name}") for name, a in x0s._asdict().items())
    require(
        position.shape == velocity.shape, "x0s.velocity", f"have the shape of the positions, {position.shape}", f"shape {velocity.shape}"
    )
    return Phase(position, velocity.astype(position.dtype))


def check_configurations(x0s: Any, name: str = "x0s") -> Array:
    """Return configurations as a floating-point array of shape ``(sample, dim)``.

    Raises:
        TypeError, ValueError: if they are not real, or have another shape.
    """
    x0s = jnp.asarray(x0s)
    if jnp.iscomplexobj(x0s):
        raise TypeError(f"`{name}` must be real, got {x0s.dtype}.")
    require(x0s.ndim == 2 and x0s.size > 0, name, "have shape (sample, dim)", f"shape {x0s.shape}")
    return x0s if jnp.issubdtype(x0s.dtype, jnp.floating) else x0s.astype(float)


def first_of(xs: Any) -> Any:
    """The first of many states."""
    return jax.tree.map(lambda a: a[0], xs)
