r"""Entropy-rate limits of a learned score, from data alone, in any dimension.

Noising $dx = f\,dt + \sigma\,dW$, true score $s$, learned score $s_\theta$, prior $\pi$, times from `start` to `horizon` $= T$; all
averages are over the forward marginals $p_t$, everything is in nats. The limits refer to the data as they are noised at `start`: $S_0$ is
the entropy of $p_{start}$, and a model that undoes the last noise too pays for that step as well (`noise_profile`). A process without noise
at time zero may start there, with any estimate of the divergence but "denoising": the rates hold the learned score, which is finite there,
and not the score of the noise, which is not.

System. $\dot S_\theta = \langle\nabla\cdot f\rangle + \tfrac12\sigma^2\langle\|s_\theta\|^2\rangle$, the rate at which entropy grows as
the learned score sees it; exchange with the medium $-\langle\nabla\cdot f\rangle - \tfrac{2}{\sigma^2}\langle\|f\|^2\rangle$; the
intrinsic rate (entropy production) is the first minus the second. The reverse process exchanges $-(2\pi - \phi)$, twice the
production $\pi$ less the flux $\phi$ out of the forward process: $-2\pi$ for $f = 0$.

Likelihood. $L = -\langle\ln\pi\rangle_T - \int\langle\nabla\cdot f\rangle dt + \tfrac12\int\sigma^2\langle\nabla\cdot s_\theta\rangle dt$
and $B = \tfrac12(S_0 + S_1) - \tfrac12\int\dot S_\theta dt$ obey $L - B = KL(p_T\|\pi) + \tfrac12 D_\theta$ with the path KL
$D_\theta = \tfrac12\int\sigma^2\langle\|s_\theta - s\|^2\rangle dt$. So $B \le L$, with equality for a perfect model.

Guaranteed: $S_0 \le \mathrm{NLL} \le S_0 + KL(p_T\|\pi) + D_\theta$ for the reversed SDE, and the left half for any model. The right-hand
side is $2L + \int\dot S_\theta dt + \langle\ln\pi\rangle_T$, in which both entropies have dropped out. *Not* guaranteed: that $B$ or $L$
bounds the negative log-likelihood of either sampler. With half the true score $B$ exceeds both.

The divergence may be replaced by parts: $\langle\nabla\cdot s_\theta\rangle = \langle s_\theta\cdot z\rangle/\sqrt{v}$ against the
Gaussian kernel of the noising, $x_t = \alpha x_0 + \sqrt{v}\,z$, and $-\langle s_\theta\cdot s\rangle$ against $p_t$ (Stein). All of them
have the same mean.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_scalar, cast
from thermojax._check import check_times, ensure, require
from thermojax.distributions import Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import AbstractNoising, Score
from thermojax.estimators import Estimate, mean
from thermojax.generative._conditional import steadied, stratified
from thermojax.phase import check_configurations

_DIVERGENCES = ("exact", "hutchinson", "denoising", "stein")


class Profile(NamedTuple):
    """A rate at each noise level, per unit time."""

    values: Float[Array, " level"]
    """The rates, averaged over the level."""
    errors: Float[Array, " level"]
    """Their standard errors."""


class EntropyLimits(NamedTuple):
    """What `entropy_limits` measured, in nats per configuration; profiles have one entry per noise level."""

    likelihood: Estimate
    """$L$, the negative log-likelihood averaged over the forward marginals. No bound of either sampler's."""
    ceiling: Estimate
    r"""$S_0 + KL(p_T\|\pi) + D_\theta$, without either entropy. Guaranteed: at or above the entropy of the data and the negative
    log-likelihood of the reversed SDE."""
    system_change: Estimate
    r"""$\int\dot S_\theta dt$, the change of entropy as the learned score sees it."""
    final_entropy: Estimate
    """$S_1$: with `truth` the entropy at `horizon`; otherwise that of the Gaussian of the same moments, at or above it."""
    mismatch: Estimate
    r"""$KL(p_T\|\pi)$, the cross entropy less `final_entropy`: without `truth` at or below the true one."""
    entropy: Estimate
    r"""$S_1 - \int\dot S_\theta dt$, the entropy of the data by the learned score. No bound, and no better than first order: it misses
    $S_0$ by $-\tfrac12\int\sigma^2\langle\|s_\theta\|^2 - \|s\|^2\rangle dt$, of either sign, and by the error of $S_1$."""
    initial_entropy: Estimate | None
    """$S_0$, by `truth` or as given. Guaranteed: at or below the negative log-likelihood of any model. None if not known."""
    bound: Estimate | None
    r"""$B$, guaranteed at or below `likelihood`; *not* a lower bound of the samplers' likelihoods. None without $S_0$."""
    gap: Estimate | None
    r"""$KL(p_T\|\pi) + D_\theta$, ceiling less $S_0$: what the SDE's negative log-likelihood exceeds the entropy by, at most; never
    negative beyond its error. None without $S_0$."""
    path_kl: Estimate | None
    r"""$D_\theta = 2[L - B - KL(p_T\|\pi)]$, from the identity. Too large by what `final_entropy` is too large. None without $S_0$."""
    score_error: Estimate | None
    r"""$D_\theta$ straight from the true score: the check on `path_kl`, with the smaller error. None without `truth`."""
    ts: Float[Array, " level"]
    """The middle of each level's interval of time."""
    widths: Float[Array, " level"]
    """The length of each level's interval."""
    system: Profile
    r"""Entropy rate of the system, $\dot S_\theta$."""
    exchange: Profile
    r"""Entropy rate exchanged with the medium, $-\phi$."""
    intrinsic: Profile
    r"""Rate of entropy production $\pi$, system less exchange."""
    reverse_exchange: Profile
    r"""Entropy rate that the reverse process exchanges, $-(2\pi - \phi)$."""
    likelihood_rate: Profile
    r"""$-\langle\nabla\cdot f\rangle + \tfrac12\sigma^2\langle\nabla\cdot s_\theta\rangle$, the integrand of $L$."""
    score_error_rate: Profile | None = None
    r"""$\tfrac12\sigma^2\langle\|s_\theta - s\|^2\rangle$, the integrand of $D_\theta$. None without `truth`."""


