"""A Brownian path seen with noise at some of its times: Gaussian where the scales are known, a funnel of paths where they are not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.distributions import Gaussian
from thermojax.targets._target import AbstractTarget, check_scale, refuse_draws


class BrownianPath(AbstractTarget):
    r"""The posterior of a path: $x_1 \sim N(0, q^2)$, $x_t \sim N(x_{t-1}, q^2)$, seen as $y_t \sim N(x_t, r^2)$ where `seen` says so.

    Scales are known, so the posterior is Gaussian and $Z$, the evidence of the observations, is in closed form.
    """

    observations: Float[Array, " time"] = eqx.field(converter=as_float)
    """$y_t$; what stands at times that are not seen is not read."""
    seen: Bool[Array, " time"] = eqx.field(converter=jnp.asarray)
    """At which times there is an observation."""
    innovation: Scalar = eqx.field(converter=as_scalar, default=0.1)
    """$q$, the standard deviation of one step."""
    noise: Scalar = eqx.field(converter=as_scalar, default=0.15)
    """$r$, that of an observation."""

    def __check_init__(self):
        _check_data(self.observations, self.seen)
        check_scale(self.innovation, "innovation")
        check_positive(self.noise, "noise")

    @property
    def dim(self) -> int:
        """Number of times."""
        return self.observations.shape[0]

    @property
    def log_z(self) -> Scalar:
        r"""$\ln Z$, the evidence of the observations: that of a normal vector of covariance $q^2\min(s, t) + r^2\delta_{st}$."""
        # Times without an observation are given one of variance one that is zero and taken out again: shapes stay the same.
        both = self.seen[:, None] & self.seen[None]
        covariance = jnp.where(both, self.innovation**2 * _walk_covariance(self.dim, self.innovation.dtype), 0.0)
        covariance = covariance + jnp.diag(jnp.where(self.seen, self.noise**2, 1.0))
        filled = Gaussian(jnp.zeros_like(self.observations), covariance).log_prob(_masked(self))
        return filled + 0.5 * jnp.sum(~self.seen).astype(filled.dtype) * jnp.log(2 * jnp.pi)

    def log_density(self, x):
        return _log_joint(x, self, self.innovation, self.noise)

    def posterior(self) -> Gaussian:
        r"""The normalised density $\gamma/Z$."""
        factor, mean = self._precision()
        inverse = solve_triangular(factor, jnp.eye(self.dim, dtype=factor.dtype), lower=True)
        return Gaussian(mean, inverse.T @ inverse)

    @eqx.filter_jit
    def sample(self, n, *, key):
        factor, mean = self._precision()
        zs = jr.normal(key, (self.dim, n), mean.dtype)
        return (mean[:, None] + solve_triangular(factor, zs, lower=True, trans=1)).T

    def _precision(self):
        """The Cholesky factor of the precision matrix, and the mean."""
        steps = jnp.eye(self.dim, dtype=self.innovation.dtype) - jnp.eye(self.dim, k=-1, dtype=self.innovation.dtype)
        precision = steps.T @ steps / self.innovation**2 + jnp.diag(jnp.where(self.seen, 1 / self.noise**2, 0.0))
        factor = jnp.linalg.cholesky(precision)
        return factor, jax.scipy.linalg.cho_solve((factor, True), _masked(self) / self.noise**2)


class BrownianPathAndScales(AbstractTarget):
    r"""The same with unknown scales: a configuration is $(\ln q, \ln r, x_1, x_2, \dots)$, with $N(0, s^2)$ before the two logarithms.

    Reference:
        The form of the task "Brownian motion" in P. Sountsov et al., Inference Gym (2020), with data of our own.
    """

    observations: Float[Array, " time"] = eqx.field(converter=as_float)
    """$y_t$; what stands at times that are not seen is not read."""
    seen: Bool[Array, " time"] = eqx.field(converter=jnp.asarray)
    """At which times there is an observation."""
    prior_scale: Scalar = eqx.field(converter=as_scalar, default=2.0)
    """$s$."""
    log_z: None = eqx.field(default=None, init=False)
    """The evidence is unknown."""

    def __check_init__(self):
        _check_data(self.observations, self.seen)
        check_scale(self.prior_scale, "prior_scale")

    @property
    def dim(self) -> int:
        """Number of times, and two."""
        return 2 + self.observations.shape[0]

    def log_density(self, x):
        innovation, noise = jnp.exp(x[0]), jnp.exp(x[1])
        return jnp.sum(_log_normal(x[:2], self.prior_scale)) + _log_joint(x[2:], self, innovation, noise)

    def sample(self, n, *, key):
        refuse_draws(self)


def brownian_path(*, times: int = 30, hidden: int = 10, innovation: ArrayLike = 0.1, noise: ArrayLike = 0.15, key: Key) -> BrownianPath:
    """A path drawn from the model, of which `hidden` times in the middle are not seen.

    It is drawn in single precision, so that a key means the same data in both.

    Args:
        times: Number of times.
        hidden: Number of times without an observation.
        innovation: Standard deviation of one step.
        noise: That of an observation.
        key: Random key of the data.
    """
    require(times >= 1, "times", "be at least 1", times)
    require(0 <= hidden < times, "hidden", f"be between 0 and {times - 1}", hidden)
    innovation, noise = as_scalar(innovation), as_scalar(noise)
    walk_key, noise_key = jr.split(key)
    walk = jnp.cumsum(jr.normal(walk_key, (times,), jnp.float32)).astype(innovation.dtype)
    errors = jr.normal(noise_key, (times,), jnp.float32).astype(innovation.dtype)
    first = (times - hidden) // 2
    seen = (np.arange(times) < first) | (np.arange(times) >= first + hidden)
    return BrownianPath(innovation * walk + noise * errors, seen, innovation, noise)


def _check_data(observations, seen):
    require(observations.ndim == 1 and observations.size > 0, "observations", "have shape (time,)", f"shape {observations.shape}")
    require(seen.shape == observations.shape, "seen", f"have shape {observations.shape}", f"shape {seen.shape}")
    xp = library_of(observations)
    ensure(observations, xp.isfinite(observations) | ~xp.asarray(seen), "observations", "be finite where they are seen", observations)


def _masked(target):
    return jnp.where(target.seen, target.observations, 0.0)


def _log_joint(x, target, innovation, noise):
    steps = jnp.diff(x, prepend=jnp.zeros(1, x.dtype))
    logs = jnp.where(target.seen, _log_normal(_masked(target) - x, noise), 0.0)
    return jnp.sum(_log_normal(steps, innovation)) + jnp.sum(logs)


def _log_normal(x, scale):
    return -0.5 * (x / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def _walk_covariance(times, dtype):
    ranks = jnp.arange(1, times + 1)
    return jnp.minimum(ranks[:, None], ranks[None]).astype(dtype)
