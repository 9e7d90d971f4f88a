"""Gaussians and mixtures of Gaussians."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, Scalar
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.phase import State, States


class AbstractDistribution(eqx.Module):
    """A normalised density of one state: a configuration of shape ``(dim,)``, or a `phase.Phase`."""

    @abc.abstractmethod
    def sample(self, n: int, *, key: Key) -> States:
        """Draw `n` states, shape ``(n, dim)``."""

    @abc.abstractmethod
    def log_prob(self, x: State) -> Scalar:
        """The logarithm of the density at `x`."""

    @abc.abstractmethod
    def score(self, x: State) -> State:
        r"""The score $\nabla_x \ln p(x)$."""


class Gaussian(AbstractDistribution):
    r"""The normal density $N(m, C)$."""

    mean: Float[Array, " dim"] = eqx.field(converter=as_float)
    """Its mean $m$."""
    covariance: Float[Array, "..."] = eqx.field(converter=as_float)
    """Its covariance $C$: one variance for all coordinates, one each (shape ``(dim,)``), or a matrix ``(dim, dim)``."""

    def __check_init__(self):
        require(self.mean.ndim == 1, "mean", "have shape (dim,)", f"shape {self.mean.shape}")
        _check_covariance(self.covariance, self.mean.shape)

    def sample(self, n, *, key):
        zs = jr.normal(key, (n, *self.mean.shape), self.mean.dtype)
        return jax.vmap(lambda z: self.mean + _colour(self.covariance, z))(zs)

    def log_prob(self, x):
        return _log_normal(x - self.mean, self.covariance)

    def score(self, x):
        return jax.grad(self.log_prob)(x)

    def entropy(self) -> Scalar:
        """The differential entropy in nats."""
        return -_log_normal(jnp.zeros_like(self.mean), self.covariance) + 0.5 * self.mean.shape[0]

    def push(self, scale: ArrayLike, covariance: ArrayLike, shift: ArrayLike = 0.0) -> "Gaussian":
        """The density of ``scale * x + shift + noise``, where the noise is Gaussian with `covariance`."""
        return Gaussian(*_push(self.mean, self.covariance, scale, covariance, shift))


class GaussianMixture(AbstractDistribution):
    r"""A weighted sum of normal densities, $\sum_k w_k N(m_k, C_k)$."""

    weights: Float[Array, " component"] = eqx.field(converter=as_float)
    """Positive weights; they are normalised to sum to one wherever they are used."""
    means: Float[Array, "component dim"] = eqx.field(converter=as_float)
    """The mean of each component."""
    covariances: Float[Array, "component ..."] = eqx.field(converter=as_float)
    """For each component one variance, one for each coordinate, or a matrix: shape ``(component,)``,
    ``(component, dim)`` or ``(component, dim, dim)``."""

    def __check_init__(self):
        require(self.means.ndim == 2, "means", "have shape (component, dim)", f"shape {self.means.shape}")
        components = self.means.shape[:1]
        require(self.weights.shape == components, "weights", f"have shape {components}", f"shape {self.weights.shape}")
        check_positive(self.weights, "weights")
        shape = self.covariances.shape
        require(shape[:1] == components, "covariances", f"have {components[0]} components", f"shape {shape}")
        _check_covariance(self.covariances, self.means.shape[1:], name="covariances", components=components)

    def sample(self, n, *, key):
        choice_key, noise_key = jr.split(key)
        choices = jr.categorical(choice_key, jnp.log(self.weights), shape=(n,))
        zs = jr.normal(noise_key, (n, self.means.shape[1]), self.means.dtype)
        factors = self.covariances if self.covariances.ndim < 3 else jnp.linalg.cholesky(self.covariances)

        def draw(choice, z):
            factor = factors[choice]
            return self.means[choice] + (factor @ z if factor.ndim == 2 else jnp.sqrt(factor) * z)

        return jax.vmap(draw)(choices, zs)

    def log_prob(self, x):
        logs = jax.vmap(lambda m, c: _log_normal(x - m, c))(self.means, self.covariances)
        return logsumexp(logs + jnp.log(self.weights)) - jnp.log(jnp.sum(self.weights))

    def score(self, x):
        # By the shares of the components rather than by differentiation: a sixth faster in a simulation.
        away = x[None] - self.means
        logs = jax.vmap(_log_normal)(away, self.covariances) + jnp.log(self.weights)
        return jax.nn.softmax(logs) @ jax.vmap(_pull)(away, self.covariances)

    def push(self, scale: ArrayLike, covariance: ArrayLike, shift: ArrayLike = 0.0) -> "GaussianMixture":
        """The density of ``scale * x + shift + noise``, where the noise is Gaussian with `covariance`.

        Each of the three is a number, or has the shape of a mean or of a matrix; the result is exact.
        """
        push = jax.vmap(lambda m, c: _push(m, c, scale, covariance, shift))
        return GaussianMixture(self.weights, *push(self.means, self.covariances))

    def moments(self) -> Gaussian:
        """The Gaussian of the same mean and covariance matrix."""
        weights = self.weights / jnp.sum(self.weights)
        mean = weights @ self.means
        full = jax.vmap(lambda c: _full(c, mean.shape[0]))(self.covariances)
        spread = self.means - mean[None]
        return Gaussian(mean, jnp.einsum("k,kij->ij", weights, full) + (weights[None] * spread.T) @ spread)


def as_mixture(data: Any) -> GaussianMixture:
    """A Gaussian as a mixture of one; a mixture as it is.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(data, Gaussian):
        return GaussianMixture(jnp.ones(1, data.mean.dtype), data.mean[None], data.covariance[None])
    if not isinstance(data, GaussianMixture):
        raise TypeError(f"`data` must be a Gaussian or a mixture of Gaussians, got {type(data).__name__}.")
    return data