def entropy_limits(
    score: Score,
    noising: AbstractNoising,
    data: ArrayLike,
    *,
    prior: Gaussian | None = None,
    truth: Gaussian | GaussianMixture | None = None,
    entropy: ArrayLike | None = None,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    levels: int = 100,
    edges: ArrayLike | None = None,
    divergence: str = "exact",
    key: Key,
) -> EntropyLimits:
    """Likelihood, bounds, path KL and entropy rates of a score along the noising of `data`.

    Times are stratified as in `noise_profile`: the integrals are unbiased however few levels.

    Args:
        score: ``score(t, x)``, learned or exact.
        noising: The noising process.
        data: Configurations the limits are averaged over, independent of each other, shape ``(sample, dim)``.
        prior: Where generation starts, a Gaussian; the standard normal if omitted.
        truth: Density of the data at time zero, if it is known.
        entropy: Entropy in nats of the data as they are noised at `start`, if it is known but their density is not.
        start: Earliest time.
        horizon: Latest time.
        levels: Number of noise levels.
        edges: Increasing edges of the noise levels, if these are not to be equal intervals of time; in place of the three before.
        divergence: How the divergence of the score is found: "exact", the trace at the cost of `dim` derivatives; "hutchinson", one
            derivative along a random sign vector; "denoising", the noise of the datum times the score, no derivative at all, for starts
            with noise, where the variance is large while the noise is small; "stein", the score times the true score of `truth`.
        key: Random key.

    Returns:
        The limits, in nats per configuration.

    Raises:
        TypeError, ValueError: if shapes or times have no meaning, the divergence asks for what is not there, or both `truth` and
            `entropy` are given.
    """
    data = check_configurations(data, "data")
    require(levels >= 1, "levels", "be at least 1", levels)
    require(divergence in _DIVERGENCES, "divergence", f"be one of {', '.join(map(repr, _DIVERGENCES))}", repr(divergence))
    require(divergence != "stein" or truth is not None, "truth", "be given for the divergence 'stein'", truth)
    require(truth is None or entropy is None, "entropy", "be omitted where `truth` is given", entropy)
    if edges is None:
        edges = jnp.linspace(jnp.asarray(start, data.dtype), jnp.asarray(horizon, data.dtype), levels + 1)
    edges = check_times(edges, data.dtype)
    if divergence == "denoising":
        rule = "be a time at which the process has noise for the divergence 'denoising'"
        edges = ensure(edges, noising.variance(edges[0]) > 0, "start", rule, edges[0])
    if truth is not None:
        dim = (truth.mean if isinstance(truth, Gaussian) else truth.means[0]).shape[0]
        require(dim == data.shape[1], "truth", f"have the dimension of `data`, {data.shape[1]}", dim)
    known = None if entropy is None else as_scalar(jnp.asarray(entropy, data.dtype))
    prior = standard_normal(data.shape[1]) if prior is None else prior
    score, noising, prior, truth = cast((score, noising, prior, truth), data.dtype)
    return _entropy_limits(score, noising, data, prior, truth, known, edges, divergence, key)


class _Rates(NamedTuple):
    """Rates from one noised datum, per unit time."""

    system: Array
    exchange: Array
    likelihood: Array
    ceiling: Array
    error: Array


