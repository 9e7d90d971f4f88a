"""A log-Gaussian Cox process: counts in the cells of a square, whose logarithmic rate is a Gaussian field."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.targets._target import AbstractTarget, check_scale, refuse_draws


class CoxProcess(AbstractTarget):
    r"""The posterior of a field $x \sim N(m, C)$ given counts $y_i \sim \mathrm{Poisson}(a e^{x_i})$; $Z$ is the evidence of the counts.

    Whitened, a configuration is $z$ with $x = m + Lz$ and $C = LL^\top$, normal with unit covariance before any count.

    Reference:
        J. Møller, A. R. Syversveen, R. P. Waagepetersen, Scandinavian J. Statistics 25, 451 (1998).
    """

    counts: Float[Array, " cell"] = eqx.field(converter=as_float)
    """$y_i$."""
    mean: Scalar = eqx.field(converter=as_scalar)
    """$m$."""
    factor: Float[Array, "cell cell"] = eqx.field(converter=as_float)
    """$L$, lower triangular: kept in place of $C$, so that no call factorises a matrix."""
    area: Scalar = eqx.field(converter=as_scalar)
    """$a$ of a cell."""
    whitened: bool = eqx.field(static=True, default=False)
    """Whether a configuration is $z$ instead of $x$."""
    log_z: None = eqx.field(default=None, init=False)
    """The evidence is unknown."""

    def __check_init__(self):
        require(self.counts.ndim == 1, "counts", "have shape (cell,)", f"shape {self.counts.shape}")
        xp = library_of(self.counts)
        ensure(self.counts, (self.counts >= 0) & (self.counts == xp.round(self.counts)), "counts", "be whole numbers", self.counts)
        shape = self.counts.shape * 2
        require(self.factor.shape == shape, "factor", f"have shape {shape}", f"shape {self.factor.shape}")
        check_positive(jnp.diagonal(self.factor), "factor")
        check_positive(self.area, "area")

    @property
    def dim(self) -> int:
        """Number of cells."""
        return self.counts.shape[0]

    def log_density(self, x):
        z = x if self.whitened else solve_triangular(self.factor, x - self.mean, lower=True)
        field = self.field(x)
        prior = -0.5 * jnp.sum(z**2) - 0.5 * self.dim * jnp.log(2 * jnp.pi)
        volume = 0.0 if self.whitened else jnp.sum(jnp.log(jnp.diagonal(self.factor)))
        # The Poisson law with all its constants.
        logs = self.counts * (field + jnp.log(self.area)) - self.area * jnp.exp(field) - gammaln(self.counts + 1)
        return prior - volume + jnp.sum(logs)

    def field(self, x: Float[Array, " dim"]) -> Float[Array, " cell"]:
        """The logarithmic rate of a configuration."""
        return self.mean + self.factor @ x if self.whitened else x

    def sample(self, n, *, key):
        refuse_draws(self)


def cox_process(
    *,
    side: int = 8,
    expected: ArrayLike = 126.0,
    variance: ArrayLike = 1.91,
    length: ArrayLike = 1 / 33,
    whitened: bool = False,
    key: Key,
) -> CoxProcess:
    r"""Counts drawn from the model in the cells of a grid on the unit square.

    The covariance of two cells at distance $r$ is $\sigma^2 e^{-r/b}$ and the mean $\ln n - \sigma^2/2$, with $n$ the expected number of
    points: the numbers that Møller et al. give to 126 Scots pines. Their trees are not here: the counts are simulated, in single precision,
    so that a key means the same data in both.

    Args:
        side: Cells along one side.
        expected: $n$.
        variance: $\sigma^2$.
        length: $b$, in units of the side of the square.
        whitened: Whether a configuration is the white noise behind the field.
        key: Random key of the data.
    """
    require(side >= 1, "side", "be at least 1", side)
    expected, length = check_positive(as_scalar(expected), "expected"), check_positive(as_scalar(length), "length")
    variance = check_scale(as_scalar(variance), "variance")
    line = (np.arange(side) + 0.5) / side
    places = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    distances = jnp.asarray(np.linalg.norm(places[:, None] - places[None], axis=-1), variance.dtype)
    factor = jnp.linalg.cholesky(variance * jnp.exp(-distances / length))
    mean, area = jnp.log(expected) - variance / 2, as_scalar(1 / side**2)
    field_key, count_key = jr.split(key)
    field = mean + factor @ jr.normal(field_key, (side**2,), jnp.float32).astype(factor.dtype)
    counts = jr.poisson(count_key, (area * jnp.exp(field)).astype(jnp.float32))
    return CoxProcess(counts.astype(factor.dtype), mean, factor, area, whitened)
