r"""What a sampler makes on the line, exactly: its density pushed through every kernel, and how far that is from the data.

A chain of Gaussian kernels takes the density $p_k$ at the noisier time to $p_{k-1}(y) = \int p_k(x)\,N(y; m(x), s^2)\,dx$. On equally
spaced points that move and widen with the noised data this is the trapezoidal rule, which converges faster than any power once the points
resolve both the kernel and the densities. The mass that is lost shows when they do not.

Between what is made, $p_\theta$, and the noised data at the first time, $p$: $\mathrm{KL}(p\Vert p_\theta)$ in nats, what the negative
log-likelihood exceeds the entropy by, is at most the path KL of the chain (`path_kl`); and the distance $W_2$.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import Scalar
from thermojax._check import check_times, require
from thermojax.distributions import AbstractDistribution, as_mixture, Gaussian, GaussianMixture, squared_quantile_distance, standard_normal
from thermojax.dynamics import AbstractNoising, Reversed, Score
from thermojax.generative._conditional import check_noise, shared_times
from thermojax.generative._sampling import Ancestral
from thermojax.steppers import AbstractStepper, log_volume, whiten, with_density

# Standard deviations of the noised data on either side that the points hold.
_REACH = 9.0


class ChainDensity(NamedTuple):
    """What `chain_density` computed, at the first time of the grid."""

    xs: Float[Array, " point"]
    """Configurations, equally spaced."""
    density: Float[Array, " point"]
    """The density of what the sampler makes."""
    exact: Float[Array, " point"]
    """The density of the noised data."""
    mass: Scalar
    """The mass of `density`: one, unless the points are too coarse or too few."""
    kl: Scalar
    r"""$\mathrm{KL}(p\Vert p_\theta)$ of the data from what is made, in nats."""
    wasserstein: Scalar
    """The distance $W_2$ of the two."""


def chain_density(
    score: Score,
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    ts: ArrayLike,
    *,
    prior: AbstractDistribution | None = None,
    stepper: AbstractStepper | None = None,
    points: int = 2401,
) -> ChainDensity:
    """The density of a sampler's configurations at ``ts[0]``, for data on the line of known density.

    Args:
        score: ``score(t, x)``, learned or exact.
        noising: The noising process; its noise must not vanish at ``ts[0]``.
        data: The density of the data, in one dimension.
        ts: Increasing times of the forward process.
        prior: Where generation starts; the standard normal if omitted.
        stepper: Gaussian kernel of the denoising chain; `Ancestral` if omitted.
        points: Points of the line: several to the width of every kernel. Time and memory grow with their square.

    Raises:
        TypeError, ValueError: if the data have more than one dimension, the times do not increase, there is no noise at ``ts[0]``, or the
            density of `stepper` is unknown.
    """
    mixture = as_mixture(data)
    dim = mixture.means.shape[1]
    require(dim == 1, "data", "have one dimension", f"{dim} dimensions")
    require(points >= 3, "points", "be at least 3", points)
    ts = check_noise(noising, check_times(ts, mixture.means.dtype), "ts[0]")
    gaussian = with_density(Ancestral() if stepper is None else stepper)
    gaussian.check(Reversed(noising, score, ts[-1]), (ts[-1] - ts)[::-1], mixture.means)
    ys = jnp.linspace(-_REACH, _REACH, points, dtype=ts.dtype)
    return _chain_density(score, noising, mixture, standard_normal(1) if prior is None else prior, gaussian, ts, ys)


@eqx.filter_jit
def _chain_density(score, noising, mixture, prior, stepper, ts, ys):
    ts = shared_times(ts)
    backward = Reversed(noising, score, ts[-1])

    def line(t):
        moments = noising.marginal(mixture, t).moments()
        width = jnp.sqrt(moments.covariance[0, 0])
        # The difference of two points would lose digits of the spacing.
        return moments.mean[0] + width * ys, width * (2.0 * _REACH / (ys.shape[0] - 1))

    def step(density, times):
        t0, t1 = times
        (xs, spacing), (targets, _) = line(t1), line(t0)

        def kernel(x):
            increment, spread = stepper.increment(backward, backward.horizon - t1, backward.horizon - t0, x[None])
            zs = jax.vmap(lambda y: whiten(spread, y[None] - x[None] - increment)[0])(targets)
            return jnp.exp(-0.5 * zs**2 - log_volume(spread, 1))

        return density * spacing @ jax.vmap(kernel)(xs), None

    first = jnp.exp(jax.vmap(lambda x: prior.log_prob(x[None]))(line(ts[-1])[0]))
    density, _ = lax.scan(step, first, (ts[:-1], ts[1:]), reverse=True)
    xs, spacing = line(ts[0])
    logs = jax.vmap(lambda x: noising.marginal(mixture, ts[0]).log_prob(x[None]))(xs)
    exact = jnp.exp(logs)
    tiny = jnp.finfo(density.dtype).tiny
    return ChainDensity(
        xs=xs,
        density=density,
        exact=exact,
        mass=spacing * jnp.sum(density),
        kl=spacing * jnp.sum(exact * (logs - jnp.log(jnp.maximum(density, tiny)))),
        wasserstein=jnp.sqrt(_squared_distance(xs, exact, density)),
    )


def _squared_distance(xs, first, second):
    """The squared distance of two densities on the same points, each taken as uniform between the middles of its neighbours."""
    edges = jnp.concatenate([xs[:1], xs]) + 0.5 * (xs[1] - xs[0]) * jnp.concatenate([-jnp.ones_like(xs[:1]), jnp.ones_like(xs)])
    below = [jnp.concatenate([jnp.zeros_like(xs[:1]), jnp.cumsum(p) / jnp.sum(p)]) for p in (first, second)]
    return squared_quantile_distance(edges, below[0], edges, below[1])
