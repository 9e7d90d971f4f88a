r"""The audit of a score model as a nonequilibrium process.

The noising process and the learned denoising process are two path measures on the same trajectories. Given one datum their
Kullback-Leibler divergence splits into a terminal mismatch (the prior is not the noised datum) and the conditional path KL,
$\int\tfrac12\sigma_t^2\langle\lVert s_\theta - \nabla\ln p(x_t|x_0)\rVert^2\rangle dt$; with the last step that undoes the noise of
the earliest time they bound the negative log-likelihood from above (the ELBO). Averaged over the data the conditional path KL is
the score error, zero for a perfect score, plus a part that is the data's own. Memorisation shows as a path KL that is lower on the
training data than on held-out data, noise level by noise level.

Entropy rates along the noising, with drift $f$ and $s_\theta$ in the place of the score: the system's, $\langle\nabla\cdot f\rangle
+ \tfrac12\sigma^2\langle\lVert s_\theta\rVert^2\rangle$; the exchange with the medium, $-\langle\nabla\cdot f\rangle -
\tfrac{2}{\sigma^2}\langle\lVert f\rVert^2\rangle$; the intrinsic rate (entropy production) is the first minus the second.

Everything is in nats.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import Scalar
from thermojax._check import check_times, ensure, require
from thermojax.distributions import Gaussian, standard_normal
from thermojax.dynamics import AbstractNoising, Reversed, Score
from thermojax.ensemble import accumulate
from thermojax.estimators import Estimate, mean
from thermojax.functionals import BackwardRatio
from thermojax.generative._sampling import Ancestral
from thermojax.phase import check_configurations
from thermojax.steppers import AbstractStepper, ExactLinear


class Audit(NamedTuple):
    """What `audit` measured, in nats per configuration; profiles have one entry per noise level."""

    bound: Estimate
    """Upper bound on the negative log-likelihood: the sum of the next three."""
    terminal: Estimate
    """Mismatch of the prior, KL of the noised datum from it."""
    path_kl: Estimate
    """Conditional path KL between the earliest and the latest time."""
    decoding: Estimate
    """Cost of the last step, which undoes the noise of the earliest time."""
    ts: Float[Array, " level"]
    """The middle of each level's interval of time."""
    widths: Float[Array, " level"]
    """The length of each level's interval."""
    rates: Float[Array, " level"]
    """Conditional path KL per unit time."""
    rate_errors: Float[Array, " level"]
    """Its standard errors."""
    system: Float[Array, " level"]
    """Entropy rate of the system as the learned score sees it."""
    exchange: Float[Array, " level"]
    """Entropy rate exchanged with the medium."""
    intrinsic: Float[Array, " level"]
    """Rate of entropy production."""


def audit(
    score: Score,
    noising: AbstractNoising,
    data: ArrayLike,
    *,
    prior: Gaussian | None = None,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    levels: int = 100,
    key: Key,
) -> Audit:
    """Bound on the likelihood of `data`, its split by noise level, and the entropy rates along the noising.

    Times are stratified: in each of `levels` equal intervals every datum has one random time, so that the integral is unbiased however few
    levels.

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
        The audit, in nats per configuration.
    """
    data = check_configurations(data)
    require(levels >= 1, "levels", "be at least 1", levels)
    edges = check_times(jnp.linspace(jnp.asarray(start, data.dtype), jnp.asarray(horizon, data.dtype), levels + 1))
    edges = _check_noise(noising, edges, "start")
    prior = standard_normal(data.shape[1]) if prior is None else prior
    return _audit(score, noising, data, prior, edges, key)


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
    it is the bound of DDPM. It exceeds that of `audit` by the discretisation error of the sampler.

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
    ts = _check_noise(noising, ts.astype(data.dtype), "ts[0]")
    prior = standard_normal(data.shape[1]) if prior is None else prior
    first_key, path_key = jr.split(key)
    zs = jr.normal(first_key, data.shape, data.dtype)
    x0s = noising.alpha(ts[0]) * data + jnp.sqrt(noising.variance(ts[0])) * zs
    backward = Reversed(noising, score, ts[-1])
    ratio = BackwardRatio(backward, ts[-1], Ancestral() if stepper is None else stepper)
    x1s, totals = accumulate(ratio, noising, x0s, ts, stepper=ExactLinear(), key=path_key)
    decoded = eqx.filter_jit(jax.vmap(lambda x, z: _decoding(noising, score, ts[0], x, z)))(data, zs)
    # The first noising is a step of the forward chain like the others.
    first = jax.vmap(Gaussian(jnp.zeros_like(data[0]), noising.variance(ts[0])).log_prob)(jnp.sqrt(noising.variance(ts[0])) * zs)
    return mean(first + totals + decoded - jax.vmap(prior.log_prob)(x1s))