@eqx.filter_jit
def _entropy_limits(score, noising, data, prior, truth, entropy, edges, divergence, key):
    n = data.shape[0]
    level_key, first_key, last_key = jr.split(key, 3)

    def level(totals, inputs):
        t0, t1, k = inputs
        time_key, noise_key, probe_key = jr.split(jr.fold_in(level_key, k), 3)
        times = t0 + (t1 - t0) * stratified(n, data.dtype, key=time_key)
        zs, probes = jr.normal(noise_key, data.shape, data.dtype), jr.rademacher(probe_key, data.shape, data.dtype)
        at = lambda t, x, z, probe: _rates(noising, score, truth, divergence, t, x, z, probe)
        rates = jax.vmap(at)(times, data, zs, probes)
        system, likelihood, ceiling = (steadied(a, zs) for a in (rates.system, rates.likelihood, rates.ceiling))
        rates = rates._replace(system=system, likelihood=likelihood, ceiling=ceiling)
        intrinsic = system - rates.exchange
        profiles = {
            "system": system,
            "exchange": rates.exchange,
            "intrinsic": intrinsic,
            "reverse_exchange": -2.0 * intrinsic - rates.exchange,
            "likelihood_rate": likelihood,
        }
        if truth is not None:
            profiles["score_error_rate"] = rates.error
        return jax.tree.map(lambda total, rate: total + rate * (t1 - t0), totals, rates), jax.tree.map(_profile, profiles)

    zeros = _Rates(*[jnp.zeros(n, data.dtype)] * 5)
    totals, profiles = lax.scan(level, zeros, (edges[:-1], edges[1:], jnp.arange(edges.shape[0] - 1)))

    zs = jr.normal(last_key, data.shape, data.dtype)
    lasts = _noised(noising, edges[-1], data, zs)
    cross = -jax.vmap(prior.log_prob)(lasts)
    # The mean over these is the entropy, and their spread its error, for the Gaussian of the same moments too.
    final = -jax.vmap(_latest(noising, data, truth, edges[-1]).log_prob)(lasts)
    mismatch, cross, final = (steadied(a, zs) for a in (cross - final, cross, final))
    ceiling = cross + totals.ceiling
    found = {
        "likelihood": cross + totals.likelihood,
        "ceiling": ceiling,
        "system_change": totals.system,
        "final_entropy": final,
        "mismatch": mismatch,
        "entropy": final - totals.system,
    }
    if truth is not None:
        firsts = _noised(noising, edges[0], data, jr.normal(first_key, data.shape, data.dtype))
        initial = -jax.vmap(noising.marginal(truth, edges[0]).log_prob)(firsts)
        found["score_error"] = totals.error
    else:
        initial = None if entropy is None else jnp.full(n, entropy)
    if initial is not None:
        found["initial_entropy"] = initial
        found["bound"] = 0.5 * (initial + final - totals.system)
        found["gap"] = ceiling - initial
        found["path_kl"] = ceiling - initial - mismatch
    # All means at once: each by itself would be compiled by itself.
    means = jax.vmap(mean)(jnp.stack(list(found.values())))
    estimates = {name: jax.tree.map(lambda a, i=i: a[i], means) for i, name in enumerate(found)}
    unknown = dict.fromkeys(("initial_entropy", "bound", "gap", "path_kl", "score_error"))
    return EntropyLimits(**(unknown | estimates), ts=0.5 * (edges[1:] + edges[:-1]), widths=edges[1:] - edges[:-1], **profiles)


def _rates(noising, score, truth, divergence, t, x0, z, probe):
    x = _noised(noising, t, x0, z)
    half_noise, spread = 0.5 * noising.noise(t) ** 2, jnp.sqrt(noising.variance(t))
    learned = score(t, x)
    exact = jnp.zeros_like(x) if truth is None else noising.marginal(truth, t).score(x)
    if divergence == "exact":
        stretch = jnp.trace(jax.jacfwd(lambda y: score(t, y))(x))
    elif divergence == "hutchinson":
        stretch = jnp.sum(probe * jax.jvp(lambda y: score(t, y), (x,), (probe,))[1])
    elif divergence == "denoising":
        stretch = jnp.sum(learned * z) / spread
    else:
        stretch = -jnp.sum(learned * exact)
    # The drift is linear: its divergence does not depend on the place, and its mean square over the noise is known.
    slopes = noising.drift(t, jnp.ones_like(x))
    expansion = jnp.sum(slopes)
    square = jnp.sum(noising.drift(t, noising.alpha(t) * x0) ** 2 + (spread * slopes) ** 2)
    energy, stretch = half_noise * jnp.sum(learned**2), half_noise * stretch
    return _Rates(
        system=expansion + energy,
        exchange=-expansion - square / half_noise,
        likelihood=stretch - expansion,
        ceiling=2.0 * stretch + energy - expansion,
        error=half_noise * jnp.sum((learned - exact) ** 2),
    )


def _noised(noising, t, x0, z):
    return noising.alpha(t) * x0 + jnp.sqrt(noising.variance(t)) * z


def _latest(noising, data, truth, t):
    """The density at time t: the true one, or the Gaussian of the moments of the noised data."""
    if truth is not None:
        return noising.marginal(truth, t)
    spread = data - jnp.mean(data, axis=0)[None]
    covariance = spread.T @ spread / data.shape[0]
    noise = noising.variance(t) * jnp.eye(data.shape[1], dtype=data.dtype)
    return Gaussian(noising.alpha(t) * jnp.mean(data, axis=0), noising.alpha(t) ** 2 * covariance + noise)


def _profile(rates):
    return Profile(jnp.mean(rates), jnp.std(rates) / jnp.sqrt(rates.shape[0]))
