r"""Plain and exponential averages of samples, with weights and for correlated samples."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import ArrayLike

from thermojax._array import Scalar
from thermojax.estimators._estimate import Estimate, one_beta, Samples, samples
from thermojax.estimators._health import examine, Health


def mean(values: ArrayLike, *, weights: ArrayLike | None = None, inefficiency: ArrayLike = 1.0) -> Estimate:
    """The mean of samples.

    Args:
        values: Samples, shape ``(sample,)``.
        weights: Importance weights of the samples, up to a common factor; all one if omitted.
        inefficiency: How many correlated samples are worth one independent sample; see `statistical_inefficiency`.

    Returns:
        The mean; trustworthy if it rests on at least 30 independent samples, none of which has more than half of the variance.
    """
    return _mean(samples(values, "values", weights=weights, inefficiency=inefficiency))


def exponential_mean(ratios: ArrayLike, *, weights: ArrayLike | None = None, inefficiency: ArrayLike = 1.0) -> Estimate:
    r"""The exponential average $\langle e^{-\ell}\rangle$: one for the log-ratio $\ell$ of two path measures.

    The integral fluctuation theorem if $\ell$ is the total entropy production; $Z_\tau/Z_0$ if it is the reduced work.

    Args:
        ratios: Samples of $\ell$, dimensionless, shape ``(sample,)``.
        weights: Importance weights of the samples, up to a common factor; all one if omitted.
        inefficiency: How many correlated samples are worth one independent sample; see `statistical_inefficiency`.
    """
    data = samples(ratios, "ratios", weights=weights, inefficiency=inefficiency)
    log_mean, health = exponential(data)
    value = jnp.exp(log_mean)
    return Estimate(value, value * health.stderr, health.ess, health.sound(), data.number, data.excluded, health.tail_index)


def jarzynski(work: ArrayLike, *, beta: ArrayLike, weights: ArrayLike | None = None, inefficiency: ArrayLike = 1.0) -> Estimate:
    r"""Free-energy difference from work values, $\Delta F = -\beta^{-1}\ln\langle e^{-\beta W}\rangle$.

    The standard error is first order in the fluctuations of the weights, $\beta^2\sigma^2 = 1/\mathrm{ess} - 1/n$ for independent
    samples of equal weight: the spread is the population's (divided by $n$), as in `bar`. Its bias, of the order of
    $1/(2\beta\,\mathrm{ess})$, is positive.

    Args:
        work: Work of paths that start in equilibrium, shape ``(sample,)``.
        beta: Inverse temperature of the (single, constant) bath.
        weights: Importance weights of the paths, up to a common factor; all one if omitted.
        inefficiency: How many correlated paths are worth one independent path; see `statistical_inefficiency`.

    Raises:
        ValueError: if `beta` is not one positive number; a changing bath needs `exponential_mean` of the reduced work.

    Reference:
        C. Jarzynski, Phys. Rev. Lett. 78, 2690 (1997), eq. (2b).
    """
    data = samples(work, "work", weights=weights, inefficiency=inefficiency)
    beta = one_beta(beta, data.values)
    log_mean, health = exponential(data._replace(values=beta * data.values))
    return Estimate(-log_mean / beta, health.stderr / beta, health.ess, health.sound(), data.number, data.excluded, health.tail_index)


@jax.jit
def exponential(data: Samples) -> tuple[Scalar, Health]:
    """Logarithm of the exponential average of the samples, and its health."""
    used = data.weights > 0
    logs = jnp.where(used, jnp.log(jnp.where(used, data.weights, 1.0)) - data.values, -jnp.inf)
    log_mean = logsumexp(logs) - jnp.log(data.number)
    # Weights of mean one, so that the spread is free of the unknown normaliser and cannot overflow.
    return log_mean, examine(logs - log_mean, data.weights, data.number, data.inefficiency)


@jax.jit
def _mean(data):
    average = jnp.sum(data.weights * data.values) / data.number
    size = data.independent * data.inefficiency
    spread = jnp.sum((data.weights * (data.values - average)) ** 2) / data.number**2
    # Unbiased for equal weights.
    stderr = jnp.sqrt(spread * size / (size - 1) * data.inefficiency)
    # A mean that one sample decides has no error bar.
    largest = jnp.max((data.weights * (data.values - average)) ** 2) / data.number**2
    trustworthy = (data.excluded == 0) & (data.independent >= 30) & (2 * largest <= spread)
    return Estimate(average, stderr, data.independent, trustworthy, data.number, data.excluded)
