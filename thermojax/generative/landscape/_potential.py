r"""The potential that drives generation, its free energy, and the free energy of the posterior."""

from collections.abc import Callable
from typing import Any, cast, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, Scalar
from thermojax._check import ensure, require
from thermojax.distributions import as_mixture, Gaussian, GaussianMixture
from thermojax.dynamics import AbstractNoising, Score
from thermojax.estimators import Estimate, mean
from thermojax.generative._scores import MixtureScore
from thermojax.phase import check_configurations

# Trapezoidal nodes against a normal density: beyond this many standard deviations nothing is left in float64.
REACH = 8.5


class Points(eqx.Module):
    r"""Noised points: the density $p_t(x) = \tfrac1n\sum_a N(x; \alpha x_a, v)$ of the empirical measure, and its score.

    The score is the one that a model which memorises its training data would learn. Call it as ``score(t, x)`` wherever a score is
    wanted; the noise must not vanish at `t`.
    """

    noising: AbstractNoising
    """The process that noises the points."""
    points: Float[Array, "sample dim"] = eqx.field(converter=as_float)
    """The points, each of weight ``1 / sample``."""

    def __check_init__(self):
        require(self.points.ndim == 2 and self.points.size > 0, "points", "have shape (sample, dim)", f"shape {self.points.shape}")

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        r"""The score, $(\alpha\langle x_0\rangle - x)/v$ with the mean over the posterior."""
        denoised = self.posterior(t, x) @ self.points
        return (self.noising.alpha(t) * denoised - x) / self.noising.variance(t)

    def posterior(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " sample"]:
        """The probability of each point to be the one that was noised to `x`."""
        return jax.nn.softmax(self._logs(t, x))

    def log_prob(self, t: Scalar, x: Float[Array, " dim"]) -> Scalar:
        """The logarithm of the density of `x` at time `t`."""
        n, dim = self.points.shape
        return logsumexp(self._logs(t, x)) - jnp.log(n) - 0.5 * dim * jnp.log(2 * jnp.pi * self.noising.variance(t))

    def sample(self, n: int, t: Scalar, *, key: Key) -> Float[Array, "n dim"]:
        """Draw `n` configurations at time `t`."""
        choice_key, noise_key = jr.split(key)
        picks = jr.randint(choice_key, (n,), 0, self.points.shape[0])
        zs = jr.normal(noise_key, (n, self.points.shape[1]), self.points.dtype)
        return self.noising.alpha(t) * self.points[picks] + jnp.sqrt(self.noising.variance(t)) * zs

    def _logs(self, t, x):
        missed = x[None] - self.noising.alpha(t) * self.points
        return -0.5 * jnp.sum(missed**2, axis=1) / self.noising.variance(t)


class FreeEnergy(NamedTuple):
    """Energy, entropy and free energy of the reverse dynamics at one time: an `Estimate` each, or a number where quadrature gave it."""

    energy: Estimate | Scalar
    r"""$\langle U\rangle$ over the density at that time."""
    entropy: Estimate | Scalar
    """Differential entropy of that density, in nats."""
    free_energy: Estimate | Scalar
    r"""$\langle U\rangle - \tfrac12 g^2 S$."""


def reverse_potential(noising: AbstractNoising, data: Any, t: ArrayLike, x: ArrayLike) -> Scalar:
    r"""The potential of the reverse dynamics, $U = -\tfrac12 r|x|^2 - g^2\ln p_t(x)$: their drift is $-\nabla U$.

    Args:
        noising: The noising process, $dx = -r\,x\,dt + g\,dW$.
        data: A Gaussian, a mixture, points of shape ``(sample, dim)``, `Points`, or any log-density ``log_prob(t, x)``.
        t: Time of the noising.
        x: One configuration, shape ``(dim,)``.

    Returns:
        The energy, in the units of the noising ($g^2/2$ is the temperature).
    """
    t, x = one_time(t), _one_configuration(x)
    return energy(noising, log_density_of(noising, data)(t, x), t, x)


def posterior_free_energy(noising: AbstractNoising, data: Any, t: ArrayLike, x: ArrayLike) -> Scalar:
    r"""The free energy of denoising, $F = -\ln\int dx_0\,p_0(x_0)\,e^{-|x - \alpha x_0|^2/2v} = -\ln p_t(x) - \tfrac d2\ln 2\pi v$.

    Args:
        noising: The noising process.
        data: As for `reverse_potential`.
        t: A time at which the process has noise.
        x: One configuration, shape ``(dim,)``.

    Returns:
        The free energy in nats.
    """
    t, x = one_time(t), _one_configuration(x)
    t = check_noise(noising, t, "t")
    return -log_density_of(noising, data)(t, x) - 0.5 * x.shape[0] * jnp.log(2 * jnp.pi * noising.variance(t))


def reverse_free_energy(noising: AbstractNoising, data: Any, t: ArrayLike, *, samples: int = 10_000, key: Key) -> FreeEnergy:
    r"""The free energy of the reverse dynamics in the density of time `t`, $\langle U\rangle - \tfrac12 g^2 S$, by Monte Carlo.

    Args:
        noising: The noising process.
        data: A Gaussian, a mixture, points of shape ``(sample, dim)``, or `Points`.
        t: Time of the noising.
        samples: Number of configurations drawn.
        key: Random key.

    Raises:
        TypeError: if `data` cannot be sampled.
    """
    require(samples >= 2, "samples", "be at least 2", samples)
    data = density_of(noising, data)
    energies, logs, temperature = _energies(noising, data, one_time(t), samples, key)
    return FreeEnergy(mean(energies), mean(-logs), mean(energies + temperature * logs))


