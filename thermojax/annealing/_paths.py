r"""Tempering paths: the densities $\gamma_\lambda(x)$ between a first and a last one, up to their normalisers."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive, require
from thermojax.baths import Bath, Isothermal
from thermojax.distributions import AbstractDistribution
from thermojax.measures import log_of, Unnormalised
from thermojax.potentials import energy, Potential
from thermojax.protocols import Protocol

Path = Callable[[Any, Array], Array]
r"""$\ln\gamma_\lambda(x)$ of one configuration; any callable ``(x, lam)`` will do."""


class Place(NamedTuple):
    """A configuration, with what its path has found out there that holds at every level."""

    x: Any
    """The configuration."""
    known: Any = None
    """What its path needs to know."""


class AbstractPath(eqx.Module):
    r"""A path that looks at a configuration once and then knows $\ln\gamma_\lambda$ there for every $\lambda$."""

    @abc.abstractmethod
    def at(self, x: Any, *, gradient: bool = False) -> Place:
        """Look at a configuration, and at the gradients there if these will be asked for."""

    @abc.abstractmethod
    def value(self, place: Place, lam: Scalar) -> Scalar:
        r"""$\ln\gamma_\lambda(x)$."""

    @abc.abstractmethod
    def gradient(self, place: Place, lam: Scalar) -> Array:
        r"""$\nabla_x\ln\gamma_\lambda(x)$ at a place that was looked at with gradients."""

    def __call__(self, x: Any, lam: Scalar) -> Scalar:
        r"""$\ln\gamma_\lambda(x)$ of one configuration."""
        return self.value(self.at(x), lam)

    def change(self, place: Place, lam0: Scalar, lam1: Scalar) -> Scalar:
        r"""$\ln\gamma_{\lambda_1}(x) - \ln\gamma_{\lambda_0}(x)$."""
        return self.value(place, lam1) - self.value(place, lam0)

    def slope(self, place: Place, lam: Scalar) -> Scalar:
        r"""$\partial_\lambda\ln\gamma_\lambda(x)$."""
        return jax.jvp(lambda l: self.value(place, l), (lam,), (jnp.ones_like(lam),))[1]


class Geometric(AbstractPath):
    r"""The geometric path, $\ln\gamma_\lambda = (1-\lambda)\ln p_0 + \lambda\ln\gamma$.

    The target's gradient is taken once for each new configuration, whatever the number of levels that ask for it.
    """

    initial: AbstractDistribution
    """The first density $p_0$."""
    target: Unnormalised
    r"""The last density $\gamma$: a distribution, or any callable that returns $\ln\gamma(x)$."""

    def at(self, x, *, gradient=False):
        ends = (self.initial.log_prob, log_of(self.target))
        if gradient:
            (first, along), (last, across) = (jax.value_and_grad(end)(x) for end in ends)
            return Place(x, (first, last, along, across))
        return Place(x, tuple(end(x) for end in ends))

    def value(self, place, lam):
        first, last = place.known[:2]
        return _mixed(first, last, lam)

    def gradient(self, place, lam):
        first, last = place.known[2:]
        return _mixed(first, last, lam)


class Driven(eqx.Module):
    r"""The Boltzmann weights of a driven system, $\ln\gamma_\lambda(x) = -\beta(t)\,V(x, c(t))$ at the time $t = \lambda\tau$.

    Temperatures alone (simulated tempering), controls alone (the driven systems of this library), or both.
    """

    potential: Potential
    """$V(x, c)$ under the control $c$."""
    protocol: Protocol
    """The control $c(t)$."""
    bath: Bath = eqx.field(default_factory=Isothermal)
    r"""$\beta(t)$, one number."""
    duration: Scalar = eqx.field(converter=as_scalar, default=1.0)
    r"""The duration $\tau$."""

    def __check_init__(self):
        check_positive(self.duration, "duration")

    def __call__(self, x: Any, lam: Scalar) -> Scalar:
        r"""$\ln\gamma_\lambda(x)$ of one configuration."""
        t = lam * self.duration
        beta = jnp.asarray(self.bath(t))
        require(beta.ndim == 0, "bath", "return one beta for a density", f"shape {beta.shape}")
        return -beta * energy(self.potential, x, self.protocol(t))


class Plain(AbstractPath):
    """Any callable as a path that asks it anew at every level."""

    function: Path

    def at(self, x, *, gradient=False):
        del gradient
        return Place(x)

    def value(self, place, lam):
        value = self.function(place.x, lam)
        require(jnp.shape(value) == (), "path", "return one number for one configuration", f"shape {jnp.shape(value)}")
        return value

    def gradient(self, place, lam):
        return jax.grad(lambda x: self.value(Place(x), lam))(place.x)


def as_path(path: "AbstractPath | Path") -> AbstractPath:
    """A path as it is; any other callable ``(x, lam)`` as a path."""
    return path if isinstance(path, AbstractPath) else Plain(path)


def _mixed(first, last, lam):
    # At the very beginning the target has no say, not even where it vanishes.
    last = jnp.where((lam == 0) & ~jnp.isfinite(last), first, last)
    return first + lam * (last - first)
