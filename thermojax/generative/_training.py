"""Denoising score matching."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax.dynamics import AbstractNoising


class ScoreMatching(eqx.Module):
    r"""The conditional path KL, $\int\tfrac12\sigma_t^2\,\langle\lVert s_\theta - \nabla\ln p(x_t|x_0)\rVert^2\rangle\,dt$, on a batch of
    data.

    It is the part of the path-measure bound on the likelihood that depends on the score, so that training minimises what
    `noise_profile` reports. Times are stratified over the batch, and drawn more often where `focus` is larger, which leaves the mean as it
    is and changes only its variance. A network with dropout takes ``score(t, x, key=key)``.

    Reference:
        P. Vincent, Neural Comput. 23, 1661 (2011); Y. Song et al., arXiv:2101.09258 (2021), theorem 1.
    """

    noising: AbstractNoising
    """The forward process."""
    data: Float[Array, "sample dim"] = eqx.field(converter=as_float)
    """Configurations to learn from."""
    width: Scalar = eqx.field(converter=as_scalar, default=0.0)
    """Size of a quantisation step: uniform noise of this width is added to the data, fresh for every batch."""
    start: Scalar = eqx.field(converter=as_scalar, default=0.0)
    """The earliest time; above zero for processes that start without noise."""
    horizon: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """The latest time."""
    focus: Float[Array, " interval"] = eqx.field(converter=as_float, default=(1.0,))
    """Positive weights of equal intervals of time, of any number: how often each is drawn, up to a constant."""
    batch: int = eqx.field(static=True, default=256)
    """Configurations in a batch."""
    dropout: bool = eqx.field(static=True, default=False)
    """Whether the score takes a key."""

    def __call__(self, score, key: Key) -> Scalar:
        """The mean over one batch, in nats."""
        pick_key, jitter_key, time_key, noise_key, drop_key = jr.split(key, 5)
        picks = jr.randint(pick_key, (self.batch,), 0, self.data.shape[0])
        x0s = self.data[picks] + self.width * jr.uniform(jitter_key, (self.batch, self.data.shape[1]), self.data.dtype)
        shares = (jnp.arange(self.batch, dtype=x0s.dtype) + jr.uniform(time_key, (), x0s.dtype)) / self.batch
        ts, importance = self._times(shares)
        zs = jr.normal(noise_key, x0s.shape, x0s.dtype)
        if self.dropout:
            rates = jax.vmap(lambda t, x, z, k: denoising_rate(self.noising, lambda s, y: score(s, y, key=k), t, x, z))(
                ts, x0s, zs, jr.split(drop_key, self.batch)
            )
        else:
            rates = jax.vmap(lambda t, x, z: denoising_rate(self.noising, score, t, x, z))(ts, x0s, zs)
        return jnp.mean(importance * rates) * (self.horizon - self.start)

    def _times(self, shares):
        """Times whose density is `focus`, from uniform numbers, and the inverse of that density on the unit interval."""
        focus = self.focus / jnp.sum(self.focus)
        above = jnp.cumsum(focus)
        intervals = jnp.minimum(jnp.searchsorted(above, shares), focus.shape[0] - 1)
        inside = 1.0 - (above[intervals] - shares) / focus[intervals]
        places = (intervals.astype(shares.dtype) + jnp.clip(inside, 0.0, 1.0)) / focus.shape[0]
        return self.start + (self.horizon - self.start) * places, 1.0 / (focus[intervals] * focus.shape[0])


def denoising_rate(noising: AbstractNoising, score, t: Scalar, x0: Float[Array, " dim"], z: Float[Array, " dim"]) -> Scalar:
    r"""$\tfrac12\sigma_t^2\lVert s_\theta(t, x_t) - \nabla\ln p(x_t|x_0)\rVert^2$ at $x_t = \alpha x_0 + \sqrt{v}\,z$, per unit time."""
    spread = jnp.sqrt(noising.variance(t))
    x = noising.alpha(t) * x0 + spread * z
    return 0.5 * noising.noise(t) ** 2 * jnp.sum((score(t, x) + z / spread) ** 2)
