r"""The hysteresis of noising and generation, and the error of a score against a known one.

Two path measures on the times $t_0 < \dots < t_N$: the noising $P$ of data whose density $p$ is known, and the generation $Q$ from the
prior $\pi$ by the learned kernels. On one path, written in the order of noising,

$\Sigma = \ln p_{t_0}(x_0) - \ln\pi(x_N) + \sum_k[\ln L_k(x_{k+1}|x_k) - \ln K_k(x_k|x_{k+1})]$

with the noising kernels $L$ and the learned ones $K$. $\langle\Sigma\rangle_P = \mathrm{KL}(P\Vert Q)$ is the mismatch of the prior, the
error of the score and the discretisation error of the kernels; $\langle-\Sigma\rangle_Q = \mathrm{KL}(Q\Vert P)$ is the same distance
from the other side. Their sum is what the cycle of noising and generation dissipates: the area of its loop, zero only if the generation
is the reversal of the noising. At every step and for every score $\langle e^{-\Sigma}\rangle_P = \langle e^{\Sigma}\rangle_Q = 1$, and the
two distributions cross at zero.

In continuous time the error of the score is $D_\theta = \tfrac12\int\sigma_t^2\langle\lVert s_\theta - s\rVert^2\rangle_{p_t}dt$.
Everything is in nats.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import cast
from thermojax._check import check_times, ensure, require
from thermojax.distributions import AbstractDistribution, Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import AbstractNoising, Reversed, Score
from thermojax.ensemble import accumulate
from thermojax.estimators import bar, Estimate, exponential_mean, mean
from thermojax.functionals import BackwardRatio, path_log_ratio
from thermojax.generative._conditional import check_noise, shared_times, steadied, stratified
from thermojax.generative._sampling import Ancestral
from thermojax.phase import check_configurations
from thermojax.steppers import AbstractStepper, ExactLinear, with_density


class PathDivergence(NamedTuple):
    """Distance of generation and noising as path measures, in nats."""

    forward: Estimate
    r"""$\mathrm{KL}(P\Vert Q)$, on noising paths."""
    backward: Estimate
    r"""$\mathrm{KL}(Q\Vert P)$, on generated paths."""
    hysteresis: Estimate
    """Their sum, the area of the loop."""
    terminal: Estimate
    r"""The part of `forward` that is the mismatch of the prior, $\mathrm{KL}(p_{t_N}\Vert\pi)$."""
    path: Estimate
    """The rest of `forward`: error of the score and discretisation error of the kernels."""
    forward_law: Estimate
    r"""$\langle e^{-\Sigma}\rangle_P$, one."""
    backward_law: Estimate
    r"""$\langle e^{\Sigma}\rangle_Q$, one."""
    offset: Estimate
    r"""Where the two distributions cross, by `bar`: the log-ratio of the normalisers, zero."""
    forward_samples: Float[Array, " sample"]
    r"""$\Sigma$ on noising paths."""
    backward_samples: Float[Array, " sample"]
    r"""$-\Sigma$ on generated paths."""


class ScoreError(NamedTuple):
    """Path KL between the reversal by one score and by another, in nats; profiles have one entry per noise level."""

    total: Estimate
    """The path KL, or the difference of two."""
    ts: Float[Array, " level"]
    """The middle of each level's interval of time."""
    widths: Float[Array, " level"]
    """The length of each level's interval."""
    rates: Float[Array, " level"]
    """The same per unit time."""
    rate_errors: Float[Array, " level"]
    """Its standard errors."""


