r"""Energy landscapes $V(x, \lambda)$ and the forces they exert.

A potential is any callable that takes one configuration ``x`` of shape ``(dim,)`` and a control ``lam`` (a number or
an array) and returns one number; ``lambda x, lam: ...`` will do. The classes here own their parameters as
floating-point leaves, so that `jax.grad` reaches them, and add up with ``+``. Energies are in units in which
$k_B = 1$; the force is $F = -\nabla_x V$.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import require

Potential = Callable[[Array, Any], Array]


class AbstractPotential(eqx.Module):
    r"""An energy landscape $V(x, \lambda)$ for one configuration.

    Implement `__call__` for ``x`` of shape ``(dim,)`` and any shape of ``lam``; return a scalar.
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " dim"], lam: Float[Array, "..."]) -> Scalar:
        """The energy."""

    def __add__(self, other: Potential) -> "Sum":
        return Sum((self, other))


class Harmonic(AbstractPotential):
    r"""A trap centred on the control, $V = \tfrac{k}{2}\,|x - \lambda|^2$; ``lam`` is a number or has shape ``(dim,)``."""

    stiffness: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """Spring constant $k$."""

    def __call__(self, x, lam):
        return 0.5 * self.stiffness * jnp.sum((x - lam) ** 2)


class Breathing(AbstractPotential):
    r"""A trap at a fixed place whose stiffness is the control, $V = \tfrac{\lambda}{2}\,|x - c|^2$."""

    centre: Array = eqx.field(converter=as_float, default=0.0)
    """Its centre $c$, a number or of shape ``(dim,)``."""

    def __call__(self, x, lam):
        return 0.5 * lam * jnp.sum((x - self.centre) ** 2)


class Polynomial(AbstractPotential):
    r"""$V = \sum_i \sum_n c_n x_i^n$, the same in every dimension and independent of the control."""

    coefficients: Float[Array, " order"] = eqx.field(converter=as_float)
    """$c_0, c_1, \\ldots$; the last one must be positive for a normalisable Boltzmann weight."""

    def __check_init__(self):
        shape = self.coefficients.shape
        require(len(shape) == 1 and shape[0] % 2 == 1, "coefficients", "be a vector of odd length", f"shape {shape}")

    def __call__(self, x, lam):
        del lam
        total = jnp.zeros_like(x)
        for n in reversed(range(self.coefficients.shape[0])):
            total = total * x + self.coefficients[n]
        return jnp.sum(total)


class DoubleWell(AbstractPotential):
    r"""Two wells at $\pm w$ in every dimension, $V = E\sum_i\left[(x_i/w)^2 - 1\right]^2$; independent of the control."""

    barrier: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """Height $E$ of the barrier between the wells."""
    width: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """Distance $w$ of each well from the barrier."""

    def __call__(self, x, lam):
        del lam
        return self.barrier * jnp.sum(((x / self.width) ** 2 - 1.0) ** 2)


class Bistable(AbstractPotential):
    r"""Two parabolic wells at $\pm w$ that meet in a barrier, $V = -\sum_i\ln\left[e^{-k(x_i+w)^2/2} + e^{-k(x_i-w)^2/2}\right]$.

    At $\beta = 1$ the Boltzmann weight is a mixture of two Gaussians in every dimension, also under a `Harmonic` spring; the barrier is
    $kw^2/2 - \ln 2$ high, up to $e^{-2kw^2}$. Independent of the control.
    """

    stiffness: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """Spring constant $k$ of each well."""
    width: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """Distance $w$ of each well from the barrier."""

    def __call__(self, x, lam):
        del lam
        wells = [-0.5 * self.stiffness * (x - place) ** 2 for place in (-self.width, self.width)]
        return -jnp.sum(jnp.logaddexp(*wells))


class Tilt(AbstractPotential):
    r"""A uniform force equal to the control, $V = -\lambda\cdot x$: add it to a landscape to tilt that landscape."""

    def __call__(self, x, lam):
        return -jnp.sum(lam * x)


class Sum(AbstractPotential):
    """The sum of several potentials under one common control."""

    terms: tuple[Potential, ...]

    def __call__(self, x, lam):
        total = self.terms[0](x, lam)
        for term in self.terms[1:]:
            total = total + term(x, lam)
        return total


def energy(potential: Potential, x: Float[Array, " dim"], lam: ArrayLike) -> Scalar:
    """The energy of one configuration.

    Raises:
        ValueError: if `potential` does not return one number.
    """
    value = potential(x, lam)
    require(jnp.shape(value) == (), "potential", "return one number for one configuration", f"shape {jnp.shape(value)}")
    return value


def force(potential: Potential, x: Float[Array, " dim"], lam: ArrayLike) -> Float[Array, " dim"]:
    r"""The force $F = -\nabla_x V(x, \lambda)$ on one configuration.

    Raises:
        ValueError: if `potential` does not return one number.
    """
    return -jax.grad(lambda y: energy(potential, y, lam))(x)
