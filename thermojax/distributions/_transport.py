r"""The distance $W_2$ of densities on a line.

In one dimension the optimal map is monotone, $G^{-1}(F(x))$, and $W_2^2 = \int_0^1 (F^{-1}(u) - G^{-1}(u))^2\,du$.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.distributions._gaussian import as_mixture, Gaussian, GaussianMixture

# The trapezoidal rule on a Gaussian converges faster than any power: 40 nodes per standard deviation, twelve of these on each side.
_NODES = 961
_REACH = 12.0


def squared_wasserstein(first: Gaussian | GaussianMixture, second: Gaussian | GaussianMixture) -> Scalar:
    r"""$W_2^2$ of two densities in one dimension, $\int_0^1 (F^{-1}(u) - G^{-1}(u))^2 du$, by quadrature over the quantiles.

    The optimal map is $G^{-1}(F(x))$, evaluated at the nodes of the density with more components: exact to rounding if the other one is
    a Gaussian, and as long as it has no gap that the nodes cannot resolve.

    Args:
        first: One density.
        second: The other.

    Raises:
        ValueError: if they are not in one dimension.
    """
    for name, density in (("first", first), ("second", second)):
        dim = as_mixture(density).means.shape[1]
        require(dim == 1, name, "be in one dimension", f"{dim}")
    many, few = sorted((as_mixture(first), as_mixture(second)), key=lambda density: -density.means.shape[0])
    return _squared_wasserstein(many, few)


def squared_quantile_distance(
    places0: Float[Array, " m"], below0: Float[Array, " m"], places1: Float[Array, " n"], below1: Float[Array, " n"]
) -> Scalar:
    """$W_2^2$ of two densities on a line that are constant between places with the probabilities `below` them: exact."""
    levels = jnp.sort(jnp.concatenate([below0, below1]))
    middles, widths = 0.5 * (levels[1:] + levels[:-1]), jnp.diff(levels)

    def square(share):
        # Between two levels both quantiles are straight lines, and two Gauss nodes enough. At a level itself a quantile may jump.
        at = middles + share * widths
        return (jnp.interp(at, below0, places0) - jnp.interp(at, below1, places1)) ** 2

    return 0.5 * jnp.sum(widths * (square(-(12**-0.5)) + square(12**-0.5)))


def nodes_on_line(mixture: GaussianMixture) -> tuple[Float[Array, "node 1"], Float[Array, " node"]]:
    """Configurations and weights of a quadrature over a density in one dimension."""
    zs = jnp.linspace(-_REACH, _REACH, _NODES, dtype=mixture.means.dtype)
    bell = jnp.exp(-0.5 * zs**2)
    # Each component has nodes of its own: they may differ in width, and lie far apart.
    xs = mixture.means + jnp.outer(jnp.sqrt(mixture.covariances.ravel()), zs)
    weights = jnp.outer(mixture.weights / jnp.sum(mixture.weights), bell / jnp.sum(bell))
    return xs.reshape(-1, 1), weights.ravel()


@eqx.filter_jit
def _squared_wasserstein(many, few):
    xs, weights = nodes_on_line(many)
    reach = 2.0 * _REACH * jnp.sqrt(few.covariances.ravel())
    low, high = jnp.min(few.means[:, 0] - reach), jnp.max(few.means[:, 0] + reach)
    precision = 4.0 * float(jnp.finfo(xs.dtype).eps)

    def mapped(x):
        below, above = _tails(many, x)

        def excess(y, args):
            reached, left = _tails(few, y)
            # Probabilities keep their digits in the smaller tail.
            return jnp.where(below < above, reached - below, above - left)

        search = optx.Bisection(rtol=precision, atol=precision)
        return optx.root_find(excess, search, 0.5 * (low + high), options={"lower": low, "upper": high}, max_steps=100, throw=False).value

    return jnp.sum(weights * (xs[:, 0] - jax.vmap(mapped)(xs[:, 0])) ** 2)


def _tails(mixture, x):
    """The probabilities below and above x."""
    zs = (x - mixture.means[:, 0]) / jnp.sqrt(mixture.covariances.ravel())
    weights = mixture.weights / jnp.sum(mixture.weights)
    return jnp.sum(weights * ndtr(zs)), jnp.sum(weights * ndtr(-zs))
