r"""The work of generation.

Generation runs from the prior $\pi$ at $T$ to $t_0$ by the learned kernels $K$, and ends in a landscape of reduced potential $u_t$, where
$e^{-u_{t_0}}$, of normaliser $Z_0$, is what it should make. Everything is written in the direction of generation. The noising kernels
$L$ are the reversed protocol, so that the reduced work is

$Y = u_{t_0}(x_0) + \ln\pi(x_T) + \sum_k[\ln K_k(x_{k-1}|x_k) - \ln L_k(x_k|x_{k-1})]$

and the free-energy difference $\Delta F = -\ln Z_0 + \ln Z_T$ with $Z_T = 1$, since $\pi$ is normalised. At every step and for every
score $\langle e^{-Y}\rangle = Z_0/Z_T$, and the excess $\langle Y\rangle - \Delta F$ is the divergence of the generated paths from the
noising of $e^{-u_{t_0}}/Z_0$: not negative, and zero only for the exact reversal. With the exact score it is the discretisation error of
the kernels. In continuous time $Y$ is the work of an escorted protocol: generation is no relaxation in $u_t$, and what the kernels add to
the switching of the protocol keeps the balance.

A published form (eqs. 7.27 to 7.29 of the note on stochastic thermodynamics of generative models by SDEs) takes $Y$ in one direction and
$\Delta F$ in the other; its excess can be negative. Everything is dimensionless, $k_B = 1$.

Reference:
    S. Vaikuntanathan, C. Jarzynski, Phys. Rev. Lett. 100, 190601 (2008).
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_scalar, cast, Scalar
from thermojax._check import require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractNoising, Reversed, Score
from thermojax.ensemble import Step
from thermojax.estimators import Estimate, jarzynski, mean, tail_index
from thermojax.functionals import BackwardRatio
from thermojax.generative._hysteresis import prepare
from thermojax.steppers import AbstractStepper, advance, ExactLinear

ReducedPotential = Callable[[Array, Array], Array]

LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""The levels of `GenerationWork.quantiles`."""


class GenerationWork(NamedTuple):
    """Work of generation, dimensionless; profiles have one entry per step in the order of generation, the noisiest first."""

    work: Estimate
    r"""The mean total reduced work $\langle Y\rangle$: the sum of `jump`, `protocol` and `kernels`."""
    excess: Estimate
    r"""$\langle Y\rangle - \Delta F$, with the $\Delta F$ that is given, or else with `delta_f` (whose fluctuations are in its error)."""
    delta_f: Estimate
    r"""$\Delta F = -\ln\langle e^{-Y}\rangle$ from the samples, with the verdict of an exponential average and the tail index of its
    weights, the side of small work."""
    jump: Estimate
    r"""The first switch, from the prior to the landscape at $T$: $\langle u_T + \ln\pi\rangle$, zero where they agree."""
    protocol: Estimate
    r"""The switching of the landscape in Crooks' order, $\int\partial_t u\,dt$ along generation. There is no second law for it alone: the
    generation is not reversible with respect to $e^{-u_t}$, and it can be less than $\Delta F$."""
    kernels: Estimate
    """What the kernels add, their log-ratio less the drop of the landscape as they move: the work of the escort."""
    ts: Float[Array, " step"]
    """The middle of each step, in the time of the noising."""
    widths: Float[Array, " step"]
    """The length of each step."""
    rates: Float[Array, " step"]
    """Mean total work per unit time; with `jump` the steps add up to `work`. Not a number where a path was lost."""
    rate_errors: Float[Array, " step"]
    """Its standard errors."""
    protocol_rates: Float[Array, " step"]
    """The part of `rates` that is the switching of the landscape."""
    samples: Float[Array, " sample"]
    r"""$Y$ of each path."""
    configurations: Float[Array, "sample dim"]
    """What was generated, at ``ts[0]``."""
    quantiles: Float[Array, " level"]
    """Quantiles of the work, at 1, 5, 25, 50, 75, 95 and 99 per cent."""
    skewness: Scalar
    """Skewness of the work; zero where it is Gaussian."""
    upper_tail_index: Scalar
    r"""Pareto index of $e^{Y}$, the side of large work: of paths that the noising hardly ever takes."""