def path_divergence(
    score: Score,
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    n: int,
    ts: ArrayLike,
    *,
    prior: AbstractDistribution | None = None,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> PathDivergence:
    r"""Both divergences of generation and noising, from `n` paths of each, and the laws that hold at any step.

    Args:
        score: ``score(t, x)``.
        noising: The noising process.
        data: The density of the data at time 0; paths start from its noised version at ``ts[0]``.
        n: Number of paths in each direction.
        ts: Increasing times of the forward process.
        prior: Where generation starts; the standard normal if omitted.
        stepper: Kernel of the generation, of known density; `Ancestral` if omitted.
        key: Random key.

    Raises:
        TypeError, ValueError: if the data are not a Gaussian or a mixture, the times do not increase, the density of `stepper` is
            unknown, or its last kernel has no noise (`Ancestral` down to a time without noise).
    """
    known = isinstance(data, Gaussian | GaussianMixture)
    require(known, "data", "be a `Gaussian` or a `GaussianMixture`, whose noised density is known", type(data).__name__)
    keys = jr.split(key, 4)
    dim = (data.mean if isinstance(data, Gaussian) else data.means).shape[-1]
    prior = standard_normal(dim) if prior is None else prior
    ends = prior.sample(n, key=keys[2])
    models, ts = prepare(score, noising, ts, ends, stepper)
    score, noising, gaussian = models
    first, last = (noising.marginal(data, t) for t in (ts[0], ts[-1]))
    backward, exact = Reversed(noising, score, ts[-1]), ExactLinear()
    x0s = first.sample(n, key=keys[0])
    x1s, losses = accumulate(BackwardRatio(backward, ts[-1], gaussian), noising, x0s, ts, stepper=exact, key=keys[1])
    ratio = BackwardRatio(noising, ts[-1], exact)
    y0s, gains = accumulate(ratio, backward, ends, (ts[-1] - ts)[::-1], stepper=gaussian, key=keys[3])
    ahead, back, mismatch = _ratios(first, last, prior, x0s, x1s, losses, ends, y0s, gains)
    forward, backward = mean(ahead), mean(back)
    return PathDivergence(
        forward=forward,
        backward=backward,
        hysteresis=_sum(forward, backward),
        terminal=mean(mismatch),
        path=mean(ahead - mismatch),
        forward_law=exponential_mean(ahead),
        backward_law=exponential_mean(back),
        offset=bar(ahead, back, beta=1.0),
        forward_samples=ahead,
        backward_samples=back,
    )


def score_error(
    score: Score,
    truth: Score,
    noising: AbstractNoising,
    data: ArrayLike,
    *,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    levels: int = 100,
    key: Key,
) -> ScoreError:
    r"""The error of a score against the true one, $D_\theta = \tfrac12\int\sigma_t^2\langle\lVert s_\theta - s\rVert^2\rangle dt$.

    It is the path KL of the two generations in continuous time, whatever the clock. Times are stratified: in each of `levels` equal
    intervals every datum has one random time.

    Args:
        score: ``score(t, x)``, learned.
        truth: The true score of the noised data.
        noising: The noising process.
        data: Configurations, independent of each other, shape ``(sample, dim)``.
        start: Earliest time.
        horizon: Latest time.
        levels: Number of noise levels.
        key: Random key.
    """
    return _compared(_distance, score, truth, noising, data, start, horizon, levels, key)


def score_gap(
    score: Score,
    other: Score,
    noising: AbstractNoising,
    data: ArrayLike,
    *,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    levels: int = 100,
    key: Key,
) -> ScoreError:
    r"""How much larger the error of a score is than that of another one, $D_\theta - D_{\theta'}$, with the true score unknown.

    The difference of the two conditional path KLs, on the same noise; where `other` is the true score it has the mean of `score_error`,
    with more spread. See there for the arguments.

    Raises:
        ValueError: if there is no noise at `start`.

    Reference:
        P. Vincent, Neural Comput. 23, 1661 (2011).
    """
    return _compared(_conditional_gap, score, other, noising, data, start, horizon, levels, key)


def prepare(score, noising, ts, xs, stepper):
    """Score, noising and Gaussian kernel in the precision of `xs`, and the times that both clocks can write."""
    gaussian = with_density(Ancestral() if stepper is None else stepper)
    score, noising, gaussian = cast((score, noising, gaussian), xs.dtype)
    ts = shared_times(check_times(ts, xs.dtype))
    backward = Reversed(noising, score, ts[-1])
    gaussian.check(backward, (ts[-1] - ts)[::-1], xs[:1])
    _, spread = gaussian.increment(backward, ts[-1] - ts[1], ts[-1] - ts[0], xs[0])
    rule = "be a time to which the last kernel has noise: its density is needed"
    return (score, noising, gaussian), ensure(ts, jnp.diagonal(spread) > 0 if spread.ndim == 2 else spread > 0, "ts[0]", rule, ts[0])


@eqx.filter_jit
def _ratios(first, last, prior, x0s, x1s, losses, ends, y0s, gains):
    """The log-ratio of the paths on both sides, and the prior's part of the first."""
    ahead = path_log_ratio(first, prior, x0s, x1s, losses)
    back = path_log_ratio(prior, first, ends, y0s, gains)
    return ahead, back, jax.vmap(last.log_prob)(x1s) - jax.vmap(prior.log_prob)(x1s)


def _sum(one, two):
    """The sum of independent means."""
    return Estimate(
        one.value + two.value,
        jnp.hypot(one.stderr, two.stderr),
        jnp.minimum(one.ess, two.ess),
        one.trustworthy & two.trustworthy,
        one.samples + two.samples,
        one.excluded + two.excluded,
    )


def _compared(rate, score, other, noising, data, start, horizon, levels, key):
    data = check_configurations(data)
    require(levels >= 1, "levels", "be at least 1", levels)
    score, other, noising = cast((score, other, noising), data.dtype)
    edges = check_times(jnp.linspace(jnp.asarray(start, data.dtype), jnp.asarray(horizon, data.dtype), levels + 1))
    if rate is _conditional_gap:
        edges = check_noise(noising, edges, "start")
    return _profile(rate, score, other, noising, data, edges, key)


@eqx.filter_jit
def _profile(rate, score, other, noising, data, edges, key):
    n = data.shape[0]

    def level(totals, inputs):
        t0, t1, k = inputs
        time_key, noise_key = jr.split(jr.fold_in(key, k))
        zs = jr.normal(noise_key, data.shape, data.dtype)
        times = t0 + (t1 - t0) * stratified(n, data.dtype, key=time_key)
        rates = steadied(jax.vmap(lambda t, x, z: rate(noising, score, other, t, x, z))(times, data, zs), zs)
        return totals + rates * (t1 - t0), (jnp.mean(rates), jnp.std(rates) / jnp.sqrt(n))

    inputs = (edges[:-1], edges[1:], jnp.arange(edges.shape[0] - 1))
    totals, (rates, errors) = lax.scan(level, jnp.zeros(n, data.dtype), inputs)
    return ScoreError(mean(totals), 0.5 * (edges[1:] + edges[:-1]), jnp.diff(edges), rates, errors)


def _distance(noising, score, truth, t, x0, z):
    x = noising.alpha(t) * x0 + jnp.sqrt(noising.variance(t)) * z
    return 0.5 * noising.noise(t) ** 2 * jnp.sum((score(t, x) - truth(t, x)) ** 2)


def _conditional_gap(noising, score, other, t, x0, z):
    # The squares of the noise itself cancel on paper.
    spread = jnp.sqrt(noising.variance(t))
    x = noising.alpha(t) * x0 + spread * z
    ours, theirs = score(t, x), other(t, x)
    return 0.5 * noising.noise(t) ** 2 * jnp.sum((ours - theirs) * (ours + theirs + 2.0 * z / spread))
