r"""Correlated samples and resampling: what a time series is worth, and error bars without a formula."""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, PRNGKeyArray as Key

from thermojax._array import Scalar
from thermojax._check import ensure, library_of, require
from thermojax.estimators._estimate import as_floating, Estimate

# Replicates that are computed side by side hold at most about this many samples.
_CROWD = 1_000_000


def statistical_inefficiency(series: ArrayLike) -> Scalar:
    r"""How many successive samples of a stationary time series are worth one independent sample, $g = 1 + 2\sum_{t>0}\rho_t \geq 1$.

    The autocorrelations $\rho_t$ are summed in pairs while these stay positive, and made to decrease (Geyer's initial monotone sequence,
    from blackjax). For an autoregression $x_{k+1} = ax_k + \xi$ it is $(1 + a)/(1 - a)$. Give the result to `jarzynski`, `bar` and the
    others as `inefficiency`. The series should be of what is averaged; for an exponential average that of $W$ is the safer choice, since
    for Gaussian processes every function of $W$ decorrelates at least as fast.

    Args:
        series: One series, shape ``(sample,)``, or several of the same quantity, shape ``(chain, sample)``; with several, chains that
            disagree in their mean raise the number.

    Returns:
        $g$, between 1 and the number of samples; that number for a series that never moves.

    Raises:
        ValueError: if the series is shorter than four samples or holds a number that is not finite.

    Reference:
        C. J. Geyer, Statist. Sci. 7, 473 (1992); J. D. Chodera et al., J. Chem. Theory Comput. 3, 26 (2007).
    """
    series = as_floating(series, "series")
    rule = "be a vector of at least four samples, or several of them with shape (chain, sample)"
    require(series.ndim in (1, 2) and series.shape[-1] >= 4, "series", rule, f"shape {series.shape}")
    series = ensure(series, library_of(series).isfinite(series), "series", "hold finite samples only", series)
    return _inefficiency(jnp.atleast_2d(series))


@jax.jit
def _inefficiency(chains):
    from blackjax.diagnostics import effective_sample_size

    # Scaled, so that squares neither overflow nor vanish.
    centred = chains - jnp.mean(chains)
    size = jnp.max(jnp.abs(centred))
    scaled = centred / jnp.where(size > 0, size, 1.0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ess = effective_sample_size(scaled)
    moved = jnp.any(chains != chains[:1, :1])
    return jnp.where(moved, jnp.clip(chains.size / ess, 1.0, chains.size), chains.size).astype(chains.dtype)


def bootstrap(estimator: Callable[..., Any], *samples: ArrayLike, resamples: int = 200, block: int = 1, key: Key) -> Estimate:
    r"""The estimate of `estimator`, with the error bar from resampling: for estimators without a formula, or to check one.

    Each sample set is drawn anew from itself, with replacement and independently of the others, and the spread of the estimates over
    `resamples` such draws is the standard error; it is itself uncertain by one part in $\sqrt{2\,\text{resamples}}$. The bootstrap sees
    only the samples that are there: it fails with the formula where rare samples are missing, so the verdict is the estimator's own.

    Args:
        estimator: Takes the sample sets; returns an `Estimate` or one number. One that JAX can trace is compiled and runs side by side.
        *samples: Sample sets; each is resampled along its first axis.
        resamples: How many times.
        block: Length of the blocks of successive samples that are kept together, for time series: several correlation times.
        key: Random key.

    Reference:
        B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993); moving blocks: H. R. Künsch, Ann. Statist. 17, 1217 (1989).
    """
    require(len(samples) > 0, "samples", "hold at least one sample set", "none")
    require(resamples >= 2, "resamples", "be at least two", resamples)
    sets = tuple(as_floating(s, "samples") for s in samples)
    shapes = [s.shape for s in sets]
    require(all(len(s) >= 1 and s[0] >= 2 for s in shapes), "samples", "have at least two samples each", f"shapes {shapes}")
    shortest = min(s[0] for s in shapes)
    require(1 <= block <= shortest // 2, "block", "be between one and half the number of samples", block)
    full = _as_estimate(estimator(*sets), shortest)
    draw = lambda k: _value(estimator(*_redraw(k, sets, block)))
    keys = jr.split(key, resamples)
    try:
        batch = max(1, min(resamples, _CROWD // sum(s.size for s in sets)))
        values = eqx.filter_jit(ft.partial(lax.map, draw, batch_size=batch))(keys)
    except jax.errors.JAXTypeError:
        # The estimator leaves JAX: one draw after another.
        values = jnp.stack([jnp.asarray(draw(k)) for k in keys])
    finite = jnp.isfinite(values)
    return full._replace(stderr=jnp.std(values, axis=0, ddof=1), trustworthy=full.trustworthy & jnp.all(finite, axis=0))


def _redraw(key, sets, block):
    def one(key, samples):
        n = samples.shape[0]
        starts = jr.randint(key, (-(-n // block), 1), 0, n - block + 1)
        return samples[(starts + jnp.arange(block)[None]).reshape(-1)[:n]]

    return [one(k, s) for k, s in zip(jr.split(key, len(sets)), sets, strict=True)]


def _value(found: Any) -> Array:
    return found.value if isinstance(found, Estimate) else jnp.asarray(found)


def _as_estimate(found: Any, n: int) -> Estimate:
    if isinstance(found, Estimate):
        return found
    value = jnp.asarray(found).astype(float)
    count = jnp.full_like(value, n)
    return Estimate(value, jnp.full_like(value, jnp.nan), count, jnp.isfinite(value), count, jnp.zeros_like(value))
