r"""Quasi-random Brownian bridges.

The steps are grouped into coarse intervals, as equal as they can be. The standardised sums of the normals of the intervals are
$G = Q\,\Phi^{-1}(u)$ with a scrambled Sobol point $u$ and the orthogonal matrix $Q$ of the principal components of Brownian motion, so
that the first Sobol coordinates, the most even ones, carry the slowest modes. Within an interval, where a sum $R$ is left for
$r$ normals, the next one is $z = R/r + \sqrt{1 - 1/r}\,e$ with a pseudo-random normal $e$. So all normals of one path are
independent and standard, exactly; only the paths of one set of points depend on each other.

References:
    A. B. Owen, J. Complexity 14, 466 (1998) (scrambling). R. E. Caflisch, W. Morokoff, A. B. Owen, J. Comput. Finance 1, 27 (1997)
    (bridges). P. Acworth, M. Broadie, P. Glasserman, MCQMC 1996, 1 (1998) (principal components).
"""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._check import require
from thermojax._noise import normals
from thermojax.ensemble import AbstractNoise
from thermojax.estimators import Estimate, mean

# Below this many independent randomisations an error bar is a guess.
_MIN_REPLICATES = 8


class SobolBridges(AbstractNoise):
    """Noise whose sums over coarse intervals are given; made by `sobol_bridges`.

    A stepper with several normals for each coordinate has its first one bridged, which is the increment of the motion; the others are
    pseudo-random.
    """

    coarse: Float[Array, "interval sample dim"]
    """The standardised sums of the normals of each interval."""

    def start(self, shape, steps, dtype):
        count, _, dim = shape
        intervals, *mine = self.coarse.shape
        require(tuple(mine) == (count, dim), "noise", f"be made for {count} particles in {dim} dimensions", f"bridges for {tuple(mine)}")
        require(intervals <= steps, "noise", f"have at most as many intervals as there are steps ({steps})", intervals)
        return jnp.zeros((count, dim), dtype)

    def draw(self, held, k, shape, steps, dtype, *, key):
        intervals = self.coarse.shape[0]
        interval = k * intervals // steps
        first, last = -(-interval * steps // intervals), -(-(interval + 1) * steps // intervals)
        size, left = (last - first).astype(dtype), (last - k).astype(dtype)
        rest = jnp.where(k == first, jnp.sqrt(size) * self.coarse[interval].astype(dtype), held)
        zs = normals(jr.fold_in(key, k), shape, dtype)
        increment = rest / left + jnp.sqrt(1.0 - 1.0 / left) * zs[:, 0]
        return jnp.concatenate([increment[:, None], zs[:, 1:]], axis=1), rest - increment


def sobol_bridges(
    *, points: int, replicates: int, intervals: int, dim: int = 1, start: int = 0, key: Key
) -> tuple[Float[Array, "sample start"], SobolBridges]:
    """Quasi-random noise for an ensemble of ``points * replicates`` particles, and quasi-random normals for their first states.

    Args:
        points: Particles that share one set of Sobol points, a power of two; they follow each other in the ensemble.
        replicates: Independent sets, for the error bar of `replicated_mean`; at least 8 make a good one.
        intervals: Coarse intervals of the noise of a path; at most as many as steps. 8 to 32 are enough: the rest is nearly averaged out.
        dim: Coordinates of a particle.
        start: How many standard normals a first state takes (a uniform number is their distribution function).
        key: Random key of the scrambling; not the one given to the ensemble.

    Returns:
        The normals for the first states, and the noise, to be given to `accumulate` or `simulate`.

    Raises:
        ValueError: if a number has no meaning.
    """
    # SciPy's statistics are slow to import.
    from scipy.special import ndtri
    from scipy.stats import qmc

    require(points >= 2 and points & (points - 1) == 0, "points", "be a power of two", points)
    require(replicates >= 2, "replicates", "be at least 2", replicates)
    require(
        intervals >= 1 and dim >= 1 and start >= 0, "intervals", "be at least 1, as `dim`; `start` not negative", (intervals, dim, start)
    )
    coordinates = start + intervals * dim
    bits, most = 52, qmc.Sobol.MAXDIM
    require(coordinates <= most, "intervals", f"leave `start + intervals * dim` at no more than {most}", coordinates)
    generator = np.random.default_rng(np.asarray(jr.key_data(key)).ravel())
    exponent = points.bit_length() - 1
    sets = [qmc.Sobol(coordinates, scramble=True, bits=bits, rng=generator).random_base2(exponent) for _ in range(replicates)]
    # The middle of a cell of the lattice of 52 bits: never 0.
    gaussian = ndtri(np.concatenate(sets) + 0.5 ** (bits + 1))
    slow_first = gaussian[:, start:].reshape(-1, intervals, dim)
    coarse = np.einsum("mi,nid->mnd", _principal_components(intervals), slow_first)
    return jnp.asarray(gaussian[:, :start], float), SobolBridges(jnp.asarray(coarse, float))


def replicated_mean(values: ArrayLike, *, replicates: int) -> Estimate:
    """The mean of the samples of an ensemble driven by `sobol_bridges`, with an error bar from its independent sets of points.

    Args:
        values: One value for each particle, shape ``(sample,)``.
        replicates: As for `sobol_bridges`.

    Returns:
        The mean. Its `ess` counts the sets, and so its error bar is known to about one part in ``sqrt(2 * replicates)``; trustworthy if
        there are at least 8 of them and every value is finite.
    """
    values = jnp.asarray(values)
    good = values.ndim == 1 and replicates >= 2 and values.shape[0] % replicates == 0
    require(good, "values", f"be a vector of {replicates} (at least 2) sets of equal size", f"shape {values.shape}")
    estimate = mean(jnp.mean(values.reshape(replicates, -1), axis=1))
    return estimate._replace(trustworthy=(estimate.excluded == 0) & (replicates >= _MIN_REPLICATES))


def _principal_components(intervals):
    """The increments of the principal components of Brownian motion, an orthogonal matrix (cosine transform of the fourth kind)."""
    places = np.arange(intervals) + 0.5
    return np.sqrt(2.0 / intervals) * np.cos(np.pi / intervals * np.outer(places, places))
