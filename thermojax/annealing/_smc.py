r"""Sequential Monte Carlo: annealing with resampling, in independent islands."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray as Key

from thermojax._array import as_scalar
from thermojax._check import ensure, library_of, require
from thermojax.annealing._annealing import Annealing, in_precision_of, keys_of, look, mismatch, move, rise
from thermojax.estimators import Estimate, jarzynski, mean
from thermojax.measures import Assessment, assessment


class Populations(NamedTuple):
    """Weighted particles of the last density, in islands that know nothing of each other."""

    particles: Any
    """Last states, shape ``(island, particle, dim)``."""
    log_weights: Float[Array, "island particle"]
    r"""Logarithms of their weights: the mean weight of an island is its unbiased estimate of $Z$."""
    log_zs: Float[Array, " island"]
    r"""The logarithm of that estimate."""
    log_z: Estimate
    r"""$\ln Z$, from the mean of the islands' estimates, with the error bar of their spread; one island is one sample."""
    shares: Float[Array, "island level"]
    """Effective share of the particles at every level after the first, before resampling."""
    resamplings: Int[Array, " island"]
    """How many times each island was resampled."""
    lost: Int[Array, ""]
    """Particles whose weight was not a finite number; they count as weight zero. `log_z` is not trustworthy if there are any."""

    @property
    def report(self) -> Assessment:
        r"""The islands read as paths of a pair with $\ell = -\ln Z_i$: their mean is the ELBO of the whole method."""
        return assessment(-self.log_zs)

    def mean(self, function: Callable[[Any], Array]) -> Estimate:
        """The mean of ``function(x)`` under the last density: self-normalised, so biased like one over the particles of all islands."""
        shares = jax.nn.softmax(self.log_weights, axis=1)
        values = jax.vmap(jax.vmap(function))(self.particles)
        scaled = jnp.exp(self.log_zs - jnp.max(self.log_zs))
        return mean(jnp.sum(shares * values, axis=1), weights=scaled)


def smc(chain: Annealing, particles: int, *, islands: int = 128, threshold: ArrayLike = 0.5, key: Key) -> Populations:
    r"""Move populations along an annealing chain, resampling them where their weights have become uneven.

    At each level weights are updated; where the effective share is below the threshold particles are resampled (systematically); then all
    move with the kernel of the new density. The mean weight of an island has the expectation $Z$, whatever its number of particles.

    Args:
        chain: Path, first density, levels, kernel and moves. Fixed levels: such as were found on these particles would bias $Z$.
        particles: Particles of an island.
        islands: Independent populations, at least two. The trust report wants a hundred.
        threshold: The effective share below which an island is resampled; zero for never (annealed importance sampling), one for always.
        key: Random key.

    Raises:
        ValueError: if all particles of an island have weight zero at a level, or as the kernel's check.

    Reference:
        P. Del Moral, A. Doucet, A. Jasra, J. R. Stat. Soc. B 68, 411 (2006), sec. 3.
    """
    require(particles >= 1, "particles", "be at least 1", particles)
    require(islands >= 2, "islands", "be at least 2, for an error bar", islands)
    threshold = as_scalar(threshold)
    xp = library_of(threshold)
    fits = (xp.asarray(threshold) >= 0) & (xp.asarray(threshold) <= 1)
    threshold = ensure(threshold, fits, "threshold", "lie between 0 and 1", threshold)
    start_key, noise_key = jr.split(key)
    x0s = chain.kernel.check(chain.path, chain.initial.sample(islands * particles, key=start_key), chain.lams)
    x0s = jax.tree.map(lambda a: a.reshape(islands, particles, *a.shape[1:]), x0s)
    xs, logs, shares, resampled, lost = _islands(chain, x0s, threshold, jr.split(noise_key, islands))
    logs = ensure(logs, library_of(shares).all(shares > 0), "path", "leave particles of weight above zero", _first_empty(shares))
    log_zs = jax.nn.logsumexp(logs, axis=1) - jnp.log(jnp.asarray(particles, logs.dtype))
    log_z = jarzynski(-log_zs, beta=1.0)
    log_z = log_z._replace(value=-log_z.value, trustworthy=log_z.trustworthy & (lost == 0))
    return Populations(xs, logs, log_zs, log_z, shares, resampled, lost)


