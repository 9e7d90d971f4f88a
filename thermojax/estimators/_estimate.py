"""What every estimator returns, and the samples that it reads."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive, ensure, library_of, require


class Estimate(NamedTuple):
    """A Monte Carlo estimate."""

    value: Scalar
    """The estimate."""
    stderr: Scalar
    """One standard error, from the spread of the samples."""
    ess: Scalar
    """Effective number of independent samples behind the estimate, at most the sample size."""
    trustworthy: Array
    """Whether value and error bar may be believed."""
    samples: Array
    """Samples used."""
    excluded: Array
    """Samples left out because they are not finite."""
    tail_index: Scalar | None = None
    r"""Pareto index of the largest weights of an exponential average: their moments exist up to order 1/index, so that the variance is
    infinite from 1/2 on. None for plain means."""


class Samples(NamedTuple):
    """Finite samples of one quantity, with what each of them counts."""

    values: Float[Array, " sample"]
    """The samples, zero where they are left out."""
    weights: Float[Array, " sample"]
    """Importance weights of mean one over the samples used; zero for the others."""
    number: Scalar
    """Samples used."""
    inefficiency: Scalar
    """Correlated samples that are worth one independent sample."""

    @property
    def excluded(self):
        """Samples left out."""
        return self.values.shape[0] - self.number

    @property
    def independent(self):
        """Independent samples of equal weight that these are worth (Kish)."""
        return self.number**2 / jnp.sum(self.weights**2) / self.inefficiency


def samples(values: Any, name: str, *, weights: Any = None, inefficiency: Any = 1.0) -> Samples:
    """The finite samples of one quantity called `name`, checked."""
    values = as_floating(values, name)
    require(values.ndim == 1 and values.shape[0] >= 2, name, "be a vector of at least two samples", f"shape {values.shape}")
    rule = f"be one number for each sample of `{name}`, not negative and not all zero"
    if weights is None:
        weights = jnp.asarray(np.ones(values.shape, values.dtype))
    else:
        weights = as_floating(weights, "weights").astype(values.dtype)
        require(weights.shape == values.shape, "weights", rule, f"shape {weights.shape}")
        # Weights that are not finite exclude their sample.
        xp = library_of(weights)
        weights = ensure(weights, ~xp.any(xp.asarray(weights) < 0) & xp.any(xp.asarray(weights) > 0), "weights", rule, weights)
    require(jnp.ndim(inefficiency) == 0, "inefficiency", "be one number", f"shape {jnp.shape(inefficiency)}")
    g = as_scalar(inefficiency).astype(values.dtype)
    xp = library_of(g)
    g = ensure(g, xp.isfinite(g) & (xp.asarray(g) >= 1), "inefficiency", "be at least one", g)
    values, weights, count = _masked(values, weights)
    values = ensure(
        values, library_of(count).asarray(count) >= 2, name, "hold at least two finite samples", f"{values.shape[0]} of which too few are"
    )
    return Samples(values, weights, count, g)


@jax.jit
def _masked(values, weights):
    good = jnp.isfinite(values) & jnp.isfinite(weights)
    count = jnp.sum(good).astype(values.dtype)
    weights = jnp.where(good, weights, 0.0)
    weights = weights / jnp.max(weights)
    return jnp.where(good, values, 0.0), weights * (count / jnp.sum(weights)), count


def as_floating(values: Any, name: str) -> Array:
    """Return `values` as a floating-point array, in its own precision."""
    values = jnp.asarray(values)
    if jnp.iscomplexobj(values):
        raise TypeError(f"`{name}` must be real, got {values.dtype}.")
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(float)


def one_beta(beta: ArrayLike, like: Array) -> Scalar:
    """Return `beta` as one positive number in the precision of `like`."""
    rule = "be one number; for a changing bath take `exponential_mean` of the reduced work"
    require(jnp.ndim(beta) == 0, "beta", rule, f"shape {jnp.shape(beta)}")
    return check_positive(as_scalar(beta), "beta").astype(like.dtype)
