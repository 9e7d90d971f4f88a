r"""The path KL of a sampler that takes given steps, and the grid on which it is least.

Noising $Q$ of the data and generation $P$ from a prior $\pi$ are two measures of the same chain at the times $t_0 < \dots < t_N$, with
$Q$ seen backwards. Kernel by kernel, in nats,

$\mathrm{KL}(Q\Vert P) = \mathrm{KL}(p_{t_N}\Vert\pi) + \sum_k\langle\mathrm{KL}(q(x_{k-1}|x_k)\Vert p_\theta(x_{k-1}|x_k))\rangle \ge
\mathrm{KL}(p_{t_0}\Vert p_\theta)$,

discretisation and score error together. The kernels $q(x_{k-1}|x_k)$ are no Gaussians, and are not needed: given the datum they are, so
that a step costs the average of $\mathrm{KL}(q(x_{k-1}|x_k, x_0)\Vert p_\theta)$, a term of `kernel_terms`, less $I(x_0; x_{k-1}) -
I(x_0; x_k)$, what the step reveals of the datum whatever the sampler does. The revealed information adds up to that of the two ends. So

conditional bound (without decoding) = path KL + $I(x_0; x_{t_0})$,

and grids between the same ends rank alike by either. On the line all of it is quadrature, without noise, and differentiable with respect
to the times; in more dimensions it is an average over noised data, one noise for all times.
"""

import functools as ft
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, cast, Scalar
from thermojax._check import check_times, require
from thermojax.distributions import as_mixture, Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import AbstractNoising, Reversed, Score
from thermojax.generative._conditional import check_noise, shared_times, steadied
from thermojax.generative._denoising import (
    check_variance,
    costs,
    denoising_profile,
    drawn,
    Draws,
    dynamic_grid,
    length_grid,
    noise_error,
    posterior_variance,
)
from thermojax.generative._entropy import points
from thermojax.generative._grids import level_ends, times_at
from thermojax.generative._sampling import Ancestral
from thermojax.generative._scores import score_to_data
from thermojax.optimize import fit
from thermojax.steppers import AbstractGaussianStepper, AbstractStepper, with_density


class PathKL(NamedTuple):
    """What `path_kl` computed, in nats; profiles have one entry per step, the cleanest first."""

    total: Scalar
    """The path KL: the sum of `terminal` and `steps`."""
    terminal: Scalar
    """Mismatch of the prior, KL of the noised data from it."""
    steps: Float[Array, " step"]
    """What each step adds: discretisation and error of the score; by quadrature never negative, beyond rounding."""
    conditional: Float[Array, " step"]
    """The same given the datum, as in `kernel_terms`."""
    information: Float[Array, " time"]
    """Mutual information of datum and noised datum at each time: `conditional` less its differences is `steps`."""
    total_error: Scalar
    """Standard error of `total`; zero by quadrature."""
    step_errors: Float[Array, " step"]
    """Standard errors of `steps`; zero by quadrature."""


class OptimisedGrid(NamedTuple):
    """What `optimise_grid` found."""

    ts: Float[Array, " time"]
    """Increasing times, the ends included."""
    cost: Scalar
    """Conditional cost of its steps on the data it was made for, in nats: judge it on others."""
    history: Float[Array, " iteration"]
    """That cost before each gradient step; empty by dynamic programming."""


def path_kl(
    score: Score,
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    ts: ArrayLike,
    *,
    prior: Gaussian | None = None,
    stepper: AbstractStepper | None = None,
    samples: int | None = None,
    key: Key | None = None,
) -> PathKL:
    """The path KL of noising and generation in the steps `ts`, for data of known density.

    Args:
        score: ``score(t, x)``, learned or exact.
        noising: The noising process; its noise must not vanish at ``ts[0]``.
        data: The density of the data.
        ts: Increasing times of the forward process. By quadrature the result is a smooth function of them.
        prior: Where generation starts, a Gaussian; the standard normal if omitted.
        stepper: Gaussian kernel of the denoising chain, with the same spread in all coordinates; `Ancestral` if omitted.
        samples: Configurations to average over. If omitted, quadrature, in one dimension only.
        key: Random key, for samples only; the same key gives the same draws, so that grids compare with less noise than either has.

    Raises:
        TypeError, ValueError: if the times do not increase, there is no noise at ``ts[0]``, the density of `stepper` is unknown, or samples
            or their key are missing.
    """
    mixture = as_mixture(data)
    _, draws = drawn(mixture, samples, key)
    ts = check_noise(noising, check_times(ts, mixture.means.dtype), "ts[0]")
    prior = standard_normal(mixture.means.shape[1]) if prior is None else prior
    gaussian = with_density(Ancestral() if stepper is None else stepper)
    gaussian.check(Reversed(noising, score, ts[-1]), (ts[-1] - ts)[::-1], mixture.means)
    chain = _path_kl if draws is None else _sampled_path_kl
    return chain(score, noising, mixture, draws, prior, gaussian, ts)


