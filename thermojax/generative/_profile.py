r"""The bound on the likelihood, noise level by noise level, and what of the score's error can be seen in data alone.

The noising process and the learned denoising process are two path measures on the same trajectories. Given one datum their
Kullback-Leibler divergence splits into a terminal mismatch (the prior is not the noised datum) and the conditional path KL,
$\int\tfrac12\sigma_t^2\langle\lVert s_\theta - \nabla\ln p(x_t|x_0)\rVert^2\rangle dt$; with the last step that undoes the noise of
the earliest time they bound the negative log-likelihood from above (the ELBO). Averaged over the data the conditional path KL is
the score error, zero for a perfect score, plus a part that is the data's own.

The two parts cannot be told apart without the true score, but a part of the error can: the conditional score has the true one as its
mean given $x_t$, so whatever a correction $\delta(x_t)$ saves in the conditional path KL was error. The best correction in the span of
$s_\theta$, $x$ and the mean of the data, fitted to neighbouring noise levels on all blocks of the data but one and tried on that one,
gives a lower bound on the score error. For a score that is wrong by a factor it is nearly the whole error.

Everything is in nats.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import cast, Scalar
from thermojax._check import check_times, require
from thermojax.distributions import Gaussian, standard_normal
from thermojax.dynamics import AbstractNoising, Reversed, Score
from thermojax.ensemble import accumulate
from thermojax.estimators import Estimate, mean
from thermojax.functionals import BackwardRatio
from thermojax.generative._conditional import check_noise, decoding_cost, steadied, stratified, terminal_kl
from thermojax.generative._sampling import Ancestral, log_snr_grid
from thermojax.phase import check_configurations
from thermojax.steppers import AbstractStepper, ExactLinear

# Blocks of data for the lower bound on the score error and its error bar.
_BLOCKS = 40


class NoiseProfile(NamedTuple):
    """What `noise_profile` measured, in nats per configuration; profiles have one entry per noise level."""

    bound: Estimate
    """Upper bound on the negative log-likelihood: the sum of the next three."""
    terminal: Estimate
    """Mismatch of the prior, KL of the noised datum from it."""
    path_kl: Estimate
    """Conditional path KL between the earliest and the latest time."""
    decoding: Estimate
    """Cost of the last step, which undoes the noise of the earliest time."""
    recoverable: Estimate
    """Part of the path KL that is certainly error of the score: what the best correction saves. A lower bound on the score error."""
    ts: Float[Array, " level"]
    """The middle of each level's interval of time."""
    widths: Float[Array, " level"]
    """The length of each level's interval."""
    log_snr: Float[Array, " level"]
    """The log signal-to-noise ratio at `ts`."""
    rates: Float[Array, " level"]
    """Conditional path KL per unit time."""
    rate_errors: Float[Array, " level"]
    """Its standard errors."""
    recoverable_rates: Float[Array, " level"]
    """Recoverable path KL per unit time; noise may make it negative."""
    recoverable_errors: Float[Array, " level"]
    """Its standard errors."""
    factors: Float[Array, " level"]
    """The number by which the score is best multiplied at each level: one for a score of the right size."""
    factor_errors: Float[Array, " level"]
    """Its standard errors."""


def noise_profile(
    score: Score,
    noising: AbstractNoising,
    data: ArrayLike,
    *,
    prior: Gaussian | None = None,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    levels: int = 100,
    key: Key,
) -> NoiseProfile:
    """Bound on the likelihood of `data`, its split by noise level, and what of it is certainly the score's error.

    Times are stratified: in each of `levels` equal intervals of the log signal-to-noise ratio every datum has one random time, so that the
    integral is unbiased however few levels. It takes ``levels * sample`` evaluations of the score.

    Args:
        score: ``score(t, x)``, learned or exact.
        noising: The noising process; its noise must not vanish at `start`.
        data: Configurations the bound is averaged over, independent of each other, shape ``(sample, dim)``.
        prior: Where generation starts, a Gaussian; the standard normal if omitted.
        start: Earliest time.
        horizon: Latest time.
        levels: Number of noise levels.
        key: Random key.

    Returns:
        The profile, in nats per configuration.
    """
    data = check_configurations(data)
    require(levels >= 1, "levels", "be at least 1", levels)
    ends = check_times(jnp.stack([jnp.asarray(start, data.dtype), jnp.asarray(horizon, data.dtype)]))
    ends = check_noise(noising, ends, "start")
    prior = standard_normal(data.shape[1]) if prior is None else prior
    score, noising, prior = cast((score, noising, prior), data.dtype)
    return _noise_profile(score, noising, data, prior, log_snr_grid(noising, ends[0], ends[1], levels), key)


