"""The audit of a score model: what it costs, where, why, and what to change.

`audit` puts together what the other functions of this package measure one by one: the bound on the likelihood and its split by noise
level (`noise_profile`), the entropy-rate limits (`entropy_limits`), the likelihood of the probability flow (`flow_log_prob`) and of the
very sampler (`importance_nll`), and the bounds of samplers with fewer steps (`kernel_terms`). `print` it to read it.

Everything is in nats per configuration.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import cast
from thermojax._check import require
from thermojax.distributions import Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import AbstractNoising, cut_ends, Score
from thermojax.estimators import Estimate, mean
from thermojax.generative._diagnosis import diagnose, in_words
from thermojax.generative._importance import importance_nll, ImportanceNll
from thermojax.generative._kernel_terms import kernel_terms, KernelTerms
from thermojax.generative._likelihood import flow_log_prob
from thermojax.generative._limits import entropy_limits, EntropyLimits
from thermojax.generative._parameterisations import check_score
from thermojax.generative._profile import noise_profile, NoiseProfile
from thermojax.generative._sampling import log_snr_grid
from thermojax.phase import check_configurations

# Data whose noised density is compared with the prior: their number squared is the cost.
_NEIGHBOURS = 2000


class Memorised(NamedTuple):
    """What the model knows of its training data and of no others, in nats."""

    total: Estimate
    """Conditional path KL of the data less that of the training data."""
    rates: Float[Array, " level"]
    """The same per unit time, level by level."""
    rate_errors: Float[Array, " level"]
    """Its standard errors."""
    seen: NoiseProfile
    """The profile of the training data."""


class Audit(NamedTuple):
    """What `audit` measured, in nats per configuration; ``print`` it to read it."""

    faults: tuple[str, ...]
    """What is wrong, how much it costs and what to change, in sentences. Empty if nothing is."""
    remarks: tuple[str, ...]
    """What else there is to say: step budgets, the two likelihoods, ends of the schedule that were cut."""
    profile: NoiseProfile
    """The bound on the negative log-likelihood, level by level, and the part that is certainly error of the score."""
    limits: EntropyLimits
    """Entropy rates and the limits that they set."""
    flow: Estimate
    """Negative log-likelihood by the probability flow."""
    sampler: ImportanceNll
    """Negative log-likelihood of the stochastic sampler with the largest step budget."""
    excess: Estimate
    """Negative log-likelihood of the flow less that of the sampler, datum by datum: most of the spread of the two is common to them."""
    budgets: tuple[KernelTerms, ...]
    """The bound of a sampler for each step budget, step by step, and what each step loses to discretisation."""
    mismatch: Estimate
    r"""Cost of the prior, $KL(p_T\|\pi)$. Without `truth` the larger of two lower bounds: by the Gaussian of the same moments, and by the
    density that the other data, noised, make for each."""
    memorised: Memorised | None
    """What was memorised; None without the training data."""
    ts: Float[Array, " two"]
    """The earliest and the latest time, inside the singular ends of the schedule."""

    def __str__(self):
        return in_words(self)


def audit(
    score: Score,
    noising: AbstractNoising,
    data: ArrayLike,
    *,
    trained_on: ArrayLike | None = None,
    truth: Gaussian | GaussianMixture | None = None,
    entropy: ArrayLike | None = None,
    prior: Gaussian | None = None,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    levels: int = 100,
    budgets: Sequence[int] = (16, 64, 256),
    likelihoods: int = 64,
    particles: int = 16,
    divergence: str | None = None,
    tolerance: float = 0.01,
    key: Key,
) -> Audit:
    """Measure a score model on `data`, and say in plain words what is wrong with it and what to change.

    Singular ends of the schedule are cut, and the remarks say where. The score is called about ``sample * (2 * levels + 2 * sum(budgets))
    + likelihoods * particles * max(budgets)`` times, and as often as the probability flow needs for `likelihoods` data.

    Args:
        score: ``score(t, x)`` for one configuration: any callable. `Predicted` makes one of a model that predicts noise, data or velocity;
            `from_torch` of a PyTorch model.
        noising: The noising process that the model was trained with.
        data: Configurations that it should know, independent of each other, shape ``(sample, dim)``; best such that training has not seen.
        trained_on: The training data, to see what was memorised.
        truth: Density of the data at time zero, where it is known.
        entropy: Entropy in nats of the data, where it is known and their density is not.
        prior: Where generation starts, a Gaussian; the standard normal if omitted.
        start: Earliest time.
        horizon: Latest time.
        levels: Number of noise levels.
        budgets: Numbers of steps a sampler may take, at equal steps of the log signal-to-noise ratio.
        likelihoods: How many of the data the two likelihoods are found for.
        particles: Noising paths for each of them, for the likelihood of the sampler.
        divergence: "exact" or "hutchinson", for the flow and the limits; exact up to 16 dimensions if omitted.
        tolerance: The loss in nats per dimension from which on it counts as a fault; it must also be above four standard errors.
        key: Random key.

    Raises:
        TypeError, ValueError: if shapes have no meaning, the score is not finite at some noise level (the message names it) or has another
            dimension than the data, or no usable interval of time is left.
    """
    data = _finite(check_configurations(data, "data"), "data")
    require(data.shape[0] >= 2, "data", "be at least two configurations", data.shape[0])
    seen = None if trained_on is None else _seen(trained_on, data)
    require(levels >= 1, "levels", "be at least 1", levels)
    require(particles >= 1, "particles", "be at least 1", particles)
    require(len(budgets) >= 1 and min(budgets) >= 1, "budgets", "be at least one number of steps, each at least 1", budgets)
    require(likelihoods >= 2, "likelihoods", "be at least 2", likelihoods)
    require(tolerance > 0, "tolerance", "be positive", tolerance)
    require(divergence in (None, "exact", "hutchinson"), "divergence", "be 'exact' or 'hutchinson'", repr(divergence))
    dim = data.shape[1]
    # Generation has its own clock, T - t: in single precision it cannot tell times much earlier than this from zero.
    earliest = 18.0 if data.dtype == jnp.float64 else 10.0
    ends = cut_ends(noising, jnp.asarray(start, data.dtype), jnp.asarray(horizon, data.dtype), log_snr=(-18.0, earliest))
    score, noising, origin = cast((score, noising, standard_normal(dim) if prior is None else prior), data.dtype)
    require(origin.mean.shape == (dim,), "prior", f"have the dimension of `data`, {dim}", f"shape {origin.mean.shape}")
    edges = check_score(score, noising, data, log_snr_grid(noising, ends.start, ends.horizon, levels))
    trace = divergence or ("exact" if dim <= 16 else "hutchinson")
    start, horizon = ends.start, ends.horizon
    keys = jr.split(key, 7)

    look = lambda xs, k: noise_profile(score, noising, xs, prior=origin, start=start, horizon=horizon, levels=levels, key=k)
    limits = entropy_limits(score, noising, data, prior=origin, truth=truth, entropy=entropy, edges=edges, divergence=trace, key=keys[1])
    profile = look(data, keys[0])
    few = data[:likelihoods]
    shrunk = noising.alpha(start) * few
    flow = flow_log_prob(noising, score, shrunk, prior=origin, divergence=trace, start=start, horizon=horizon, key=keys[2])
    flow = -flow - dim * noising.log_alpha(start)
    grids = [log_snr_grid(noising, start, horizon, steps) for steps in sorted(budgets)]
    terms = tuple(kernel_terms(score, noising, data, grid, prior=origin, key=keys[3]) for grid in grids)
    sampler = importance_nll(score, noising, few, grids[-1], particles=particles, prior=origin, key=keys[4])
    mismatch = limits.mismatch
    if truth is None:
        others = mean(_mismatch(noising, origin, data[:_NEIGHBOURS], horizon, keys[6]))
        # Only where it is larger beyond doubt: the larger of two noisy numbers would be too large.
        clear = float(others.value - mismatch.value) > 4 * float(jnp.hypot(others.stderr, mismatch.stderr))
        mismatch = others if clear else mismatch
    memorised = None if seen is None else _memorised(profile, look(seen, keys[5]))
    found = Audit(
        faults=(),
        remarks=ends.notes,
        profile=profile,
        limits=limits,
        flow=mean(flow),
        sampler=sampler,
        excess=mean(flow - sampler.nlls),
        budgets=terms,
        mismatch=mismatch,
        memorised=memorised,
        ts=jnp.stack([start, horizon]),
    )
    faults, remarks = diagnose(found, dim, tolerance, jax.vmap(noising.log_snr))
    return found._replace(faults=faults, remarks=remarks + ends.notes)


@eqx.filter_jit
def _mismatch(noising, prior, data, t, key):
    """The log-ratio at each noised datum of the density that all other data make to the prior."""
    n, dim = data.shape
    variance = noising.variance(t)
    xs = noising.alpha(t) * data + jnp.sqrt(variance) * jr.normal(key, data.shape, data.dtype)
    centres, size = noising.alpha(t) * data, lambda a: jnp.sum(a**2, axis=1)
    # By one product of matrices: all differences at once would not fit into memory for images.
    squares = size(xs)[:, None] + size(centres)[None] - 2.0 * xs @ centres.T
    logs = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, -0.5 * squares / variance)
    densities = logsumexp(logs, axis=1) - math.log(n - 1) - 0.5 * dim * jnp.log(2 * jnp.pi * variance)
    return densities - jax.vmap(prior.log_prob)(xs)


def _seen(trained_on, data):
    seen = check_configurations(trained_on, "trained_on").astype(data.dtype)
    require(seen.shape[1] == data.shape[1], "trained_on", f"have the dimension of `data`, {data.shape[1]}", f"shape {seen.shape}")
    require(seen.shape[0] >= 2, "trained_on", "be at least two configurations", seen.shape[0])
    return _finite(seen, "trained_on")


def _finite(xs, name):
    bad = int(np.sum(~np.isfinite(np.asarray(xs)).all(axis=1)))
    require(bad == 0, name, "be finite", f"{bad} of {xs.shape[0]} configurations that are not")
    return xs


def _memorised(unseen: NoiseProfile, seen: NoiseProfile) -> Memorised:
    return Memorised(
        _difference(unseen.path_kl, seen.path_kl),
        unseen.rates - seen.rates,
        jnp.hypot(unseen.rate_errors, seen.rate_errors),
        seen,
    )


def _difference(a: Estimate, b: Estimate) -> Estimate:
    """The difference of two independent means."""
    return a._replace(
        value=a.value - b.value,
        stderr=jnp.hypot(a.stderr, b.stderr),
        ess=jnp.minimum(a.ess, b.ess),
        trustworthy=a.trustworthy & b.trustworthy,
    )