def optimise_grid(
    score: Score,
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture | ArrayLike,
    steps: int,
    *,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    method: str = "dynamic",
    variance: str = "posterior",
    levels: int = 513,
    iterations: int = 500,
    samples: int | None = None,
    key: Key | None = None,
) -> OptimisedGrid:
    """The times between `start` and `horizon` at which a sampler of so many steps has the least path KL.

    Dynamic programming is the default: it needs the score at `levels` noise levels once, for any number of steps (`denoising_profile`
    and `dynamic_grid` are its two halves), has no rate to tune, and cannot end in a local optimum. Gradient descent moves the times
    freely, through the shares of the intervals in the log signal-to-noise ratio, from `length_grid` on; it calls the score at every
    iteration. On data of known density in one dimension both work on exact costs.

    Args:
        score: ``score(t, x)``, learned or exact.
        noising: The noising process.
        data: The density of the data, or configurations, shape ``(sample, dim)``.
        steps: Number of steps, one less than that of the times.
        start: Earliest time, at which there is noise.
        horizon: Latest time.
        method: "dynamic" or "gradient".
        variance: "posterior", the variance of `Ancestral`, or "optimal", that of `Calibrated`.
        levels: Candidates, and the levels of the profile from which gradient descent starts.
        iterations: Gradient steps (Adam).
        samples: Configurations to draw from a density. If omitted, quadrature, in one dimension only.
        key: Random key, for configurations and samples; the noise is the same for all times and iterations.

    Raises:
        ValueError: if the log signal-to-noise ratio is not finite at both ends, a choice is unknown, samples or a key are missing, or the
            descent meets an error of the score, or a slope of one, that is not finite.
    """
    require(method in ("dynamic", "gradient"), "method", "be 'dynamic' or 'gradient'", repr(method))
    check_variance(variance)
    require(iterations >= 1, "iterations", "be at least 1", iterations)
    profile = denoising_profile(score, noising, data, start=start, horizon=horizon, levels=levels, samples=samples, key=key)
    # The very draws of the profile: both halves see one problem.
    mixture, draws = drawn(data, samples, key)
    if draws is not None:
        score, noising, mixture = cast((score, noising, mixture), draws.x0s.dtype)
        start, horizon = (t.astype(draws.x0s.dtype) for t in (as_float(start), as_float(horizon)))
    loss = _GridCost(score, noising, mixture, draws, *level_ends(noising, start, horizon), profile.dim, variance)
    # One step leaves nothing to move.
    if method == "dynamic" or steps == 1:
        ts = dynamic_grid(profile, steps, variance=variance)
        return OptimisedGrid(ts, _evaluate(loss, _levels_of(noising, ts)), jnp.zeros(0, ts.dtype))
    first = _levels_of(noising, length_grid(profile, steps, variance=variance))
    shares = _Shares(jnp.log(first[:-1] - first[1:]))
    rule = "have finite errors, with finite slopes in time"
    try:
        # The loss owns its noise: the key of the fit is never read.
        found = fit(loss, shares, optimizer=_adam(iterations), steps=iterations, every=iterations, key=jr.key(0))
    except eqx.EquinoxRuntimeError as error:
        # Root finding refuses slopes that are not finite before the descent can.
        raise ValueError(f"`score` must {rule}, got a descent that diverged.") from error
    require(found.stopped != "diverged", "score", rule, "a descent that diverged")
    best = loss.levels(found.model)
    return OptimisedGrid(times_at(noising, best, loss.start, loss.horizon), _evaluate(loss, best), found.history)


@ft.cache
def _adam(iterations: int) -> optax.GradientTransformation:
    """One optimiser for all descents of a length: another one would compile again."""
    return optax.adam(optax.cosine_decay_schedule(0.05, iterations))


class _Shares(eqx.Module):
    logits: Array


class _GridCost(eqx.Module):
    """The conditional cost of a grid given by the shares of its intervals in the log signal-to-noise ratio."""

    score: Score
    noising: AbstractNoising
    mixture: GaussianMixture | None
    draws: Draws | None
    start: Scalar
    horizon: Scalar
    ends: Array
    dim: Scalar
    variance: str = eqx.field(static=True)

    def __call__(self, shares: _Shares, key: Key) -> Scalar:
        return self.of(self.levels(shares))

    def levels(self, shares):
        inner = self.ends[0] + (self.ends[1] - self.ends[0]) * jnp.cumsum(jax.nn.softmax(shares.logits))[:-1]
        return jnp.concatenate([self.ends[:1], inner, self.ends[1:]])

    def of(self, levels):
        ts = times_at(self.noising, levels, self.start, self.horizon)
        at = lambda t: noise_error(self.score, self.noising, self.mixture, self.draws, t)[0]
        # Reverse mode keeps the score of one time alone.
        errors = lax.map(jax.checkpoint(at), ts[1:])
        return jnp.sum(costs(levels, jnp.concatenate([errors[:1], errors]), self.dim, self.variance))


