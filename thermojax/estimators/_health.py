r"""Whether an exponential average may be believed: what is measured, and the thresholds.

The error bar of $\langle e^{-\ell}\rangle$ rests on the central limit theorem for the weights $w = e^{-\ell}$, and a sample that missed
the large weights looks healthy by every number that they decide (effective samples, skewness, tail). So the verdict also reads what
rare samples do not decide: the spread of $\ell$ on the side of the small weights. If the work is Gaussian, that spread says how
many samples the average needs. Coverage of the 95 % intervals among the estimates believed is tested in `tests/test_trust.py`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import Scalar

# Below this many effective samples the standard error itself is a guess. What Gaussian work of the same spread would leave must be more:
# a sample that missed its large weights has too large an `ess`, one that caught them too small a one, so that the measured number
# should refuse only what is far from sound.
MIN_ESS, MIN_EXPECTED_ESS = 75.0, 100.0
# The variance is infinite from 1/2 on; weights with thinner tails than a power look like up to 0.55 in the top fifth of a sample.
MAX_TAIL_INDEX = 0.6
# The error of a 95 % interval is about a quarter of the squared skewness of the mean (P. Hall, The Bootstrap and Edgeworth Expansion
# (1992)), less where the kurtosis is large: this keeps log-normal weights above 92 %.
MAX_SKEWNESS = 0.75
# A bias below a tenth of the error bar does not change the coverage (W. G. Cochran, Sampling Techniques (1977)).
MAX_BIAS = 0.1

# The index is known well enough from this many samples, and from this many ranks of their top fifth.
_LARGE, _RANKS = 2**16, 1000
_BLOCKS = 20
# Distance of the median of a Gaussian to its lowest tenth, in standard deviations.
_TENTH = 1.2815515655446004


class Health(NamedTuple):
    """What is known about the weights of one exponential average."""

    ess: Scalar
    """Effective number of independent samples."""
    tail_index: Scalar
    """Pareto index of the weights."""
    skewness: Scalar
    """Skewness of the average, as measured."""
    bias: Scalar
    r"""Bias of $-\ln\langle e^{-\ell}\rangle$, by the block jackknife."""
    stderr: Scalar
    r"""Standard error of $-\ln\langle e^{-\ell}\rangle$."""
    spread: Scalar
    r"""Standard deviation of Gaussian $\ell$ that has the same quantiles on the side of the small weights."""
    light: Array
    """Whether the weights have a tail so light that `spread` says nothing about them."""
    independent: Scalar
    """Independent samples that there are, by number."""
    excluded: Scalar
    """Samples left out."""

    @property
    def expected_ess(self):
        """Effective samples that Gaussian work of this spread would have."""
        return self.independent * jnp.exp(-(self.spread**2))

    @property
    def expected_skewness(self):
        """Skewness of the average that Gaussian work of this spread would have."""
        growth = jnp.exp(jnp.minimum(self.spread**2, 80.0))
        return (growth + 2) * jnp.sqrt(growth - 1) / jnp.sqrt(self.independent)

    def criteria(self) -> dict[str, Array]:
        """What must hold; each by a short name."""
        return {
            "excluded": self.excluded == 0,
            "ess": self.ess >= MIN_ESS,
            "tail_index": self.tail_index < MAX_TAIL_INDEX,
            "skewness": self.skewness < MAX_SKEWNESS,
            "bias": jnp.abs(self.bias) <= MAX_BIAS * self.stderr + 100 * jnp.finfo(self.bias.dtype).eps,
            "spread": self.light | ((self.expected_ess >= MIN_EXPECTED_ESS) & (self.expected_skewness < MAX_SKEWNESS)),
        }

    def sound(self) -> Array:
        """Whether the average and its error bar may be believed."""
        return _all_hold(self)


# Twenty small operations: compiled one by one they would take longer than all else in a first estimate.
@jax.jit
def _all_hold(health):
    return jnp.all(jnp.stack(list(health.criteria().values())), axis=0)


@jax.jit
def tail_index(log_weights: Float[Array, " sample"]) -> Scalar:
    r"""Pareto index of the largest weights $e^{\text{log_weights}}$: their moments exist up to order 1/index.

    Zhang and Stephens' fit of a generalised Pareto distribution to the top fifth of the sample. Of a large sample at most 1000 ranks are
    used, evenly spread, so that the few largest weights do not decide alone. Infinite for fewer than 25 samples.

    Reference:
        J. Zhang, M. A. Stephens, Technometrics 51, 316 (2009); A. Vehtari et al., JMLR 25, 72 (2024), sec. 2.
    """
    return _index(_descending(log_weights))


def examine(logs: Array, used: Array, count: Scalar, inefficiency: Scalar) -> Health:
    """The health of the average of the weights ``exp(logs)`` over samples of weights `used`, both of mean one."""
    weights = jnp.exp(logs)
    deviations = weights - used
    total = jnp.sum(deviations**2)
    stderr = jnp.sqrt(total * inefficiency) / count
    skewness = jnp.sum((deviations / jnp.sqrt(jnp.where(total > 0, total, 1.0))) ** 3) * jnp.sqrt(inefficiency)
    ess = count**2 / jnp.maximum(jnp.sum(weights**2), jnp.sum(used**2)) / inefficiency
    ranked = _descending(lax.stop_gradient(logs))
    index = _index(ranked)
    return Health(
        ess=ess,
        tail_index=index,
        skewness=skewness,
        bias=_bias(*_groups(lax.stop_gradient(weights), lax.stop_gradient(used))),
        stderr=stderr,
        spread=_spread(ranked),
        light=_is_light(index, ranked),
        independent=count / inefficiency,
        excluded=logs.shape[0] - count,
    )


def summarise(
    count: ArrayLike,
    excluded: ArrayLike,
    second: ArrayLike,
    third: ArrayLike,
    groups: tuple[Float[Array, " group"], Float[Array, " group"]],
    log_weights: Float[Array, " sample"],
) -> Health:
    r"""The health of an average over samples that are not held: of their weights, of mean one, the sums that were kept.

    Args:
        count: Samples used.
        excluded: Samples left out.
        second: $\sum_i (w_i - 1)^2$.
        third: $\sum_i (w_i - 1)^3$.
        groups: Sums of the weights of twenty or fewer groups of samples, and the samples in each.
        log_weights: Logarithms of the weights of some of the samples, evenly chosen.
    """
    ranked = _descending(log_weights)
    index = _index(ranked)
    count, second = jnp.asarray(count, ranked.dtype), jnp.asarray(second, ranked.dtype)
    return Health(
        ess=count**2 / (second + count),
        tail_index=index,
        skewness=jnp.asarray(third, ranked.dtype) / jnp.where(second > 0, second, 1.0) ** 1.5,
        bias=_bias(*groups),
        stderr=jnp.sqrt(second) / count,
        spread=_spread(ranked),
        light=_is_light(index, ranked),
        independent=count,
        excluded=jnp.asarray(excluded, ranked.dtype),
    )


def _is_light(index, ranked):
    return index + 2.0 / max(1.0, min(ranked.shape[0] // 5, _RANKS)) ** 0.5 < 0.25


def _descending(logs):
    """Sorted from the largest; of a very large sample, evenly chosen ones."""
    return -jnp.sort(-logs[:: max(1, logs.shape[0] // _LARGE)])


def _index(ranked):
    tail = ranked.shape[0] // 5
    if tail < 5:
        return jnp.full((), jnp.inf, ranked.dtype)
    size = min(tail, _RANKS)
    # The middles of equal groups of ranks; every rank of a small sample.
    top = ranked[jnp.asarray([(2 * i + 1) * tail // (2 * size) for i in range(size)])]
    weights = jnp.exp(top - top[0])
    excesses = (weights - jnp.exp(ranked[tail] - top[0]))[::-1]
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
    # Regularised towards 1/2 as by ten more samples. Equal weights have no tail.
    return jnp.where(excesses[-1] > 0, (size * index + 5.0) / (size + 10.0), 0.0)


def _spread(ranked):
    """From the median down to the tenth of the smallest weights: a side that the rare large weights do not decide."""
    used = jnp.sum(jnp.isfinite(ranked))
    middle, low = ranked[used // 2], ranked[(9 * used) // 10]
    return (middle - low) / _TENTH


def _groups(weights, used):
    """Sums over blocks of successive samples."""
    blocks = min(_BLOCKS, weights.shape[0])
    pad = (0, -weights.shape[0] % blocks)
    return tuple(jnp.sum(jnp.pad(a, pad).reshape(blocks, -1), axis=1) for a in (weights, used))


def _bias(tops, bottoms):
    """Quenouille's jackknife over groups of samples: sums of their weights, and of what they count."""
    blocks = tops.shape[0]
    without = (jnp.sum(tops) - tops) / (jnp.sum(bottoms) - bottoms)
    return (blocks - 1) * (jnp.mean(-jnp.log(without)) + jnp.log(jnp.sum(tops) / jnp.sum(bottoms)))