def generation_work(
    score: Score,
    noising: AbstractNoising,
    reduced_potential: ReducedPotential,
    n: int,
    ts: ArrayLike,
    *,
    prior: AbstractDistribution,
    log_normaliser: ArrayLike | None = None,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> GenerationWork:
    r"""The work of generating `n` configurations, its excess over the free-energy difference, and where in time it is done.

    Args:
        score: ``score(t, x)``.
        noising: The noising process.
        reduced_potential: $u_t(x)$ of one configuration, as ``reduced_potential(t, x)``. Work, excess and $\Delta F$ depend on it at
            ``ts[0]`` alone; the profile on all of it. For data of known density take $-\ln p_t$.
        n: Number of paths.
        ts: Increasing times of the *forward* process; generation runs from the last to the first.
        prior: Where generation starts, a normalised density.
        log_normaliser: $\ln Z_0 = \ln\int e^{-u_{t_0}}dx$ if known.
        stepper: Kernel of the generation, of known density; `Ancestral` if omitted.
        key: Random key; the paths are those of `sample_sde` with the same key and kernel.

    Raises:
        TypeError, ValueError: if the times do not increase, `log_normaliser` is not one number, the density of `stepper` is unknown, or
            its last kernel has no noise (`Ancestral` down to a time without noise).
    """
    require(jnp.ndim(log_normaliser) == 0 if log_normaliser is not None else True, "log_normaliser", "be one number", log_normaliser)
    start_key, noise_key = jr.split(key)
    xs = prior.sample(n, key=start_key)
    (score, noising, gaussian), ts = prepare(score, noising, ts, xs, stepper)
    reduced_potential, prior = cast((reduced_potential, prior), xs.dtype)
    known = None if log_normaliser is None else as_scalar(log_normaliser).astype(xs.dtype)
    ys, (jumps, switches, moves), (rates, errors, protocol) = _generate(
        score, noising, reduced_potential, prior, gaussian, xs, ts, noise_key
    )
    work = jumps + switches + moves
    delta_f = jarzynski(work, beta=1.0)
    quantiles, skewness, upper = _shape(work)
    return GenerationWork(
        work=mean(work),
        excess=_excess(work, delta_f) if known is None else mean(work + known),
        delta_f=delta_f,
        jump=mean(jumps),
        protocol=mean(switches),
        kernels=mean(moves),
        ts=(0.5 * (ts[1:] + ts[:-1]))[::-1],
        widths=jnp.diff(ts)[::-1],
        rates=rates,
        rate_errors=errors,
        protocol_rates=protocol,
        samples=work,
        configurations=ys,
        quantiles=quantiles,
        skewness=skewness,
        upper_tail_index=upper,
    )


@eqx.filter_jit
def _generate(score, noising, potential, prior, stepper, xs, ts, key):
    n, horizon = xs.shape[0], ts[-1]
    us = (horizon - ts)[::-1]
    backward, ratio = Reversed(noising, score, horizon), BackwardRatio(noising, horizon, ExactLinear())

    def gains(u0, u1, x0, x1):
        t0, t1 = horizon - u0, horizon - u1
        switch = potential(t1, x1) - potential(t0, x1)
        return switch, potential(t0, x1) - potential(t0, x0) + ratio(Step(stepper, backward, u0, u1, x0, x1))

    def move(carry, inputs):
        xs, totals = carry
        u0, u1, k = inputs
        zs = jr.normal(jr.fold_in(key, k), (n, stepper.normals, xs.shape[1]), xs.dtype)
        ys = jax.vmap(ft.partial(advance, stepper, backward, u0, u1))(xs, zs)
        switches, moves = jax.vmap(ft.partial(gains, u0, u1))(xs, ys)
        steps = (switches + moves) / (u1 - u0)
        found = jnp.mean(steps), jnp.std(steps) / jnp.sqrt(n), jnp.mean(switches) / (u1 - u0)
        return (ys, (totals[0] + switches, totals[1] + moves)), found

    zeros = jnp.zeros(n, xs.dtype)
    inputs = (us[:-1], us[1:], jnp.arange(us.shape[0] - 1))
    (ys, (switches, moves)), profile = lax.scan(move, (xs, (zeros, zeros)), inputs)
    jumps = jax.vmap(lambda x: potential(horizon, x) + prior.log_prob(x))(xs)
    return ys, (jumps, switches, moves), profile


@jax.jit
def _shape(work):
    """Quantiles, skewness and upper tail index of the finite samples."""
    good = jnp.isfinite(work)
    finite = jnp.where(good, work, jnp.nan)
    deviations = finite - jnp.nanmean(finite)
    skewness = jnp.nanmean(deviations**3) / jnp.nanmean(deviations**2) ** 1.5
    return jnp.nanquantile(finite, jnp.asarray(LEVELS, work.dtype)), skewness, tail_index(jnp.where(good, work, -jnp.inf))


def _excess(work, delta_f):
    """Mean work less the estimated free-energy difference, with what both fluctuate together."""
    # The exponential averages to one at the estimated difference, so that the mean is that of the work.
    above = work - delta_f.value
    found = mean(above + jnp.expm1(-above))
    return found._replace(trustworthy=found.trustworthy & delta_f.trustworthy)
