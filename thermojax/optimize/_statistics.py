"""Weighted statistics of samples, differentiable in the weights as in the samples."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp, ndtr, ndtri
from jaxtyping import Array, Float

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.distributions import AbstractDistribution, Gaussian, GaussianMixture, GridBoltzmann, MaxwellBoltzmann
from thermojax.fokker_planck import GridDensity
from thermojax.phase import Phase

# A quantile further out than this many standard deviations moves no digit.
_REACH = 12.0
_KNOTS = 4097


def log_average(logs: Float[Array, " sample"], log_weights: Float[Array, " sample"]) -> Scalar:
    r"""The logarithm of the mean of $e^{\text{logs}}$, without overflow."""
    return logsumexp(logs + log_weights) - logsumexp(log_weights)


def flat(xs: Any) -> Float[Array, "sample dim"]:
    """States as vectors: a `Phase` is its position followed by its velocity."""
    return jnp.concatenate([xs.position, xs.velocity], axis=-1) if isinstance(xs, Phase) else xs


def moments(points: Float[Array, "sample dim"], shares: Float[Array, " sample"]) -> tuple[Array, Array]:
    """Mean and covariance matrix of weighted points; the weights add up to one."""
    mean = shares @ points
    away = points - mean[None]
    return mean, (shares[:, None] * away).T @ away


def log_determinant(covariance: Float[Array, "dim dim"]) -> Scalar:
    """The logarithm of the determinant of a covariance."""
    return jnp.linalg.slogdet(covariance)[1]


def gaussian_divergence(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> Scalar:
    """The Kullback-Leibler divergence of a Gaussian from another one."""
    away = other_mean - mean
    solved = jnp.linalg.solve(other_covariance, jnp.concatenate([covariance, away[:, None]], axis=1))
    volumes = log_determinant(other_covariance) - log_determinant(covariance)
    return 0.5 * (jnp.trace(solved[:, :-1]) + jnp.sum(away * solved[:, -1]) - mean.shape[0] + volumes)


def gaussian_moments(target: Any) -> tuple[Array, Array] | None:
    """Mean and covariance matrix of a Gaussian, in phase space too; None of anything else."""
    if isinstance(target, Gaussian):
        return target.mean, full(target.covariance, target.mean.shape[0])
    if isinstance(target, MaxwellBoltzmann) and isinstance(target.position, Gaussian):
        mean, covariance = target.position.mean, full(target.position.covariance, target.position.mean.shape[0])
        none, thermal = jnp.zeros_like(covariance), full(1.0 / (target.beta * target.mass), mean.shape[0])
        return jnp.concatenate([mean, jnp.zeros_like(mean)]), jnp.block([[covariance, none], [none, thermal]])
    return None


def full(covariance: Array, dim: int) -> Float[Array, "dim dim"]:
    """A covariance as a matrix."""
    return covariance if covariance.ndim == 2 else jnp.diag(jnp.broadcast_to(covariance, (dim,)))


def check_dimension(target: Any, dim: int) -> None:
    """Raise ``ValueError`` unless `target`, a density or samples of it, is one of states of `dim` numbers."""
    if isinstance(target, AbstractDistribution):
        target = jax.eval_shape(lambda: flat(target.sample(1, key=jr.key(0))))
    require(target.shape[1] == dim, "target", f"have the dimension of the states, {dim}", target.shape[1])


def line_transport(points: Float[Array, " sample"], shares: Float[Array, " sample"], target: Any) -> Scalar:
    r"""Squared Wasserstein distance on the line, $\int [x(u) - q(u)]^2du$ of the two quantile functions."""
    order = jnp.argsort(points)
    points, shares = points[order], shares[order]
    middles = jnp.cumsum(shares) - 0.5 * shares
    tiny = jnp.finfo(points.dtype).eps
    return jnp.sum(shares * (points - quantile(target, jnp.clip(middles, tiny, 1.0 - tiny))) ** 2)


def quantile(target: Any, u: Float[Array, " sample"]) -> Float[Array, " sample"]:
    """The quantile function of a density on the line, or of samples.

    Raises:
        TypeError: if it is not known.
    """
    if isinstance(target, Gaussian):
        return target.mean[0] + jnp.sqrt(full(target.covariance, 1)[0, 0]) * ndtri(u)
    if isinstance(target, GaussianMixture):
        spreads = jnp.sqrt(target.covariances.reshape(-1))
        spreads = jnp.broadcast_to(spreads, target.means.shape[:1])
        low = jnp.min(target.means[:, 0] - _REACH * spreads)
        high = jnp.max(target.means[:, 0] + _REACH * spreads)
        places = jnp.linspace(low, high, _KNOTS)
        shares = target.weights / jnp.sum(target.weights)
        below = ndtr((places[:, None] - target.means[None, :, 0]) / spreads[None])
        return jnp.interp(u, below @ shares, places)
    if isinstance(target, GridDensity):
        return _cells_quantile(target.grid.lines[0], target.density * target.grid.volume, u)
    if isinstance(target, GridBoltzmann):
        logs = jax.vmap(target.log_prob)(target.centres)
        return _cells_quantile(target.centres[:, 0], jnp.exp(logs) * target.spacing[0], u)
    if isinstance(target, AbstractDistribution):
        known = "`Gaussian`, `GaussianMixture`, `GridDensity` and `GridBoltzmann` have them"
        raise TypeError(f"`target` must have known quantiles ({known}, or give samples of it), got {type(target).__name__}.")
    ordered = jnp.sort(target[:, 0])
    count = ordered.shape[0]
    return jnp.interp(u, (jnp.arange(count, dtype=u.dtype) + 0.5) / count, ordered)


def _cells_quantile(middles, masses, u):
    """Quantiles of a density that is constant in every cell."""
    spacing = middles[1] - middles[0]
    below = jnp.concatenate([jnp.zeros_like(masses[:1]), jnp.cumsum(masses)])
    edges = jnp.append(middles - 0.5 * spacing, middles[-1] + 0.5 * spacing)
    return jnp.interp(u, below / below[-1], edges)