def ancestors_of(logs: Float[Array, " particle"], key: Key) -> Int[Array, " particle"]:
    """Systematic resampling by log-weights."""
    # BlackJAX starts a JAX backend when imported, which `import thermojax` must not.
    from blackjax.smc.resampling import systematic

    weights = jax.nn.softmax(logs)
    with jax.numpy_dtype_promotion("standard"):
        ancestors = systematic(key, weights, logs.shape[0]).astype(int)
    # Rounding of the cumulative weights may point to the last particle, whatever its weight.
    return jnp.where(weights[ancestors] > 0, ancestors, jnp.argmax(weights))


def log_weights_of(logs: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log-weights, where what is not a number or infinite counts as weight zero."""
    return jnp.where(jnp.isfinite(logs), logs, -jnp.inf)


@eqx.filter_jit
def _islands(chain, x0s, threshold, keys):
    chain, threshold = in_precision_of(x0s, (chain, threshold))
    xs, logs, shares, resamplings, lost = jax.vmap(lambda xs, key: _island(chain, xs, threshold, key))(x0s, keys)
    return xs, logs, shares, resamplings, jnp.sum(lost)


def _island(chain, x0s, threshold, key):
    places, lams = look(chain, x0s), chain.lams
    logs = -mismatch(chain, places, lams[0])
    lost = _unknown(logs)
    choice_key, noise_key = jr.split(key)
    keys = keys_of(places, noise_key)

    def level(carry, inputs):
        places, logs, lost = carry
        lam0, lam1, index = inputs
        gained = logs + rise(chain, places, lam0, lam1)
        lost, logs = lost + jnp.sum(_unknown(gained)), log_weights_of(gained)
        share = _share(logs)
        uneven = share < threshold
        ancestors = jnp.where(uneven, ancestors_of(logs, jr.fold_in(choice_key, index)), jnp.arange(logs.shape[0]))
        level_weight = jax.nn.logsumexp(logs) - jnp.log(jnp.asarray(logs.shape[0], logs.dtype))
        logs = jnp.where(uneven, level_weight, logs)
        before = jax.tree.map(lambda a: a[ancestors], places)
        after, shadows = move(chain, chain.kernel, before, lam1, index, keys)
        # Where a move leads nowhere the particle stays, without weight.
        good = ~_unknown(-shadows)
        places = jax.tree.map(lambda a, b: jax.vmap(jnp.where)(good, a, b), after, before)
        return (places, log_weights_of(logs - shadows), lost + jnp.sum(~good)), (share, uneven)

    first = (places, log_weights_of(logs), jnp.sum(lost))
    inputs = lams[:-1], lams[1:], jnp.arange(lams.shape[0] - 1)
    (places, logs, lost), (shares, uneven) = lax.scan(level, first, inputs)
    return places.x, logs, shares, jnp.sum(uneven), lost


def _unknown(logs):
    """What is no weight: not a number, or infinite."""
    return ~(logs < jnp.inf)


def _share(logs):
    log_share = 2 * jax.nn.logsumexp(logs) - jax.nn.logsumexp(2 * logs)
    return jnp.where(jnp.any(logs > -jnp.inf), jnp.exp(log_share) / logs.shape[0], 0.0)


def _first_empty(shares):
    if isinstance(shares, Tracer):
        return "a traced value"
    islands, levels = np.nonzero(~(np.asarray(shares) > 0))
    return f"none in island {islands[0]} at level {levels[0] + 1}" if islands.size else ""