def standard_normal(dim: int) -> Gaussian:
    """The normal density of mean zero and unit covariance in `dim` dimensions."""
    return Gaussian(jnp.zeros(dim), 1.0)


def _check_covariance(covariance, shape, *, name="covariance", components=()):
    allowed = (components, components + shape, components + shape * 2)
    require(covariance.shape in allowed, name, f"have one of the shapes {allowed}", f"shape {covariance.shape}")
    if covariance.ndim < len(components) + 2:
        check_positive(covariance, name)
    else:
        smallest = library_of(covariance).linalg.eigvalsh(covariance)[..., 0]
        ensure(covariance, smallest > 0, name, "be positive definite", covariance)


def _log_normal(x, covariance):
    if covariance.ndim < 2:
        variance = jnp.broadcast_to(covariance, x.shape)
        return -0.5 * jnp.sum(x**2 / variance + jnp.log(2 * jnp.pi * variance))
    factor = jnp.linalg.cholesky(covariance)
    z = solve_triangular(factor, x, lower=True)
    log_volume = jnp.sum(jnp.log(jnp.diagonal(factor))) + 0.5 * x.shape[0] * jnp.log(2 * jnp.pi)
    return -0.5 * jnp.sum(z**2) - log_volume


def _pull(x, covariance):
    """The score of a centred Gaussian."""
    return -x / covariance if covariance.ndim < 2 else -cho_solve((jnp.linalg.cholesky(covariance), True), x)


def _colour(covariance, z):
    return jnp.sqrt(covariance) * z if covariance.ndim < 2 else jnp.linalg.cholesky(covariance) @ z


def _push(mean, covariance, scale, noise, shift):
    scale, noise = jnp.asarray(scale, mean.dtype), jnp.asarray(noise, mean.dtype)
    dim = mean.shape[0]
    if scale.ndim == 2:
        pushed = scale @ _full(covariance, dim) @ scale.T
        moved = scale @ mean
    else:
        pushed = covariance * (scale**2 if covariance.ndim < 2 or scale.ndim == 0 else jnp.outer(scale, scale))
        moved = scale * mean
    if max(pushed.ndim, noise.ndim) == 2:
        pushed, noise = _full(pushed, dim), _full(noise, dim)
    return moved + shift, pushed + noise


def _full(covariance, dim):
    return covariance if covariance.ndim == 2 else jnp.diag(jnp.broadcast_to(covariance, (dim,)))
