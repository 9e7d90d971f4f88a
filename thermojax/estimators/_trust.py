r"""The trust report of an exponential average: whether it may be believed, and why, in words."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from thermojax.estimators._averages import exponential
from thermojax.estimators._bar import bar, two_sides
from thermojax.estimators._estimate import one_beta, samples
from thermojax.estimators._health import Health, MAX_BIAS, MAX_SKEWNESS, MAX_TAIL_INDEX, MIN_ESS, MIN_EXPECTED_ESS


class Trust(NamedTuple):
    """A trust report; ``print`` it to read it."""

    verdict: str
    """``"reliable"`` or ``"unreliable"``: the same as `Estimate.trustworthy` of the same samples."""
    reasons: tuple[str, ...]
    """Sentences that say why: what fails, or what holds."""
    samples: int
    """Samples used, of both directions."""
    ess: float
    """Effective number of independent samples."""
    tail_index: float
    r"""Pareto index of the weights of the forward samples: their moments exist up to order 1/index."""
    second_moment_finite: bool
    """Whether the tail of the weights leaves the error bar a meaning."""
    bias: float
    r"""Bias of the free-energy difference $-\beta^{-1}\ln\langle e^{-\beta W}\rangle$ by the block jackknife, in its units."""
    overlap: float | None
    r"""Overlap of the work distributions, $\int\frac{2\,P(W)\tilde P(-W)}{P(W) + \tilde P(-W)}\,dW$: one if they are the same, zero if
    disjoint; None without backward samples."""
    needed: float
    """Sample size that the dissipation asks for, its exponential: an exponential average of fewer samples has not begun to converge."""

    def __str__(self):
        return f"{self.verdict}: " + " ".join(self.reasons)


def trust(
    work: ArrayLike,
    backward: ArrayLike | None = None,
    *,
    beta: ArrayLike = 1.0,
    weights: Sequence[ArrayLike | None] | ArrayLike | None = None,
    inefficiency: Sequence[ArrayLike] | ArrayLike = 1.0,
) -> Trust:
    r"""Say whether an exponential average of these samples may be believed, and why.

    With one direction, the report is about `jarzynski` (with `beta`) and `exponential_mean` (with $\beta = 1$). All of this must hold:

    - every sample is finite;
    - at least 75 effective samples;
    - a tail index below 0.6, so that the second moment of the weights is finite as far as samples can say;
    - a skewness of the average below 0.75, so that its distribution is close to a Gaussian;
    - a bias below a tenth of the error bar;
    - the sample is large enough for Gaussian work of the same spread, read off the side of small weights: it would leave 100 effective
      samples and that skewness. Weights with a light tail (bounded ones) are excused.

    With backward samples it is about `bar`: every sample finite, at least 75 effective samples on both sides.

    `needed` is $e^{\beta W_\mathrm{diss}}$ with the dissipated work of the *conjugate* process: the backward one, if its samples are
    given; else that of the forward one, which is the same for Gaussian work.

    Args:
        work: Work, or log-ratios $\ell$, of paths that start in equilibrium; shape ``(sample,)``.
        backward: Work under the reversed protocol, if there is some.
        beta: Inverse temperature of the (single, constant) bath.
        weights: Importance weights, up to a common factor; a pair with backward samples.
        inefficiency: How many correlated samples are worth one independent sample; one number, or a pair with backward samples.

    Raises:
        ValueError: if `beta` is not one positive number, or there are fewer than two finite samples.

    Reference:
        C. Jarzynski, Phys. Rev. E 73, 046105 (2006); C. H. Bennett, J. Comput. Phys. 22, 245 (1976); D. Wu, D. A. Kofke,
        J. Chem. Phys. 123, 054103 (2005).
    """
    if backward is not None:
        return _both(work, backward, beta, weights, inefficiency)
    data = samples(work, "work", weights=weights, inefficiency=inefficiency)
    beta = one_beta(beta, data.values)
    data = data._replace(values=beta * data.values)
    log_mean, health = exponential(data)
    failed = [name for name, holds in health.criteria().items() if not bool(holds)]
    dissipated = float(_average(data) + log_mean)
    words = _words(health, data.values.shape[0])
    reasons = tuple(words[name] for name in failed) or (words["sound"],)
    needed = _exp(dissipated)
    if needed > float(health.independent):
        reasons += (f"The dissipated work of {dissipated:.3g} kT asks for {_count(needed)} samples.",)
    return Trust(
        verdict="unreliable" if failed else "reliable",
        reasons=reasons,
        samples=int(data.number),
        ess=float(health.ess),
        tail_index=float(health.tail_index),
        second_moment_finite=bool(health.tail_index < MAX_TAIL_INDEX),
        bias=float(health.bias / beta),
        overlap=None,
        needed=needed,
    )


def _both(work, backward, beta, weights, inefficiency):
    ahead, back, scale = two_sides(work, backward, beta, weights, inefficiency)
    found = bar(work, backward, beta=beta, weights=weights, inefficiency=inefficiency)
    delta = found.value * scale
    _, health = exponential(ahead)
    overlap = float(_overlap(ahead, back, delta))
    dissipated = float(_average(back) + delta)
    excluded, ess = int(found.excluded), float(found.ess)
    reliable = bool(found.trustworthy)
    reasons = []
    if excluded:
        reasons.append(_left_out(excluded, int(found.samples) + excluded))
    if overlap < 1e-6 or not (reliable or excluded or ess < MIN_ESS):
        reasons.append("The two work distributions do not overlap.")
    elif not ess >= MIN_ESS:
        reasons.append(f"The side that overlaps less has {_effective(ess)}; {MIN_ESS:.0f} are needed.")
    if not reasons:
        reasons.append(f"Both sides have at least {_effective(ess)}, and the work distributions overlap by {overlap:.2g}.")
    elif overlap >= 1e-6:
        reasons.append(f"The work distributions overlap by {overlap:.2g} (one if they are the same).")
    return Trust(
        verdict="reliable" if reliable else "unreliable",
        reasons=tuple(reasons),
        samples=int(found.samples),
        ess=ess,
        tail_index=float(health.tail_index),
        second_moment_finite=bool(health.tail_index < MAX_TAIL_INDEX),
        bias=float(health.bias / scale),
        overlap=overlap,
        needed=_exp(dissipated),
    )


def _words(health: Health, total):
    """One sentence for each criterion that may fail, and one for when all hold."""
    ess, index, skewness, spread = (float(a) for a in (health.ess, health.tail_index, health.skewness, health.spread))
    bias = float(jnp.abs(health.bias) / health.stderr)
    left, skewed = float(health.expected_ess), float(health.expected_skewness)
    return {
        "excluded": _left_out(int(health.excluded), total),
        "ess": f"The average rests on {_effective(ess)}; {MIN_ESS:.0f} are needed.",
        "tail_index": f"The tail index of the weights is {index:.2f}; from {MAX_TAIL_INDEX} on their second moment may be infinite, and "
        "the error bar means nothing.",
        "skewness": f"The average has a skewness of {skewness:.2f}, above {MAX_SKEWNESS}: its distribution is far from a Gaussian.",
        "bias": f"The bias is {bias:.2g} error bars; below {MAX_BIAS} it would do no harm.",
        "spread": f"Gaussian work of this spread, {spread:.2g} kT, would leave {_effective(left)} and a skewness of "
        f"{skewed:.2g}; at least {MIN_EXPECTED_ESS:.0f} and at most {MAX_SKEWNESS} are asked for.",
        "sound": f"The average rests on {_effective(ess)}, the tail index of the weights is {index:.2f} and the skewness of the "
        f"average {skewness:.2g}.",
    }


def _left_out(excluded, total):
    return f"{excluded} of {total} samples are not finite."


def _effective(number):
    text = _count(number)
    return f"{text} effective sample" if text == "1" else f"{text} effective samples"


def _count(number):
    return f"{number:,.0f}" if number < 1e6 else f"{number:.1e}"


def _exp(x):
    return math.exp(x) if x < 700 else math.inf


@jax.jit
def _average(data):
    return jnp.sum(data.weights * data.values) / data.number


@jax.jit
def _overlap(ahead, back, delta):
    shares = [jnp.sum(side.weights * jax.nn.sigmoid(sign * delta - side.values)) / side.number for side, sign in ((ahead, 1), (back, -1))]
    return shares[0] + shares[1]
