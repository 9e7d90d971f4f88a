r"""Heat baths: the inverse temperature $\beta(t)$ that the system feels, and its mobility $\mu(t)$.

Both are any callables of one time. $k_B = 1$, $\beta = 1/T$, and the diffusion constant is $D = \mu/\beta$ (Einstein's
relation). A bath may return one number, or one per coordinate (shape ``(dim,)``) for systems between several baths.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive

Bath = Callable[[Array], Array]


class AbstractBath(eqx.Module):
    r"""A heat bath, $t \mapsto \beta(t)$."""

    @abc.abstractmethod
    def __call__(self, t: Scalar) -> Float[Array, "..."]:
        """The inverse temperature at time `t`."""


class Isothermal(AbstractBath):
    """A bath of constant temperature."""

    beta: Array = eqx.field(converter=as_float, default=1.0)
    r"""Inverse temperature $\beta$, a number or one per coordinate; the unit of energy is $1/\beta$ unless you set it."""

    def __check_init__(self):
        check_positive(self.beta, "beta")

    def __call__(self, t):
        del t
        return self.beta


class LinearBeta(AbstractBath):
    r"""A bath whose *inverse* temperature goes linearly from `start` to `stop` in `duration`, constant outside."""

    start: Scalar = eqx.field(converter=as_scalar)
    r"""$\beta$ at time 0."""
    stop: Scalar = eqx.field(converter=as_scalar)
    r"""$\beta$ at time `duration`."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """How long the change takes."""

    def __check_init__(self):
        for name in ("start", "stop", "duration"):
            check_positive(getattr(self, name), name)

    def __call__(self, t):
        return self.start + (self.stop - self.start) * jnp.clip(t / self.duration, 0.0, 1.0)


class ConstantMobility(eqx.Module):
    """A mobility that does not change."""

    mobility: Array = eqx.field(converter=as_float, default=1.0)
    r"""$\mu$, a number or one per coordinate."""

    def __check_init__(self):
        check_positive(self.mobility, "mobility")

    def __call__(self, t):
        del t
        return self.mobility
