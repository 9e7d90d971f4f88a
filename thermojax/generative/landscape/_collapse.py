r"""Collapse: the time at which generation from finitely many points decides for one of them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, Scalar
from thermojax._check import ensure, require
from thermojax.distributions import as_mixture, Gaussian, GaussianMixture
from thermojax.dynamics import AbstractNoising
from thermojax.estimators import Estimate, mean
from thermojax.generative.landscape._potential import check_noise, one_time
from thermojax.generative.landscape._speciation import latest_crossing
from thermojax.phase import check_configurations

# Samples whose posteriors are held at once; halvings that take a Monte Carlo time far below its error.
BATCH, HALVINGS = 64, 32


def mutual_information(
    noising: AbstractNoising, data: Gaussian | GaussianMixture, t: ArrayLike, *, samples: int = 10_000, key: Key
) -> Estimate:
    r"""What $x_t$ tells about $x_0$: $I = \langle\ln p(x_t|x_0)/p_t(x_t)\rangle$ in nats, by Monte Carlo.

    Args:
        noising: The noising process.
        data: The density of the data.
        t: A time at which the process has noise.
        samples: Number of data, each with its own noise.
        key: Random key.
    """
    t = check_noise(noising, one_time(t), "t")
    require(samples >= 2, "samples", "be at least 2", samples)
    return mean(_informations(noising, as_mixture(data), t, samples, key))


def gaussian_information(noising: AbstractNoising, data: Gaussian | GaussianMixture, t: ArrayLike) -> Scalar:
    r"""The mutual information of Gaussian data, $\tfrac12\ln\det(1 + \tfrac{\alpha^2}{v}C)$, in nats."""
    _check_gaussian(data)
    return _gaussian_information(noising, data, one_time(t))


def collapse_time_of_gaussian(
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    n: ArrayLike,
    *,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
) -> Scalar:
    r"""The time at which `n` points of Gaussian data take over the posterior, $I(x_0; x_t) = \ln n$.

    For the Ornstein-Uhlenbeck process at unit temperature and isotropic data it is $\tfrac12\ln[1 + \sigma^2/(n^{2/d} - 1)]$.

    Args:
        noising: The noising process.
        data: The density the points are drawn from, a Gaussian.
        n: Number of points, above one.
        start: A time before the collapse time, in the time of the noising.
        horizon: A time after it.

    Raises:
        TypeError: if `data` is a mixture; `collapse_time` takes those.
        ValueError: if the two times do not bracket the collapse.
    """
    _check_gaussian(data)
    return _bracketed(*_gaussian_collapse(noising, data, _log_number(n), *_interval(start, horizon)))


def collapse_time(
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    n: ArrayLike,
    *,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    samples: int = 10_000,
    key: Key,
) -> Estimate:
    r"""The time at which `n` points of a mixture take over the posterior, $I(x_0; x_t) = \ln n$, by Monte Carlo.

    All times share the same data and normals. The standard error is that of the information divided by its slope.

    Args:
        noising: The noising process.
        data: The density the points are drawn from.
        n: Number of points, above one.
        start: A time before the collapse time, in the time of the noising.
        horizon: A time after it.
        samples: Number of data, each with its own noise.
        key: Random key.

    Raises:
        ValueError: if the two times do not bracket the collapse.

    Reference:
        G. Biroli, T. Bonnaire, V. de Bortoli, M. Mézard, arXiv:2402.18491 (2024).
    """
    require(samples >= 2, "samples", "be at least 2", samples)
    interval = _interval(start, horizon)
    time, good, surplus, slope = _population_collapse(noising, as_mixture(data), _log_number(n), *interval, samples, key)
    return _as_time(_bracketed(time, good), surplus, slope)


def collapse_time_of_points(
    noising: AbstractNoising, points: ArrayLike, *, start: ArrayLike = 0.0, horizon: ArrayLike = 1.0, samples: int = 2_000, key: Key
) -> Estimate:
    r"""The time at which the posterior over given points condenses on the one that was noised, by Monte Carlo:
    $\langle\ln w_a\rangle = \langle\ln\sum_{b \ne a} w_b\rangle$ with $w_b = e^{-|x_t - \alpha x_b|^2/2v}$ and $x_t$ noised from $x_a$.

    All times share the same choices and normals. The standard error is the spread over choices and noise divided by the slope: it is that
    for these points, not for new ones. The mean of $\ln w_a - \ln\sum_{b \ne a} w_b$ over many sets of points is at least
    $I(x_0; x_t) - \ln(n - 1)$, by the concavity of the logarithm, so that points tend to collapse before `collapse_time` would say in the
    course of generation; the two agree where the sum over the other points fluctuates little, for large `dim`.

    Args:
        noising: The noising process.
        points: The points, at least two and all different, shape ``(sample, dim)``.
        start: A time before the collapse time, in the time of the noising.
        horizon: A time after it.
        samples: Number of noised points; each point is chosen equally often, up to one.
        key: Random key.

    Raises:
        ValueError: if the two times do not bracket the collapse.

    Reference:
        G. Biroli, T. Bonnaire, V. de Bortoli, M. Mézard, arXiv:2402.18491 (2024).
    """
    points = as_float(check_configurations(points, "points"))
    require(points.shape[0] >= 2, "points", "be at least two", points.shape[0])
    require(samples >= 2, "samples", "be at least 2", samples)
    time, good, surplus, slope = _points_collapse(noising, points, *_interval(start, horizon), samples, key)
    return _as_time(_bracketed(time, good), surplus, slope)


@eqx.filter_jit
def _informations(noising, mixture, t, samples, key):
    return _noised_informations(noising, mixture, t, *_draw(mixture, samples, key))


@eqx.filter_jit
def _gaussian_information(noising, data, t):
    # The entropy of the noised data less that of the noise.
    dim = data.mean.shape[0]
    return noising.marginal(data, t).entropy() - 0.5 * dim * (1.0 + jnp.log(2 * jnp.pi * noising.variance(t)))


@eqx.filter_jit
def _gaussian_collapse(noising, data, log_n, start, horizon):
    time, good, _ = _solve(lambda t: (_gaussian_information(noising, data, t) - log_n)[None], start, horizon)
    return time, good


@eqx.filter_jit
def _population_collapse(noising, mixture, log_n, start, horizon, samples, key):
    drawn = _draw(mixture, samples, key)
    surplus = lambda t: _noised_informations(noising, mixture, t, *drawn) - log_n
    time, good, slope = _solve(surplus, start, horizon, halvings=HALVINGS)
    return time, good, surplus(time), slope


@eqx.filter_jit
def _points_collapse(noising, points, start, horizon, samples, key):
    n, dim = points.shape
    choice_key, noise_key = jr.split(key)
    picks = jr.permutation(choice_key, samples) % n
    zs = jr.normal(noise_key, (samples, dim), points.dtype)

    def surplus(t):
        # Without noise the ratio is large, but finite: coordinates that are equal stay so.
        spread = jnp.sqrt(jnp.maximum(noising.variance(t), jnp.finfo(points.dtype).tiny))
        scale = noising.alpha(t) / spread

        def one(inputs):
            pick, z = inputs
            # Differences first: their digits matter at early times.
            missed = z[None] + scale * (points[pick][None] - points)
            logs = jnp.where(jnp.arange(n) == pick, -jnp.inf, -0.5 * jnp.sum(missed**2, axis=1))
            return -0.5 * jnp.sum(z**2) - logsumexp(logs)

        return lax.map(one, (picks, zs), batch_size=BATCH)

    time, good, slope = _solve(surplus, start, horizon, halvings=HALVINGS)
    return time, good, surplus(time), slope


def _solve(surplus, start, horizon, **how):
    """The time at which the mean of ``surplus(t)`` falls through zero, whether the interval brackets it, and the slope there."""
    crossing = latest_crossing(lambda t, carry: (-jnp.mean(surplus(t)), carry), (), start, horizon, 2, **how)
    time = jnp.where(crossing.found, crossing.time, horizon)
    _, slope = jax.jvp(lambda t: jnp.mean(surplus(t)), (time,), (jnp.ones_like(time),))
    return time, crossing.found & crossing.finite, slope


def _noised_informations(noising, mixture, t, x0s, zs):
    density, spread = noising.marginal(mixture, t), jnp.sqrt(noising.variance(t))

    def one(x0, z):
        given = -0.5 * jnp.sum(z**2) - 0.5 * z.shape[0] * jnp.log(2 * jnp.pi * spread**2)
        return given - density.log_prob(noising.alpha(t) * x0 + spread * z)

    return jax.vmap(one)(x0s, zs)


def _draw(mixture, samples, key):
    data_key, noise_key = jr.split(key)
    x0s = mixture.sample(samples, key=data_key)
    return x0s, jr.normal(noise_key, x0s.shape, x0s.dtype)


def _as_time(time: Float[Any, ""], surplus, slope) -> Estimate:
    found = mean(surplus)
    return found._replace(value=time, stderr=found.stderr / jnp.abs(slope))


def _bracketed(time, good):
    return ensure(time, good, "horizon", "be after the collapse, and `start` before it", "an interval without it")


def _check_gaussian(data):
    if not isinstance(data, Gaussian):
        raise TypeError(f"`data` must be a Gaussian (mixtures take Monte Carlo), got {type(data).__name__}.")


def _log_number(n):
    n = as_float(n)
    require(n.ndim == 0, "n", "be one number", f"shape {n.shape}")
    return jnp.log(ensure(n, n > 1, "n", "be above one", n))


def _interval(start, horizon):
    start, horizon = one_time(start, "start"), one_time(horizon, "horizon")
    return start, ensure(horizon, horizon > start, "horizon", "be later than `start`", horizon)
