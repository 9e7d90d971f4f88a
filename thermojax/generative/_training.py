"""Denoising score matching."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax._array import as_scalar, Scalar
from thermojax.dynamics import AbstractNoising


class ScoreMatching(eqx.Module):
    r"""The conditional path KL, $\int\tfrac12\sigma_t^2\,\langle\lVert s_\theta - \nabla\ln p(x_t|x_0)\rVert^2\rangle\,dt$, on a batch of data.

    It is the part of the path-measure bound on the likelihood that depends on the score, so that training minimises what `audit` reports.
    Times are stratified over the batch. A network with dropout takes ``score(t, x, key=key)``.

    Reference:
        P. Vincent, Neural Comput. 23, 1661 (2011); Y. Song et al., arXiv:2101.09258 (2021), theorem 1.
    """

    noising: AbstractNoising
    """The forward process."""
    data: Float[Array, "sample dim"]
    """Configurations to learn from."""
    width: Scalar = eqx.field(converter=as_scalar, default=0.0)
    """Size of a quantisation step: uniform noise of this width is added to the data, fresh for every batch."""
    start: Scalar = eqx.field(converter=as_scalar, default=0.0)
    """The earliest time; above zero for processes that start without noise."""
    horizon: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """The latest time."""
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
        ts = self.start + (self.horizon - self.start) * shares
        zs = jr.normal(noise_key, x0s.shape, x0s.dtype)
        if not self.dropout:
            return jnp.mean(jax.vmap(lambda *a: self._rate(score, *a))(ts, x0s, zs)) * (self.horizon - self.start)
        keys = jr.split(drop_key, self.batch)
        rates = jax.vmap(lambda t, x, z, k: self._rate(lambda s, y: score(s, y, key=k), t, x, z))(ts, x0s, zs, keys)
        return jnp.mean(rates) * (self.horizon - self.start)

    def _rate(self, score, t, x0, z):
        return denoising_rate(self.noising, score, t, x0, z)


def denoising_rate(noising: AbstractNoising, score, t: Scalar, x0: Float[Array, " dim"], z: Float[Array, " dim"]) -> Scalar:
    r"""$\tfrac12\sigma_t^2\lVert s_\theta(t, x_t) - \nabla\ln p(x_t|x_0)\rVert^2$ at $x_t = \alpha x_0 + \sqrt{v}\,z$, in nats per unit time."""
    spread = jnp.sqrt(noising.variance(t))
    x = noising.alpha(t) * x0 + spread * z
    return 0.5 * noising.noise(t) ** 2 * jnp.sum((score(t, x) + z / spread) ** 2)
