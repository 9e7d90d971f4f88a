r"""Estimators: from samples of work and of path log-ratios to numbers with error bars and a verdict on their health.

An exponential average is dominated by rare samples; when these are missed, its spread is missed with it and the error bar looks
small. Each estimate therefore says how many samples carry it (`Estimate.ess`), how heavy the tail of the weights is
(`Estimate.tail_index`), and whether it may be believed (`Estimate.trustworthy`). Samples that are not finite are left out and
counted (`Estimate.excluded`); an estimate that had any is not trustworthy. Energies and $\beta$ are in units with $k_B = 1$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive, ensure, require

# Below this many effective samples the standard error itself is a guess.
MIN_ESS = 100.0
# Beyond this Pareto index the central limit theorem sets in too late to help (Vehtari et al., JMLR 25, 72 (2024)).
MAX_TAIL_INDEX = 0.7


class Estimate(NamedTuple):
    """A Monte Carlo estimate."""

    value: Scalar
    """The estimate."""
    stderr: Scalar
    """One standard error, from the spread of the samples."""
    ess: Scalar
    """Effective number of samples behind the estimate, between 1 and the sample size."""
    trustworthy: Array
    """Whether value and error bar may be believed."""
    samples: Array
    """Samples used."""
    excluded: Array
    """Samples left out because they are not finite."""
    tail_index: Scalar | None = None
    r"""Pareto index of the largest weights of an exponential average: their moments exist up to order 1/index, so that the variance is
    infinite from 1/2 on. None for plain means."""


def mean(values: Float[Array, " sample"]) -> Estimate:
    """The mean of independent samples."""
    return _mean(*_finite(values, "values"))


def exponential_mean(ratios: Float[Array, " sample"]) -> Estimate:
    r"""The exponential average $\langle e^{-\ell}\rangle$ of independent samples: one for the log-ratio $\ell$ of two path measures.

    The integral fluctuation theorem if $\ell$ is the total entropy production; $Z_\tau/Z_0$ if it is the reduced work.

    Args:
        ratios: Samples of $\ell$, dimensionless.
    """
    log_mean, relative, ess, count, excluded, index = _exponential(ratios, "ratios")
    value = jnp.exp(log_mean)
    return Estimate(value, value * relative, ess, _healthy(ess, index, excluded), count, excluded, index)


def jarzynski(work: Float[Array, " sample"], *, beta: ArrayLike) -> Estimate:
    r"""Free-energy difference from work values, $\Delta F = -\beta^{-1}\ln\langle e^{-\beta W}\rangle$.

    The standard error is first order in the fluctuations of the weights. Its bias, of the order of $1/(2\beta\,\mathrm{ess})$, is positive.

    Args:
        work: Work of independent paths that start in equilibrium.
        beta: Inverse temperature of the (single, constant) bath.

    Raises:
        ValueError: if `beta` is not one positive number; a changing bath needs `exponential_mean` of the reduced work.

    Reference:
        C. Jarzynski, Phys. Rev. Lett. 78, 2690 (1997), eq. (2b).
    """
    beta = _one_beta(beta)
    log_mean, relative, ess, count, excluded, index = _exponential(beta * work, "work")
    return Estimate(-log_mean / beta, relative / beta, ess, _healthy(ess, index, excluded), count, excluded, index)


def bar(forward: Float[Array, " n"], backward: Float[Array, " m"], *, beta: ArrayLike) -> Estimate:
    r"""Free-energy difference from the work of a protocol and of its reverse: Bennett's acceptance ratio.

    Solves $\sum_i f(M + \beta(W_i - \Delta F)) = \sum_j f(-M + \beta(\tilde W_j + \Delta F))$ with
    $f(u) = 1/(1 + e^u)$ and $M = \ln(n/m)$, the estimate of least variance. `ess` is that of the side that overlaps less.

    Args:
        forward: Work of independent paths that start in equilibrium at the first control.
        backward: Work of independent paths under the reversed protocol, from equilibrium at the last control.
        beta: Inverse temperature, one number.

    Raises:
        ValueError: if `beta` is not one positive number, or a side has no finite sample.

    Reference:
        C. H. Bennett, J. Comput. Phys. 22, 245 (1976), eqs. (12); the error bar: M. R. Shirts et al., Phys. Rev. Lett. 91, 140601 (2003).
    """
    beta = _one_beta(beta)
    return _bar(*_finite(beta * forward, "forward"), *_finite(beta * backward, "backward"), beta)


@jax.jit
def tail_index(log_weights: Float[Array, " sample"]) -> Scalar:
    r"""Pareto index of the largest weights $e^{\text{log_weights}}$, by Zhang and Stephens' fit to the top of the sample.

    Reference:
        J. Zhang, M. A. Stephens, Technometrics 51, 316 (2009); A. Vehtari et al., JMLR 25, 72 (2024), sec. 2.
    """
    n = log_weights.shape[0]
    size = int(min(n // 5, 3 * n**0.5))
    if size < 5:
        return jnp.full((), jnp.inf, log_weights.dtype)
    top, _ = lax.top_k(log_weights, size + 1)
    weights = jnp.exp(top - top[0])
    excesses = (weights[:-1] - weights[-1])[::-1]
    largest = jnp.maximum(excesses[-1], jnp.finfo(excesses.dtype).tiny)
    quarter = jnp.maximum(excesses[(size + 2) // 4 - 1], jnp.finfo(excesses.dtype).eps * largest)
    # A grid of trial scales, weighted by their profile likelihood under a weak prior.
    grid = 30 + int(size**0.5)
    thetas = 1 / largest + (1 - jnp.sqrt(grid / (jnp.arange(1, grid + 1, dtype=excesses.dtype) - 0.5))) / (3 * quarter)
    # At the first trial scale 1 - theta * largest can round to zero; the tiny excess keeps the logarithm finite.
    indices = -jnp.mean(jnp.log1p(-jnp.outer(thetas, excesses) * (1 - 1e-6)), axis=1)
    likelihoods = size * (jnp.log(jnp.where(indices == 0, 1.0, thetas / indices)) + indices - 1)
    theta = jnp.sum(jax.nn.softmax(jnp.where(jnp.isfinite(likelihoods), likelihoods, -jnp.inf)) * thetas)
    index = jnp.mean(jnp.log1p(-theta * excesses * (1 - 1e-6)))
    # Regularised towards 1/2 as by ten more samples.
    return (size * index + 5.0) / (size + 10.0)


def _exponential(ratios, name):
    return _weigh(*_finite(ratios, name))


@jax.jit
def _weigh(ratios, good, count):
    logs = jnp.where(good, -ratios, -jnp.inf)
    log_mean = logsumexp(logs) - jnp.log(count)
    # Weights of mean one, so that the spread is free of the unknown normaliser and cannot overflow.
    weights = jnp.exp(logs - log_mean)
    second = jnp.sum(weights**2) / count
    relative = jnp.sqrt(jnp.maximum(second - 1.0, 0.0) / (count - 1))
    return log_mean, relative, count / second, count, jnp.sum(~good), tail_index(lax.stop_gradient(logs))


@jax.jit
def _mean(values, good, count):
    average = jnp.sum(values) / count
    spread = jnp.sum(jnp.where(good, (values - average) ** 2, 0.0)) / (count - 1)
    excluded = jnp.sum(~good)
    trustworthy = (excluded == 0) & (count >= 30)
    return Estimate(average, jnp.sqrt(spread / count), count, trustworthy, count, excluded)


@jax.jit
def _bar(ahead, good, n, back, fine, m, beta):
    shift = jnp.log(n / m)

    def fermi(delta):
        taken = jnp.where(good, jax.nn.sigmoid(-(shift + ahead - delta)), 0.0)
        returned = jnp.where(fine, jax.nn.sigmoid(shift - back - delta), 0.0)
        return taken, returned

    def excess(delta):
        taken, returned = fermi(delta)
        slope = jnp.sum(taken * (1 - taken)) + jnp.sum(returned * (1 - returned))
        return jnp.sum(taken) - jnp.sum(returned), slope

    # At the ends of this bracket each side's terms have a definite sign.
    low = jnp.minimum(jnp.min(jnp.where(good, ahead, jnp.inf)), jnp.min(jnp.where(fine, -back, jnp.inf)))
    high = jnp.maximum(jnp.max(jnp.where(good, ahead, -jnp.inf)), jnp.max(jnp.where(fine, -back, -jnp.inf)))
    root = lax.stop_gradient(_bracketed_newton(excess, *lax.stop_gradient((low, high))))
    # One more Newton step, with its slope held, carries the derivative of the root (implicit function theorem).
    gap, slope = excess(root)
    delta = root - gap / lax.stop_gradient(jnp.maximum(slope, jnp.finfo(slope.dtype).tiny))

    taken, returned = fermi(delta)
    ess_ahead = jnp.sum(taken) ** 2 / jnp.sum(taken**2)
    ess_back = jnp.sum(returned) ** 2 / jnp.sum(returned**2)
    variance = (1 / ess_ahead - 1 / n) + (1 / ess_back - 1 / m)
    excluded = jnp.sum(~good) + jnp.sum(~fine)
    ess = jnp.minimum(ess_ahead, ess_back)
    # Two samples without overlap: every term is zero or one, and the error bar would be zero over zero.
    healthy = (ess >= MIN_ESS) & (excluded == 0) & (slope > 1.0)
    return Estimate(delta / beta, jnp.sqrt(variance) / beta, ess, healthy, n + m, excluded)


def _healthy(ess, index, excluded):
    return (ess >= MIN_ESS) & (index < MAX_TAIL_INDEX) & (excluded == 0)


def _finite(values, name):
    """The samples with zeros for those that are not finite, which ones are, and how many."""
    values = jnp.asarray(values)
    require(values.ndim == 1 and values.shape[0] >= 2, name, "be a vector of at least two samples", f"shape {values.shape}")
    values, good, count = _masked(values)
    return ensure(values, count >= 2, name, "hold at least two finite samples", f"{values.shape[0]} of which too few are"), good, count


@jax.jit
def _masked(values):
    good = jnp.isfinite(values)
    return jnp.where(good, values, 0.0), good, jnp.sum(good).astype(values.dtype)


def _one_beta(beta):
    rule = "be one number; for a changing bath take `exponential_mean` of the reduced work"
    require(jnp.ndim(beta) == 0, "beta", rule, f"shape {jnp.shape(beta)}")
    return check_positive(as_scalar(beta), "beta")


def _bracketed_newton(excess, low, high):
    """Root of an increasing function, by Newton steps that fall back to bisection when they leave the bracket."""
    tolerance = 4 * jnp.finfo(low.dtype).eps

    def searching(state):
        low, high, _, move, k = state
        return (k < 100) & (jnp.abs(move) > tolerance * jnp.maximum(1.0, jnp.maximum(jnp.abs(low), jnp.abs(high))))

    def improve(state):
        low, high, x, _, k = state
        gap, slope = excess(x)
        low, high = jnp.where(gap < 0, x, low), jnp.where(gap < 0, high, x)
        newton = x - gap / jnp.maximum(slope, jnp.finfo(x.dtype).tiny)
        y = jnp.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
        return low, high, y, y - x, k + 1

    start = (low, high, 0.5 * (low + high), jnp.full_like(low, jnp.inf), 0)
    return lax.while_loop(searching, improve, start)[2]
