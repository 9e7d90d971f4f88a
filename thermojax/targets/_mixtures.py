"""Normalised densities that are hard to sample: Neal's funnel, and mixtures of Gaussians far apart."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, require
from thermojax.distributions import Gaussian, GaussianMixture
from thermojax.targets._target import AbstractTarget, check_dim


class Funnel(AbstractTarget):
    r"""$x_0 = v \sim N(0, s^2)$, and $x_i \sim N(0, e^v)$ for the others; normalised.

    Reference:
        R. M. Neal, Annals of Statistics 31, 705 (2003), section 8.
    """

    dim: int = eqx.field(static=True, default=10)
    """Number of coordinates, with that of the width."""
    scale: Scalar = eqx.field(converter=as_scalar, default=3.0)
    """$s$, the standard deviation of the log-variance $v$."""

    def __check_init__(self):
        check_dim(self.dim, least=2)
        check_positive(self.scale, "scale")

    @property
    def log_z(self) -> Scalar:
        r"""$\ln Z = 0$."""
        return jnp.zeros_like(self.scale)

    def log_density(self, x):
        v, rest = x[0], x[1:]
        width = -0.5 * (v / self.scale) ** 2 - jnp.log(self.scale)
        return width - 0.5 * (jnp.sum(rest**2) * jnp.exp(-v) + rest.shape[0] * v) - 0.5 * self.dim * jnp.log(2 * jnp.pi)

    @eqx.filter_jit
    def sample(self, n, *, key):
        zs = jr.normal(key, (n, self.dim), self.scale.dtype)
        vs = self.scale * zs[:, :1]
        return jnp.concatenate([vs, jnp.exp(0.5 * vs) * zs[:, 1:]], axis=1)


class Mixture(AbstractTarget):
    """A mixture of Gaussians, normalised."""

    density: GaussianMixture
    """The mixture itself; its means have shape ``(component, dim)``."""

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return self.density.means.shape[1]

    @property
    def log_z(self) -> Scalar:
        r"""$\ln Z = 0$."""
        return jnp.zeros((), self.density.means.dtype)

    @property
    def well_weights(self) -> Float[Array, " well"]:
        """The exact share of each component, in the order of `well`."""
        return self.density.weights / jnp.sum(self.density.weights)

    def log_density(self, x):
        return self.density.log_prob(x)

    @eqx.filter_jit
    def sample(self, n, *, key):
        return self.density.sample(n, key=key)

    def well(self, x: Float[Array, " dim"]) -> Int[Array, ""]:
        """The component that a state is most likely from: the share of states in each is its weight where components do not overlap."""
        density = self.density
        logs = jax.vmap(lambda mean, covariance: Gaussian(mean, covariance).log_prob(x))(density.means, density.covariances)
        return jnp.argmax(logs + jnp.log(density.weights))


def random_mixture(*, components: int = 40, dim: int = 2, reach: ArrayLike = 40.0, variance: ArrayLike = 1.0, key: Key) -> Mixture:
    r"""Gaussians of equal weight whose means are uniform in $[-r, r]^d$.

    The means are drawn in single precision, so that a key means the same mixture in both.

    Args:
        components: Their number.
        dim: Number of coordinates.
        reach: $r$.
        variance: Of each, in every coordinate. Codes differ here: a standard deviation of softplus(1) = 1.31 is common for 40 in two
            dimensions, and normalisers and distances do not compare between the two.
        key: Random key of the means.
    """
    check_dim(dim)
    require(components >= 1, "components", "be at least 1", components)
    reach = check_positive(as_scalar(reach), "reach")
    means = reach * jr.uniform(key, (components, dim), jnp.float32, -1.0, 1.0).astype(reach.dtype)
    return _equal(means, variance)


def grid_mixture(*, places: ArrayLike | tuple | list = (-10.0, -5.0, 0.0, 5.0, 10.0), dim: int = 2, variance: ArrayLike = 0.3) -> Mixture:
    """Gaussians of equal weight on a grid: every coordinate of a mean is one of `places`; 25 modes by default.

    Args:
        places: Of the means, along each coordinate.
        dim: Number of coordinates.
        variance: Of each, in every coordinate.
    """
    check_dim(dim)
    places = as_float(places)
    require(places.ndim == 1 and places.size > 0, "places", "be a vector of coordinates", f"shape {places.shape}")
    return _equal(jnp.stack(jnp.meshgrid(*[places] * dim, indexing="ij"), axis=-1).reshape(-1, dim), variance)


def _equal(means, variance):
    variance = as_scalar(variance).astype(means.dtype)
    weights = jnp.full(means.shape[0], 1 / means.shape[0], means.dtype)
    return Mixture(GaussianMixture(weights, means, variance * jnp.ones_like(weights)))