def reverse_free_energy_quadrature(
    noising: AbstractNoising, data: Gaussian | GaussianMixture, t: ArrayLike, *, nodes: int = 2001
) -> FreeEnergy:
    """The numbers of `reverse_free_energy` for data of one dimension, by the trapezoidal rule with `nodes` nodes for each component."""
    mixture = as_mixture(data)
    require(mixture.means.shape[1] == 1, "data", "have one dimension", mixture.means.shape[1])
    require(nodes >= 3, "nodes", "be at least 3", nodes)
    return _free_energy_quadrature(noising, mixture, one_time(t), nodes)


@eqx.filter_jit
def _energies(noising, data, t, samples, key):
    if isinstance(data, Points):
        xs, log_prob = data.sample(samples, t, key=key), lambda x: data.log_prob(t, x)
    else:
        density = noising.marginal(data, t)
        xs, log_prob = density.sample(samples, key=key), density.log_prob
    logs = jax.vmap(log_prob)(xs)
    return jax.vmap(lambda log, x: energy(noising, log, t, x))(logs, xs), logs, 0.5 * noising.noise(t) ** 2


@eqx.filter_jit
def _free_energy_quadrature(noising, mixture, t, nodes):
    density = noising.marginal(mixture, t)
    zs, masses = normal_nodes(nodes, mixture.means.dtype)
    spreads = jnp.sqrt(density.covariances.reshape(-1))
    xs = density.means + jnp.outer(spreads, zs)
    logs = jax.vmap(jax.vmap(lambda x: density.log_prob(x[None])))(xs)
    energies = jax.vmap(jax.vmap(lambda log, x: energy(noising, log, t, x[None])))(logs, xs)
    shares = jnp.outer(mixture.weights / jnp.sum(mixture.weights), masses)
    average, entropy = jnp.sum(shares * energies), -jnp.sum(shares * logs)
    return FreeEnergy(average, entropy, average - 0.5 * noising.noise(t) ** 2 * entropy)


def energy(noising: AbstractNoising, log_prob: Scalar, t: Scalar, x: Float[Array, " dim"]) -> Scalar:
    """The reverse potential where the log-density is known."""
    return -0.5 * rate_of(noising, t) * jnp.sum(x**2) - noising.noise(t) ** 2 * log_prob


def rate_of(noising: AbstractNoising, t: Scalar) -> Scalar:
    """The rate $r$ at which the noising shrinks configurations."""
    return -noising.drift(t, jnp.ones((1,), t.dtype))[0]


def normal_nodes(nodes: int, dtype: Any) -> tuple[Float[Array, " node"], Float[Array, " node"]]:
    """Nodes and weights of the trapezoidal rule against a standard normal: exponentially accurate for smooth functions."""
    zs = jnp.linspace(-REACH, REACH, nodes, dtype=dtype)
    masses = jnp.exp(-0.5 * zs**2)
    return zs, masses / jnp.sum(masses)


def density_of(noising: AbstractNoising, data: Any) -> Gaussian | GaussianMixture | Points:
    """Data of known density; an array of points as `Points`."""
    if isinstance(data, Gaussian | GaussianMixture | Points):
        return data
    if eqx.is_array_like(data) or isinstance(data, list | tuple):
        return Points(noising, check_configurations(jnp.asarray(data), "data"))
    raise TypeError(f"`data` must be a Gaussian, a mixture of Gaussians or points of shape (sample, dim), got {type(data).__name__}.")


def log_density_of(noising: AbstractNoising, data: Any) -> Callable[[Scalar, Array], Scalar]:
    """The log-density of noised data, ``log_prob(t, x)``."""
    if callable(data) and not isinstance(data, Points):
        return cast(Callable[[Scalar, Array], Scalar], data)
    density = density_of(noising, data)
    if isinstance(density, Points):
        return density.log_prob
    return lambda t, x: noising.marginal(density, t).log_prob(x)


def score_of(noising: AbstractNoising, data: Any) -> Score:
    """The score of noised data, ``score(t, x)``; a callable is taken to be one."""
    if callable(data):
        return cast(Score, data)
    density = density_of(noising, data)
    return density if isinstance(density, Points) else MixtureScore(noising, density)


def one_time(t: ArrayLike, name: str = "t") -> Scalar:
    """Return `t` as one number."""
    require(jnp.ndim(t) == 0, name, "be one time", f"shape {jnp.shape(t)}")
    return as_float(t)


def check_noise(noising: AbstractNoising, t: Scalar, name: str) -> Scalar:
    """Return `t` if the process has noise at that time."""
    return ensure(t, noising.variance(t) > 0, name, "be a time at which the process has noise", t)


def _one_configuration(x):
    x = as_float(x)
    require(x.ndim == 1, "x", "have shape (dim,)", f"shape {x.shape}")
    return x
