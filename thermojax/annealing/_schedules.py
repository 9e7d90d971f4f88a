r"""Schedules from pilot runs: at a constant rate of thermodynamic length, and by effective sample size."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_scalar, Scalar
from thermojax._check import ensure, library_of, require
from thermojax.annealing._annealing import Annealing, in_precision_of, keys_of, level_by_level, look, mismatch, move, rise
from thermojax.annealing._smc import ancestors_of, log_weights_of

# Halvings of an interval of levels: past rounding in double precision.
_HALVINGS = 50


class LengthSchedule(NamedTuple):
    r"""A schedule of constant thermodynamic speed, and what it was made of."""

    lams: Float[Array, " level"]
    """The levels, each as far from the next."""
    pilot: Float[Array, " pilot"]
    """The levels of the pilot run."""
    speeds: Float[Array, " pilot"]
    r"""The speeds $\sqrt{g(\lambda)}$ there, $g = \mathrm{Var}_\lambda\,\partial_\lambda\ln\gamma_\lambda$."""
    length: Scalar
    r"""The length $\mathcal{L} = \int_0^1\sqrt{g}\,d\lambda$. With perfect relaxation between many levels $K$ the dissipation is
    $\mathcal{L}^2/2K$ along this schedule, and more along any other."""


def length_schedule(pilot: Annealing, samples: int, *, levels: int | None = None, key: Key) -> LengthSchedule:
    r"""The schedule that moves at a constant rate of thermodynamic length.

    A pilot run measures Fisher's metric $g$ at its levels, from its weighted samples; its root is taken linear between them. Where the
    path changes much between two of its levels, run the pilot again along what it returned. The metric is that of complete relaxation:
    where relaxation times change along the path, they should be in it too, and are not.

    Args:
        pilot: A chain; levels whose distances are like those wanted are not needed.
        samples: Its samples.
        levels: Levels after the first; as many as the pilot has if omitted.
        key: Random key.

    Raises:
        ValueError: if fewer than two samples were finite at a level, or the density does not change along the path.

    Reference:
        G. E. Crooks, Phys. Rev. Lett. 99, 100602 (2007), eqs. (7) and (14); A. Gelman, X.-L. Meng, Stat. Sci. 13, 163 (1998), sec. 4.3.
    """
    levels = pilot.lams.shape[0] - 1 if levels is None else levels
    require(levels >= 1, "levels", "be at least 1", levels)
    start_key, noise_key = jr.split(key)
    x0s = pilot.kernel.check(pilot.path, pilot.initial.sample(samples, key=start_key), pilot.lams)
    lams, squares, counts = _metric(pilot, x0s, noise_key)
    squares = ensure(squares, counts >= 2, "pilot", "have at least two finite samples at every level", counts)
    speeds = jnp.sqrt(squares)
    rule = "have a density that changes along the path"
    speeds = ensure(speeds, library_of(speeds).any(squares > 0), "pilot", rule, "the same one at all levels")
    return LengthSchedule(*_constant_speed(lams, speeds, levels))


def ess_schedule(chain: Annealing, particles: int, *, share: ArrayLike = 0.9, most: int = 1000, key: Key) -> Float[Array, " level"]:
    r"""The schedule whose every step leaves a given share of the particles.

    Particles are moved along the path, and resampled at each level; the next level is the one, by bisection, at which the conditional
    effective share $(\sum_i W_iv_i)^2/\sum_i W_iv_i^2$, $v = \gamma_{\lambda'}/\gamma_\lambda$, has fallen to `share`. The levels depend on
    these particles: run the chain along them with a new key, and it is unbiased.

    Args:
        chain: Path, first density, kernel and moves; its own levels are not used, so that the kernel must be the same at all.
        particles: Particles that are moved.
        share: The share to keep, between zero and one; levels go like $1/\sqrt{1 - \mathrm{share}}$.
        most: Levels at most.
        key: Random key.

    Raises:
        ValueError: if the last density is not reached.

    Reference:
        Y. Zhou, A. M. Johansen, J. A. D. Aston, J. Comput. Graph. Stat. 25, 701 (2016), sec. 3.3.
    """
    share = as_scalar(share)
    xp = library_of(share)
    share = ensure(share, (xp.asarray(share) > 0) & (xp.asarray(share) < 1), "share", "lie between 0 and 1", share)
    require(most >= 1, "most", "be at least 1", most)
    start_key, noise_key = jr.split(key)
    chain = chain.along(jnp.asarray([0.0, 1.0]))
    x0s = chain.kernel.check(chain.path, chain.initial.sample(particles, key=start_key), chain.lams)
    lams, used = _adapted(chain, x0s, share, most, noise_key)
    lams, used = np.asarray(lams), int(used)
    reached = f"lambda = {lams[used]:.6g} after {used} levels"
    require(bool(lams[used] == 1.0), "most", "be levels enough to reach the last density by steps that keep `share`", reached)
    return jnp.asarray(lams[: used + 1])


@eqx.filter_jit
def _metric(pilot, x0s, key):
    """At each level the variance of the slope under the weights, and the number of finite samples."""

    def observe(lam, places, ratios):
        slopes = jax.vmap(lambda place: pilot.path.slope(place, lam))(places)
        good = jnp.isfinite(slopes) & jnp.isfinite(ratios)
        weights = jax.nn.softmax(jnp.where(good, -ratios, -jnp.inf))
        slopes = jnp.where(good, slopes, 0.0)
        return jnp.sum(weights * (slopes - jnp.sum(weights * slopes)) ** 2), jnp.sum(good)

    pilot = in_precision_of(x0s, pilot)
    return pilot.lams, *level_by_level(pilot, x0s, key, observe)[2]


@eqx.filter_jit
def _constant_speed(lams, speeds, levels):
    steps, mean = jnp.diff(lams), 0.5 * (speeds[1:] + speeds[:-1])
    passed = jnp.concatenate([jnp.zeros_like(lams[:1]), jnp.cumsum(mean * steps)])
    wanted = passed[-1] * jnp.arange(1, levels, dtype=lams.dtype) / levels
    panel = jnp.clip(jnp.searchsorted(passed, wanted, side="right") - 1, 0, steps.shape[0] - 1)
    rest, v, h = wanted - passed[panel], speeds[panel], steps[panel]
    # The distance v d + (v' - v) d^2 / 2h grows to the rest of the way: the root that is stable for v' -> v.
    root = jnp.sqrt(jnp.maximum(v**2 + 2 * rest * (speeds[panel + 1] - v) / h, 0.0))
    inner = lams[panel] + jnp.where(rest > 0, 2 * rest / jnp.where(rest > 0, v + root, 1.0), 0.0)
    return jnp.concatenate([lams[:1], inner, lams[-1:]]), lams, speeds, passed[-1]


@eqx.filter_jit
def _adapted(chain, x0s, share, most, key):
    chain, share = in_precision_of(x0s, (chain, share))
    places, lams = look(chain, x0s), chain.lams
    choice_key, noise_key = jr.split(key)
    keys = keys_of(places, noise_key)

    def kept(places, logs, lam0, lam1):
        gained = log_weights_of(rise(chain, places, lam0, lam1))
        first, second = jax.nn.logsumexp(logs + gained), jax.nn.logsumexp(logs + 2 * gained)
        log_share = 2 * first - second - jax.nn.logsumexp(logs)
        return jnp.where(jnp.isfinite(log_share), jnp.exp(log_share), 0.0)

    def advance(state):
        places, logs, found, index = state
        lam = found[index]

        def halve(_, bounds):
            low, high = bounds
            middle = 0.5 * (low + high)
            enough = kept(places, logs, lam, middle) >= share
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

        low, _ = lax.fori_loop(0, _HALVINGS, halve, (lam, lams[-1]))
        following = jnp.where(kept(places, logs, lam, lams[-1]) >= share, lams[-1], low)
        logs = logs + log_weights_of(rise(chain, places, lam, following))
        ancestors = ancestors_of(logs, jr.fold_in(choice_key, index))
        places = jax.tree.map(lambda a: a[ancestors], places)
        places, shadows = move(chain, chain.kernel, places, following, index, keys)
        return places, log_weights_of(-shadows), found.at[index + 1].set(following), index + 1

    def unfinished(state):
        _, _, found, index = state
        # A step of zero would be repeated for ever.
        stuck = (index > 0) & (found[index] <= found[jnp.maximum(index - 1, 0)])
        return (found[index] < 1) & (index < most) & ~stuck

    found = jnp.zeros(most + 1, lams.dtype)
    logs = log_weights_of(-mismatch(chain, places, lams[0]))
    _, _, found, index = lax.while_loop(unfinished, advance, (places, logs, found, jnp.zeros((), int)))
    return found, index
