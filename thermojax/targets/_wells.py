"""Products of double wells: many modes of known weights, with exact normalisers and draws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.targets._line import draw_line, log_integral
from thermojax.targets._target import AbstractTarget, check_dim

# A factor exp(-50) of the maximum changes no digit of a float64 sum.
_CUTOFF = 50.0


class MultiWell(AbstractTarget):
    r"""$\ln\gamma = -\sum_{i\le m}(x_i^2 - \delta)^2 - \tfrac12\sum_{i>m}x_i^2$: $2^m$ wells of equal weight.

    Reference:
        L. Richter, J. Berner, arXiv:2307.01198 (2024), appendix: the multi-well task.
    """

    dim: int = eqx.field(static=True, default=5)
    """Number of coordinates."""
    double: int = eqx.field(static=True, default=5)
    """The number $m$ of coordinates with two wells."""
    separation: Scalar = eqx.field(converter=as_scalar, default=4.0)
    r"""$\delta$: wells sit at $x_i = \pm\sqrt\delta$, behind barriers of height $\delta^2$."""

    def __check_init__(self):
        check_dim(self.dim)
        require(1 <= self.double <= self.dim, "double", f"be between 1 and dim = {self.dim}", self.double)
        check_positive(self.separation, "separation")

    @property
    def log_z(self) -> Scalar:
        r"""$\ln Z$, by quadrature of one well and in closed form for the rest."""
        rest = self.dim - self.double
        return self.double * log_integral(self._well, *self._ends()) + 0.5 * rest * jnp.log(2 * jnp.pi).astype(self.separation.dtype)

    @property
    def well_weights(self) -> Float[Array, " well"]:
        """The exact share of each well, in the order of `well`."""
        return jnp.full(2**self.double, 0.5**self.double, self.separation.dtype)

    def log_density(self, x):
        wells, rest = x[: self.double], x[self.double :]
        return jnp.sum(self._well(wells)) - 0.5 * jnp.sum(rest**2)

    @eqx.filter_jit
    def sample(self, n, *, key):
        wells_key, rest_key = jr.split(key)
        wells = draw_line(self._well, *self._ends(), n * self.double, key=wells_key)
        rest = jr.normal(rest_key, (n, self.dim - self.double), wells.dtype)
        return jnp.concatenate([wells.reshape(n, self.double), rest], axis=1)

    def well(self, x: Float[Array, " dim"]) -> Int[Array, ""]:
        """The number of the well a state is in, from 0 to $2^m - 1$: bit $i$ says whether coordinate $i$ is right of its barrier."""
        return _number(x[: self.double] > 0)

    def _well(self, x):
        return -((x**2 - self.separation) ** 2)

    def _ends(self):
        reach = jnp.sqrt(self.separation + jnp.sqrt(jnp.asarray(_CUTOFF, self.separation.dtype)))
        return -reach, reach


class ManyWell(AbstractTarget):
    r"""A sum over pairs $(x, y)$ of neighbouring coordinates, $\ln\gamma = \sum\,[a x + b x^2 - x^4 - \tfrac12 y^2]$: $2^{d/2}$ wells.

    Their weights differ: with $a = 0.5$, $b = 6$ the right well of a pair is the deeper one.

    Reference:
        L. I. Midgley et al., arXiv:2208.01893 (2023), the many-well problem; the pair is of F. Noé et al., Science 365, eaaw1147 (2019).
    """

    dim: int = eqx.field(static=True, default=2)
    """Number of coordinates, even."""
    tilt: Scalar = eqx.field(converter=as_scalar, default=0.5)
    """$a$, which favours the right well."""
    curvature: Scalar = eqx.field(converter=as_scalar, default=6.0)
    r"""$b$: a barrier of height about $b^2/4$ between wells near $\pm\sqrt{b/2}$."""

    def __check_init__(self):
        check_dim(self.dim, least=2)
        require(self.dim % 2 == 0, "dim", "be even, for pairs of coordinates", self.dim)
        check_positive(self.curvature, "curvature")
        xp = library_of(self.tilt)
        limit = 4 / 3 * self.curvature * xp.sqrt(self.curvature / 6)
        ensure(self.tilt, xp.abs(self.tilt) < limit, "tilt", "leave a barrier: |a| below (4/3) b (b/6)^(1/2)", self.tilt)

    @property
    def log_z(self) -> Scalar:
        r"""$\ln Z$, by quadrature over $x$ and in closed form over $y$."""
        pair = log_integral(self._well, *self._ends()) + 0.5 * jnp.log(2 * jnp.pi).astype(self.tilt.dtype)
        return (self.dim // 2) * pair

    @property
    def well_weights(self) -> Float[Array, " well"]:
        """The exact share of each well, in the order of `well`."""
        low, high = self._ends()
        edge, pairs = self.barrier, self.dim // 2
        # By odds, so that the share of a shallow well keeps its digits.
        odds = log_integral(self._well, edge, high) - log_integral(self._well, low, edge)
        right = jnp.sum((jnp.arange(2**pairs)[:, None] >> jnp.arange(pairs)[None]) & 1, axis=1).astype(odds.dtype)
        return jnp.exp(right * jax.nn.log_sigmoid(odds) + (pairs - right) * jax.nn.log_sigmoid(-odds))

    @property
    def barrier(self) -> Scalar:
        r"""Where the barrier is highest: the small root of $a + 2bx - 4x^3 = 0$."""
        a, b = self.tilt, self.curvature
        # The middle one of three real roots, by the trigonometric solution of the cubic.
        third = jnp.arcsin(-1.5 * a / (2 * b) * jnp.sqrt(6 / b)) / 3
        return 2 * jnp.sqrt(b / 6) * jnp.sin(third)

    def log_density(self, x):
        pairs = x.reshape(-1, 2)
        return jnp.sum(self._well(pairs[:, 0])) - 0.5 * jnp.sum(pairs[:, 1] ** 2)

    @eqx.filter_jit
    def sample(self, n, *, key):
        wells_key, rest_key = jr.split(key)
        shape = (n, self.dim // 2)
        wells = draw_line(self._well, *self._ends(), n * shape[1], key=wells_key).reshape(shape)
        return jnp.stack([wells, jr.normal(rest_key, shape, wells.dtype)], axis=2).reshape(n, self.dim)

    def well(self, x: Float[Array, " dim"]) -> Int[Array, ""]:
        """The number of the well a state is in, from 0 to $2^{d/2} - 1$: bit $i$ says whether pair $i$ is right of its barrier."""
        return _number(x[::2] > self.barrier)

    def _well(self, x):
        return self.tilt * x + self.curvature * x**2 - x**4

    def _ends(self):
        # At this reach r, b r^2 - r^4 / 2 is at most -50 and |a| r - r^4 / 2 at most nothing.
        cutoff = jnp.asarray(_CUTOFF, self.tilt.dtype)
        reach = jnp.sqrt(self.curvature + jnp.sqrt(self.curvature**2 + 2 * cutoff)) + jnp.cbrt(2 * jnp.abs(self.tilt))
        return -reach, reach


def _number(bits):
    return jnp.sum(bits.astype(int) << jnp.arange(bits.shape[0]))