def path_bound(
    score: Score,
    noising: AbstractNoising,
    data: ArrayLike,
    ts: ArrayLike,
    *,
    prior: Gaussian | None = None,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> Estimate:
    """Upper bound on the negative log-likelihood of the very sampler that takes the steps `ts`, in nats per configuration.

    It is the mean log-ratio of the noising chain to the denoising chain, kernel by kernel: exact for any number of steps. For `Ancestral`
    it is the bound of DDPM. It exceeds that of `noise_profile` by the discretisation error of the sampler.

    Args:
        score: ``score(t, x)``.
        noising: The noising process; its noise must not vanish at ``ts[0]``.
        data: Configurations the bound is averaged over, shape ``(sample, dim)``.
        ts: Increasing times of the forward process.
        prior: Where generation starts; the standard normal if omitted.
        stepper: Kernel of the denoising chain, of known density; `Ancestral` if omitted.
        key: Random key.
    """
    data, ts = check_configurations(data), check_times(ts)
    ts = check_noise(noising, ts.astype(data.dtype), "ts[0]")
    score, noising, origin = cast((score, noising, standard_normal(data.shape[1]) if prior is None else prior), data.dtype)
    first_key, path_key = jr.split(key)
    zs = jr.normal(first_key, data.shape, data.dtype)
    x0s = noising.alpha(ts[0]) * data + jnp.sqrt(noising.variance(ts[0])) * zs
    backward = Reversed(noising, score, ts[-1])
    ratio = BackwardRatio(backward, ts[-1], Ancestral() if stepper is None else stepper)
    x1s, totals = accumulate(ratio, noising, x0s, ts, stepper=ExactLinear(), key=path_key)
    decoded = eqx.filter_jit(jax.vmap(lambda x, z: decoding_cost(noising, score, ts[0], x, z)))(data, zs)
    # The first noising is a step of the forward chain like the others.
    first = jax.vmap(Gaussian(jnp.zeros_like(data[0]), noising.variance(ts[0])).log_prob)(jnp.sqrt(noising.variance(ts[0])) * zs)
    return mean(first + totals + decoded - jax.vmap(origin.log_prob)(x1s))


@eqx.filter_jit
def _noise_profile(score, noising, data, prior, edges, key):
    n = data.shape[0]
    level_key, last_key = jr.split(key)
    centre = jnp.mean(data, axis=0)
    blocks = jnp.arange(n) % min(_BLOCKS, n)
    by_block = lambda values: jax.ops.segment_sum(values, blocks, min(_BLOCKS, n))

    def level(paths, inputs):
        t0, t1, k = inputs
        time_key, noise_key = jr.split(jr.fold_in(level_key, k))
        times = t0 + (t1 - t0) * stratified(n, data.dtype, key=time_key)
        zs = jr.normal(noise_key, data.shape, data.dtype)
        seen = jax.vmap(lambda t, x, z: _look(noising, score, centre, t, x, z))(times, data, zs)
        rates = steadied(seen.rate, zs)
        factor, factor_error = _factor(seen.squares[:, 0, 0], seen.products[:, 0])
        found = (jnp.mean(rates), jnp.std(rates) / jnp.sqrt(n), 1 + factor, factor_error)
        return paths + rates * (t1 - t0), (*found, by_block(seen.squares), by_block(seen.products))

    inputs = (edges[:-1], edges[1:], jnp.arange(edges.shape[0] - 1))
    paths, (rates, rate_errors, factors, factor_errors, squares, products) = lax.scan(level, jnp.zeros(n, data.dtype), inputs)
    counts = by_block(jnp.ones(n, data.dtype))
    widths = jnp.diff(edges)
    saved = _saved(squares, products) / counts[None]
    share = counts / n
    recoverable_rates = saved @ share
    spread = jnp.sqrt((saved - recoverable_rates[:, None]) ** 2 @ share)
    zs = jr.normal(last_key, data.shape, data.dtype)
    decoding = steadied(jax.vmap(lambda x, z: decoding_cost(noising, score, edges[0], x, z))(data, zs), zs)
    terminal = jax.vmap(lambda x: terminal_kl(noising, prior, edges[-1], x))(data)
    ts = 0.5 * (edges[1:] + edges[:-1])
    return NoiseProfile(
        bound=mean(terminal + paths + decoding),
        terminal=mean(terminal),
        path_kl=mean(paths),
        decoding=mean(decoding),
        recoverable=mean(widths @ saved, weights=counts),
        ts=ts,
        widths=widths,
        log_snr=jax.vmap(noising.log_snr)(ts),
        rates=rates,
        rate_errors=rate_errors,
        recoverable_rates=recoverable_rates,
        recoverable_errors=spread / jnp.sqrt(counts.shape[0] - 1.0),
        factors=factors,
        factor_errors=factor_errors,
    )


class _Look(NamedTuple):
    """What one noised datum shows of the score, per unit time."""

    rate: Scalar
    squares: Float[Array, "feature feature"]
    products: Float[Array, " feature"]


def _look(noising, score, centre, t, x0, z):
    spread, noise2 = jnp.sqrt(noising.variance(t)), noising.noise(t) ** 2
    x = noising.alpha(t) * x0 + spread * z
    s = score(t, x)
    missed = -z / spread - s
    features = jnp.stack([s, x, centre])
    return _Look(
        rate=0.5 * noise2 * jnp.sum(missed**2),
        squares=0.5 * noise2 * features @ features.T,
        products=0.5 * noise2 * features @ missed,
    )


def _saved(squares, products):
    """What the correction that is best on the other blocks of data, and at levels nearby, saves on each block: shape (level, block)."""
    levels = jnp.arange(squares.shape[0])
    near = (jnp.abs(levels[:, None] - levels[None]) <= squares.shape[0] // 20).astype(squares.dtype)
    others = lambda sums: jnp.einsum("lm,mb...->lb...", near, jnp.sum(sums, axis=1, keepdims=True) - sums)

    def best(gram, overlap):
        # Features in units of their own size, and none that the others already span.
        size = jnp.sqrt(jnp.diagonal(gram)) + jnp.finfo(gram.dtype).tiny
        return jnp.linalg.pinv(gram / jnp.outer(size, size), rtol=1e-3, hermitian=True) @ (overlap / size) / size

    fits = jax.vmap(jax.vmap(best))(others(squares), others(products))
    return 2.0 * jnp.sum(fits * products, axis=2) - jnp.einsum("lbi,lbij,lbj->lb", fits, squares, fits)


def _factor(squares, products):
    """The share of itself by which the score is best changed, and its standard error."""
    size = jnp.mean(squares)
    share = jnp.mean(products) / size
    return share, jnp.std(products - share * squares) / size / jnp.sqrt(squares.shape[0])
