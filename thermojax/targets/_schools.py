"""Eight schools: a hierarchical model with a funnel, whose evidence and posterior draws are known by one quadrature."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, require
from thermojax.targets._line import draw_line, log_integral
from thermojax.targets._target import AbstractTarget, check_scale

EFFECTS = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
ERRORS = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)


class EightSchools(AbstractTarget):
    r"""Effects $\theta_j \sim N(\mu, \tau^2)$ of coaching, seen as $y_j \sim N(\theta_j, \sigma_j^2)$, with priors $\mu \sim N(0, m^2)$ and
    $\tau$ half-Cauchy of scale $t$.

    A configuration is $(\mu, \ln\tau, \zeta_1, \zeta_2, \dots)$ with $\theta_j = \mu + \tau\zeta_j$, or, centred, with $\theta_j$ in place
    of $\zeta_j$. The Jacobian of the logarithm is in the density, priors are normalised, and $Z$ is the evidence of the effects.

    Reference:
        D. B. Rubin, J. Educational Statistics 6, 377 (1981); A. Gelman et al., Bayesian Data Analysis, 3rd ed. (2013), section 5.5.
    """

    effects: Float[Array, " school"] = eqx.field(converter=as_float, default=EFFECTS)
    """$y_j$."""
    errors: Float[Array, " school"] = eqx.field(converter=as_float, default=ERRORS)
    r"""$\sigma_j$."""
    mean_scale: Scalar = eqx.field(converter=as_scalar, default=5.0)
    """$m$."""
    spread_scale: Scalar = eqx.field(converter=as_scalar, default=5.0)
    """$t$."""
    centred: bool = eqx.field(static=True, default=False)
    r"""Whether the effects themselves are coordinates: a funnel where $\tau$ is small."""

    def __check_init__(self):
        shape = self.effects.shape
        require(len(shape) == 1 and shape[0] > 0, "effects", "have shape (school,)", f"shape {shape}")
        require(self.errors.shape == shape, "errors", f"have shape {shape}", f"shape {self.errors.shape}")
        check_positive(self.errors, "errors")
        check_scale(self.mean_scale, "mean_scale")
        check_scale(self.spread_scale, "spread_scale")

    @property
    def dim(self) -> int:
        """Number of coordinates: two more than schools."""
        return 2 + self.effects.shape[0]

    @property
    def log_z(self) -> Scalar:
        r"""$\ln Z$, the evidence: by quadrature over $\ln\tau$, the effects and their mean integrated in closed form."""
        return log_integral(self._log_spread_density, *self._ends())

    def log_density(self, x):
        mu, log_tau, rest = x[0], x[1], x[2:]
        tau = jnp.exp(log_tau)
        effects = rest if self.centred else mu + tau * rest
        prior = _log_normal(rest, mu, tau) if self.centred else _log_normal(rest, 0.0, 1.0)
        priors = _log_normal(mu, 0.0, self.mean_scale) + self._log_prior_spread(log_tau)
        return priors + jnp.sum(prior) + jnp.sum(_log_normal(self.effects, effects, self.errors))

    @eqx.filter_jit
    def sample(self, n, *, key):
        r"""Exact draws: $\ln\tau$ by inversion, then $\mu$ and then the effects from their normal laws given it."""
        spread_key, mean_key, effects_key = jr.split(key, 3)
        log_taus = draw_line(self._log_spread_density, *self._ends(), n, key=spread_key)
        mean_zs = jr.normal(mean_key, (n,), log_taus.dtype)
        effect_zs = jr.normal(effects_key, (n, *self.effects.shape), log_taus.dtype)

        def place(log_tau, mean_z, zs):
            tau = jnp.exp(log_tau)
            precision, pull, _, _ = self._sums(log_tau)
            mu = pull / precision + mean_z / jnp.sqrt(precision)
            # The posterior of zeta_j is normal, of precision 1 + tau^2 / sigma_j^2: no number grows where tau is small.
            weight = 1 + (tau / self.errors) ** 2
            zetas = tau * (self.effects - mu) / self.errors**2 / weight + zs / jnp.sqrt(weight)
            rest = mu + tau * zetas if self.centred else zetas
            return jnp.concatenate([jnp.stack([mu, log_tau]), rest])

        return jax.vmap(place)(log_taus, mean_zs, effect_zs)

    def _log_prior_spread(self, log_tau):
        r"""Half-Cauchy in $\tau$, as a density of $\ln\tau$."""
        ratio = jnp.exp(log_tau) / self.spread_scale
        return jnp.log(2 / jnp.pi * ratio / (1 + ratio**2))

    def _log_spread_density(self, log_taus):
        r"""$\ln p(y, \ln\tau)$ for an array of any shape: $\mu$ is normal given $\tau$, and integrated."""

        def one(log_tau):
            precision, pull, square, log_volume = self._sums(log_tau)
            marginal = 0.5 * (pull**2 / precision - square) - 0.5 * jnp.log(precision) - jnp.log(self.mean_scale) - log_volume
            return marginal + self._log_prior_spread(log_tau)

        return jax.vmap(one)(log_taus.reshape(-1)).reshape(log_taus.shape)

    def _sums(self, log_tau):
        r"""Of $\mu$ given $y$ and $\tau$: its precision, and precision times mean; and what else the evidence given $\tau$ needs."""
        variances = jnp.exp(2 * log_tau) + self.errors**2
        precision = 1 / self.mean_scale**2 + jnp.sum(1 / variances)
        log_volume = 0.5 * jnp.sum(jnp.log(2 * jnp.pi * variances))
        return precision, jnp.sum(self.effects / variances), jnp.sum(self.effects**2 / variances), log_volume

    def _ends(self):
        # The density of ln tau falls like tau below all scales, and at least like 1 / tau^2 above them.
        centre, far = jnp.log(self.spread_scale), jnp.log(jnp.maximum(jnp.max(jnp.abs(self.effects)), jnp.max(self.errors)))
        return jnp.minimum(centre, far) - 36, jnp.maximum(centre, far) + 18


def _log_normal(x, mean, scale):
    return -0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)
