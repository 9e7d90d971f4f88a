r"""The posterior under a field that couples it to its reference, and the Legendre transform of its free energy."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float
from thermojax._check import check_positive, ensure, require
from thermojax.distributions import as_mixture, Gaussian, GaussianMixture
from thermojax.dynamics import AbstractNoising
from thermojax.estimators import Estimate, mean
from thermojax.generative.landscape._potential import check_noise, one_time


class Coupled(NamedTuple):
    """The posterior under a coupling to its reference; one entry for each field."""

    free_energy: Estimate
    """The free energy in nats."""
    squared_distance: Estimate
    """Mean squared distance from the reference: the derivative of the free energy by the field."""
    susceptibility: Estimate
    """Mean variance of the squared distance: minus the second derivative, never negative."""


class Legendre(NamedTuple):
    """The Legendre transform of the coupled free energy; one entry for each squared distance."""

    value: Estimate
    """The transform in nats: convex in the squared distance, with slope minus the field."""
    field: Estimate
    """The field that holds the posterior at this mean squared distance."""


def coupled_free_energy(
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    fields: ArrayLike,
    t: ArrayLike,
    *,
    samples: int = 10_000,
    key: Key,
) -> Coupled:
    r"""The free energy of the posterior under a field $\epsilon$ that couples it to its reference,
    $\phi(\epsilon, t) = -\bigl\langle\ln\int dx_0\,p_0(x_0)\,e^{-|x_t - \alpha x_0|^2/2v - \epsilon|x_0 - x^*|^2}\bigr\rangle$.

    The integral over $x_0$ is exact. A positive field attracts; a negative one repels, and must leave the integral finite:
    $2\epsilon > -\alpha^2/v - 1/C_{\max}$ with the largest variance of any component.

    Args:
        noising: The noising process.
        data: The density of the data.
        fields: Fields, shape ``(field,)``.
        t: A time at which the process has noise.
        samples: Number of references, each with its own noise.
        key: Random key.
    """
    mixture, t = as_mixture(data), check_noise(noising, one_time(t), "t")
    fields = as_float(fields)
    require(fields.ndim == 1, "fields", "be a vector", f"shape {fields.shape}")
    require(samples >= 2, "samples", "be at least 2", samples)
    fields = _check_fields(fields, _lowest_field(noising, mixture, t))
    return Coupled(*(jax.vmap(mean)(a) for a in _coupled(noising, mixture, fields, t, samples, key)))


def legendre_potential(
    noising: AbstractNoising, data: Gaussian | GaussianMixture, qs: ArrayLike, t: ArrayLike, *, samples: int = 10_000, key: Key
) -> Legendre:
    r"""The Legendre transform $V_L(q) = \max_\epsilon[\phi(\epsilon) - \epsilon q]$ of the coupled free energy.

    $\phi$ is concave, so that this is a maximum (not the minimum that is sometimes printed) and $V_L$ is convex with slope $-\epsilon$.
    Where the Franz-Parisi potential $V$ is not convex the field jumps over the barrier, and $V_L$ sees only the convex envelope.

    What holds at any dimension, by the convexity of the logarithm of an integral: $V_L(q) \le \langle V\rangle_\rho - S(\rho)$ for every
    density $\rho$ of squared distances with mean $q$ and entropy $S$, so that $V_L(q)$ is at most the average of $V$ over any interval
    around $q$ less the logarithm of its length. For large `dim` such logarithms are negligible: at fixed $q$ per degree of freedom
    $V_L/d$ lies on or below the convex envelope of $V/d$, and on it where fluctuations between samples are negligible.

    Args:
        noising: The noising process.
        data: The density of the data.
        qs: Squared distances, positive, shape ``(distance,)``.
        t: A time at which the process has noise.
        samples: Number of references, each with its own noise; the fields of all distances share them.
        key: Random key.
    """
    mixture, qs, t = prepare(noising, data, qs, t)
    require(samples >= 2, "samples", "be at least 2", samples)
    values, distances, slopes, fields = _legendre(noising, mixture, qs, t, samples, key)
    distance = jax.vmap(mean)(distances)
    return Legendre(jax.vmap(mean)(values), distance._replace(value=fields, stderr=distance.stderr / slopes))


@eqx.filter_jit
def _coupled(noising, mixture, fields, t, samples, key):
    samples, components = draw(mixture, samples, key), spectrum(mixture)
    return lax.map(lambda field: _cumulants(noising, components, t, field, *samples), fields)


@eqx.filter_jit
def _legendre(noising, mixture, qs, t, samples, key):
    samples, components = draw(mixture, samples, key), spectrum(mixture)
    lowest = _lowest_field(noising, mixture, t)

    def solve(q):
        # The mean distance falls from infinity to zero as the field rises from its lowest value: bisect its logarithm above that.
        def halve(_, bracket):
            low, high = bracket
            middle = 0.5 * (low + high)
            _, distances = _distances(noising, components, t, lowest + jnp.exp(middle), *samples)
            near = jnp.mean(distances) < q
            return jnp.where(near, low, middle), jnp.where(near, middle, high)

        # The field that alone would hold a free particle at this distance, and e^20 in either direction.
        guess = jnp.log(0.5 * mixture.means.shape[1] / q)
        low, high = lax.fori_loop(0, 48, halve, (guess - 20.0, guess + 20.0))
        field = lowest + jnp.exp(0.5 * (low + high))
        frees, distances, variances = _cumulants(noising, components, t, field, *samples)
        return frees - field * q, distances, jnp.mean(variances), field

    return lax.map(solve, qs)


def _coupled_potential(noising, components, t, field):
    """The coupled free energy of one sample, with the mean of |z|^2 in the place of its value."""
    strength = noising.alpha(t) ** 2 / noising.variance(t)

    def free(reference, z):
        seen = seen_from(components, reference, jnp.sqrt(strength) * z)
        logs = jax.vmap(coupled_log, in_axes=(0, 0, 0, None))(*seen, strength + 2.0 * field)
        return 0.5 * z.shape[0] - logsumexp(logs + components.log_weights)

    return free


def _distances(noising, components, t, field, references, zs):
    """Free energy and mean squared distance of every sample."""
    free = lambda f: jax.vmap(_coupled_potential(noising, components, t, f))(references, zs)
    return jax.jvp(free, (field,), (jnp.ones_like(field),))


def _cumulants(noising, components, t, field, references, zs):
    """The same, and the variance of the squared distance."""
    once = lambda f: _distances(noising, components, t, f, references, zs)
    (frees, distances), (_, bends) = jax.jvp(once, (field,), (jnp.ones_like(field),))
    return frees, distances, -bends


def coupled_log(offset: Array, pull: Array, variance: Array, precision: Array) -> Array:
    r"""$\ln\int N(y; \delta, \lambda)\,e^{h\cdot y - A|y|^2/2}\,dy$ for one component; the precision $A$ may be complex."""
    offset, pull, variance = (a.astype(precision.dtype) for a in (offset, pull, variance))
    growth = 1.0 + precision * variance
    exponent = (2.0 * pull * offset + variance * pull**2 - precision * offset**2) / growth
    return 0.5 * jnp.sum(exponent - jnp.log(growth))


class Components(NamedTuple):
    """A mixture, each component in the axes of its own covariance."""

    log_weights: Float[Array, " component"]
    """Normalised."""
    means: Float[Array, "component dim"]
    """Not turned."""
    variances: Float[Array, "component dim"]
    """Along the axes."""
    axes: Float[Array, "component dim dim"] | None
    """The axes as columns; those of the coordinates if none."""


def spectrum(mixture):
    weights, covariances, axes = jnp.log(mixture.weights / jnp.sum(mixture.weights)), mixture.covariances, None
    if covariances.ndim == 3:
        covariances, axes = jnp.linalg.eigh(covariances)
    elif covariances.ndim == 1:
        covariances = jnp.broadcast_to(covariances[:, None], mixture.means.shape)
    return Components(weights, mixture.means, covariances, axes)


def seen_from(components, reference, pull):
    """Offsets from the reference, pulls and variances of every component, in its axes."""
    offsets = components.means - reference[None]
    pulls = jnp.broadcast_to(pull, offsets.shape)
    if components.axes is not None:
        offsets, pulls = (jnp.einsum("kij,ki->kj", components.axes, a) for a in (offsets, pulls))
    return offsets, pulls, components.variances


def _lowest_field(noising, mixture, t):
    """The field at and below which the coupled integral diverges."""
    covariances = mixture.covariances
    broadest = jnp.max(jnp.linalg.eigvalsh(covariances) if covariances.ndim == 3 else covariances)
    return -0.5 * (noising.alpha(t) ** 2 / noising.variance(t) + 1.0 / broadest)


def draw(mixture, samples, key):
    reference_key, noise_key = jr.split(key)
    references = mixture.sample(samples, key=reference_key)
    return references, jr.normal(noise_key, references.shape, references.dtype)


def _check_fields(fields, lowest):
    rule = "leave the integral over the data finite: 2 field > -alpha^2 / v - 1 / (largest variance of a component)"
    return ensure(fields, fields > lowest, "fields", rule, fields)


def prepare(noising: AbstractNoising, data: Any, qs: ArrayLike, t: ArrayLike):
    qs = as_float(qs)
    require(qs.ndim == 1, "qs", "be a vector of squared distances", f"shape {qs.shape}")
    return as_mixture(data), check_positive(qs, "qs"), check_noise(noising, one_time(t), "t")