@eqx.filter_jit
def _evaluate(loss, levels):
    return loss.of(levels)


@eqx.filter_jit
def _levels_of(noising, ts):
    return jax.vmap(noising.log_snr)(ts)


@eqx.filter_jit
def _path_kl(score, noising, mixture, draws, prior, stepper, ts):
    ts = shared_times(ts)
    backward = Reversed(noising, score, ts[-1])

    def step(inputs):
        t0, t1 = inputs
        density = noising.marginal(mixture, t1)
        xs, weights = points(density, None, None)
        centres = jax.vmap(lambda x: score_to_data(noising, t1, x, density.score(x)))(xs)
        variances = jax.vmap(lambda x: posterior_variance(noising, mixture, t1, x))(xs)
        return weights @ jax.vmap(lambda x, c, u: _kernel_cost(stepper, backward, t0, t1, x, c, u))(xs, centres, variances)

    def information(t):
        density = noising.marginal(mixture, t)
        xs, weights = points(density, None, None)
        return -weights @ jax.vmap(density.log_prob)(xs) - 0.5 * (1.0 + jnp.log(2 * jnp.pi * noising.variance(t)))

    conditional, revealed = lax.map(step, (ts[:-1], ts[1:])), lax.map(information, ts)
    last = noising.marginal(mixture, ts[-1])
    xs, weights = points(last, None, None)
    terminal = weights @ jax.vmap(lambda x: last.log_prob(x) - prior.log_prob(x))(xs)
    steps = conditional + jnp.diff(revealed)
    return PathKL(
        total=terminal + jnp.sum(steps),
        terminal=terminal,
        steps=steps,
        conditional=conditional,
        information=revealed,
        total_error=jnp.zeros_like(terminal),
        step_errors=jnp.zeros_like(steps),
    )


@eqx.filter_jit
def _sampled_path_kl(score, noising, mixture, draws, prior, stepper, ts):
    ts = shared_times(ts)
    backward = Reversed(noising, score, ts[-1])
    (x0s, zs), (n, dim) = draws, draws.x0s.shape
    noised = lambda t: noising.alpha(t) * x0s + jnp.sqrt(noising.variance(t)) * zs
    kept = lambda t: -0.5 * jnp.sum(zs**2, axis=1) - 0.5 * dim * jnp.log(2 * jnp.pi * noising.variance(t))
    information = lambda t: kept(t) - jax.vmap(noising.marginal(mixture, t).log_prob)(noised(t))

    def step(carry, times):
        (total, before), (t0, t1) = carry, times
        zero = jnp.zeros_like(t1)
        cost = jax.vmap(lambda x, c: _kernel_cost(stepper, backward, t0, t1, x, c, zero))(noised(t1), x0s)
        after = information(t1)
        added = steadied(cost - before + after, zs)
        return (total + added, after), (jnp.mean(cost), jnp.mean(added), jnp.std(added) / jnp.sqrt(n), jnp.mean(after))

    first = information(ts[0])
    (total, _), (conditional, steps, errors, later) = lax.scan(step, (jnp.zeros_like(first), first), (ts[:-1], ts[1:]))
    xs = noised(ts[-1])
    terminal = jax.vmap(noising.marginal(mixture, ts[-1]).log_prob)(xs) - jax.vmap(prior.log_prob)(xs)
    total = total + terminal
    return PathKL(
        total=jnp.mean(total),
        terminal=jnp.mean(terminal),
        steps=steps,
        conditional=conditional,
        information=jnp.concatenate([jnp.mean(first)[None], later]),
        total_error=jnp.std(total) / jnp.sqrt(n),
        step_errors=errors,
    )


def _kernel_cost(
    stepper: AbstractGaussianStepper,
    backward: Reversed,
    t0: Scalar,
    t1: Scalar,
    x1: Float[Array, " dim"],
    centre: Float[Array, " dim"],
    variance: Scalar,
) -> Scalar:
    r"""KL of $q(x_{t_0}|x_{t_1}, x_0)$ from the denoising kernel, averaged over data of this mean, and of this variance in all."""
    noising: AbstractNoising = backward.forward  # pyright: ignore[reportAssignmentType]
    (factor, added), before, after = noising.transition(t0, t1), noising.variance(t0), noising.variance(t1)
    pull = noising.alpha(t0) * added / after
    increment, spread = stepper.increment(backward, backward.horizon - t1, backward.horizon - t0, x1)
    assert isinstance(spread, Array)
    require(spread.ndim == 0, "stepper", "have the same spread in all coordinates", f"shape {spread.shape}")
    # The posterior's mean less x1, written without the difference of the two.
    exact = pull * centre + (factor * before * (1.0 - factor) - added) / after * x1
    log_ratio = jnp.log(before * added / after / spread**2)
    square = (jnp.sum((increment - exact) ** 2) + pull**2 * variance) / spread**2
    return 0.5 * (square + x1.shape[0] * (jnp.expm1(log_ratio) - log_ratio))
