"""What a target is, how anything becomes one, and a look at whether it is fit to be sampled."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num, PRNGKeyArray as Key

from thermojax._array import as_scalar, Scalar
from thermojax._check import ensure, library_of, require
from thermojax.distributions import AbstractDistribution
from thermojax.potentials import AbstractPotential


class AbstractTarget(eqx.Module):
    r"""A density known up to its normaliser, $\pi(x) = \gamma(x)/Z$ for $x$ of shape ``(dim,)``: called, it returns $\ln\gamma(x)$."""

    # Fields or properties, as a target likes; a type checker would take abstract variables for the first arguments of every target.
    if TYPE_CHECKING:
        dim: ClassVar[Any]
        log_z: ClassVar[Any]
    else:
        dim: eqx.AbstractVar[int]
        """Number of coordinates."""
        log_z: eqx.AbstractVar[Scalar | None]
        r"""$\ln Z = \ln\int\gamma(x)\,dx$, or None where it is unknown."""

    @abc.abstractmethod
    def log_density(self, x: Float[Array, " dim"]) -> Any:
        r"""$\ln\gamma(x)$, one number; call the target itself, which checks shapes."""

    @abc.abstractmethod
    def sample(self, n: int, *, key: Key) -> Float[Array, "n dim"]:
        r"""`n` independent exact draws from $\pi$.

        Raises:
            ValueError: if the target has no exact sampler.
        """

    def __call__(self, x: Num[Array, "..."]) -> Scalar:
        r"""$\ln\gamma(x)$.

        Raises:
            ValueError: if `x` has not the shape ``(dim,)``, or the density is not one number.
        """
        require(x.shape == (self.dim,), "x", f"have shape ({self.dim},), one configuration at a time", f"shape {x.shape}")
        value = self.log_density(x)
        require(jnp.shape(value) == (), "log_density", "return one number for one configuration", f"shape {jnp.shape(value)}")
        return jnp.asarray(value)


class Target(AbstractTarget):
    r"""Any function $\ln\gamma(x)$ as a target."""

    log_prob: Callable[[Array], Any]
    r"""$\ln\gamma$ of one configuration of shape ``(dim,)``."""
    dim: int = eqx.field(static=True)
    """Number of coordinates."""
    log_z: Scalar | None = eqx.field(converter=lambda value: None if value is None else as_scalar(value), default=None)
    r"""$\ln Z$, if it is known."""
    sampler: Callable[..., Array] | None = None
    """``sampler(n, key=key)`` returns exact draws, shape ``(n, dim)``; None if there is no such thing."""

    def __check_init__(self):
        require(callable(self.log_prob), "log_prob", "be a function of one configuration", type(self.log_prob).__name__)
        check_dim(self.dim)
        if self.log_z is not None:
            rule = "be finite: a density that cannot be normalised has nothing to sample"
            ensure(self.log_z, library_of(self.log_z).isfinite(self.log_z), "log_z", rule, self.log_z)

    def log_density(self, x):
        return self.log_prob(x)

    def sample(self, n, *, key):
        if self.sampler is None:
            refuse_draws(self)
        draws = self.sampler(n, key=key)
        require(draws.shape == (n, self.dim), "sampler", f"return draws of shape ({n}, {self.dim})", f"shape {draws.shape}")
        return draws


class Energy(AbstractPotential):
    r"""A target as the potential $V(x) = -\ln\gamma(x)$, the same at every control; at $\beta = 1$ its Boltzmann density is the target."""

    target: Callable[[Array], Array]
    r"""$\ln\gamma$: a target or any other such function."""

    def __call__(self, x, lam):
        del lam
        return -self.target(x)


def as_target(density: AbstractDistribution, *, dim: int) -> Target:
    r"""A normalised density of configurations as a target: $\ln Z = 0$, and its own draws.

    Args:
        density: The distribution.
        dim: Number of its coordinates.
    """
    return Target(density.log_prob, dim, 0.0, density.sample)


def check_target(target: Callable[[Array], Any], xs: Float[ArrayLike, "..."]) -> None:
    r"""Evaluate $\ln\gamma$ and its gradient at some places, and refuse a target that is not finite there.

    For known numbers, outside of `jax.jit`.

    Args:
        target: A target, or any function of one configuration.
        xs: Places, shape ``(place, dim)``.

    Raises:
        ValueError: if `xs` has another shape, or the value is not one number; if value or gradient are infinite or no number: the
            sentence says at which place, and in which coordinates.
    """
    xs = jnp.asarray(xs)
    require(xs.ndim == 2 and xs.shape[0] > 0, "xs", "have shape (place, dim), with at least one place", f"shape {xs.shape}")
    dim = getattr(target, "dim", xs.shape[1])
    require(xs.shape[1] == dim, "xs", f"have shape (place, {dim}), as the target", f"shape {xs.shape}")
    shape = jnp.shape(eqx.filter_eval_shape(target, xs[0]))
    require(shape == (), "target", "return one number for one configuration", f"shape {shape}")
    values, grads = (np.asarray(part) for part in _values_and_grads(target, xs))
    for what, found in (("value", values[:, None]), ("gradient", grads)):
        bad = ~np.isfinite(found)
        if not bad.any():
            continue
        place = int(np.argmax(bad.any(axis=1)))
        where = np.flatnonzero(bad[place])
        kind = "nan" if np.isnan(found[place]).any() else "an infinite number"
        part = "" if what == "value" else f" in the coordinates {_short(where)}"
        others = f" ({int(bad.any(axis=1).sum())} of {len(xs)} places)"
        require(False, "target", f"have a finite {what}", f"{kind}{part} at xs[{place}] = {_short(np.asarray(xs[place]))}{others}")


def check_dim(dim: int, *, least: int = 1) -> None:
    """Refuse a number of coordinates that is none, or too small."""
    require(isinstance(dim, int) and dim >= least, "dim", f"be a whole number, at least {least}", repr(dim))


def check_scale(value: Array, name: str) -> Array:
    """Return the scale of a prior if it is positive and finite."""
    good = library_of(value).isfinite(value) & (value > 0)
    return ensure(value, good, name, "be positive and finite: a prior that is not normalised gives no evidence", value)


def refuse_draws(target: AbstractTarget) -> NoReturn:
    """Say that there is no exact sampler."""
    raise ValueError(f"`target` must have an exact sampler for independent draws, got {type(target).__name__} without one.")


@eqx.filter_jit
def _values_and_grads(target, xs):
    return jax.vmap(jax.value_and_grad(target))(xs)


def _short(values):
    return np.array2string(values, precision=6, threshold=8, edgeitems=4, max_line_width=10_000)