@eqx.filter_jit
def _audit(score, noising, data, prior, edges, key):
    n, dim = data.shape
    level_key, last_key = jr.split(key)

    def level(totals, inputs):
        t0, t1, k = inputs
        time_key, shift_key, noise_key = jr.split(jr.fold_in(level_key, k), 3)
        # Every datum its own time: the n times of a level are themselves stratified, in random order.
        shares = (jr.permutation(time_key, n).astype(data.dtype) + jr.uniform(shift_key, (), data.dtype)) / n
        zs = jr.normal(noise_key, data.shape, data.dtype)
        rates, system, exchange = jax.vmap(lambda t, x, z: _rates(noising, score, t, x, z))(t0 + (t1 - t0) * shares, data, zs)
        # At one end all is noise, at the other the score knows nothing of it: its known mean square steadies both rates.
        surplus = jnp.sum(zs**2, axis=1) - dim
        rates, system = _steadied(rates, surplus), _steadied(system, surplus)
        found = (jnp.mean(rates), jnp.mean(system), jnp.mean(exchange), jnp.std(rates) / jnp.sqrt(n))
        return totals + rates * (t1 - t0), found

    inputs = (edges[:-1], edges[1:], jnp.arange(edges.shape[0] - 1))
    paths, (rates, system, exchange, errors) = lax.scan(level, jnp.zeros(n, data.dtype), inputs)
    zs = jr.normal(last_key, data.shape, data.dtype)
    decoding = jax.vmap(lambda x, z: _decoding(noising, score, edges[0], x, z))(data, zs)
    terminal = jax.vmap(lambda x: _terminal(noising, prior, edges[-1], x))(data)
    return Audit(
        bound=mean(terminal + paths + decoding),
        terminal=mean(terminal),
        path_kl=mean(paths),
        decoding=mean(decoding),
        ts=0.5 * (edges[1:] + edges[:-1]),
        widths=edges[1:] - edges[:-1],
        rates=rates,
        rate_errors=errors,
        system=system,
        exchange=exchange,
        intrinsic=system - exchange,
    )


def _rates(noising, score, t, x0, z) -> tuple[Scalar, Scalar, Scalar]:
    """Conditional path KL and the entropy rates of system and medium, per unit time, from one noised datum."""
    spread = jnp.sqrt(noising.variance(t))
    x = noising.alpha(t) * x0 + spread * z
    s, noise2 = score(t, x), noising.noise(t) ** 2
    expansion = jnp.sum(noising.drift(t, jnp.ones_like(x)))
    # The drift is linear: its mean square over the noise is known.
    square = jnp.sum(noising.drift(t, noising.alpha(t) * x0) ** 2 + (spread * noising.drift(t, jnp.ones_like(x))) ** 2)
    rate = 0.5 * noise2 * jnp.sum((s + z / spread) ** 2)
    return rate, expansion + 0.5 * noise2 * jnp.sum(s**2), -expansion - 2.0 / noise2 * square


def _steadied(values, control):
    """`values` less their regression on a control of mean zero: the same mean, to order one over their number, and less spread."""
    slope = jnp.sum(control * (values - jnp.mean(values))) / jnp.sum(control**2)
    return values - slope * control


def _terminal(noising, prior, t, x0):
    """KL of the noised datum from a Gaussian prior."""
    mean, variance = noising.alpha(t) * x0, noising.variance(t)
    cross = -prior.log_prob(mean) - 0.5 * variance * jnp.trace(jax.jacfwd(prior.score)(mean))
    return cross - 0.5 * x0.shape[0] * (1.0 + jnp.log(2 * jnp.pi * variance))


def _decoding(noising, score, t, x0, z):
    """-ln N(x0; denoised, v / alpha^2): what the last step costs, from one noised datum."""
    spread = jnp.sqrt(noising.variance(t))
    missed = z + spread * score(t, noising.alpha(t) * x0 + spread * z)
    log_scale = jnp.log(spread) - noising.log_alpha(t)
    return 0.5 * jnp.sum(missed**2) + x0.shape[0] * (log_scale + 0.5 * jnp.log(2 * jnp.pi))


def _check_noise(noising, ts, name):
    rule = "be a time at which the process has noise: the bound starts there"
    return ensure(ts, noising.variance(ts[0]) > 0, name, rule, ts[0])
