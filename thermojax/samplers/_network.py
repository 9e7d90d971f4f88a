"""The network of a controlled sampler."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax._array import as_scalar, Scalar
from thermojax._check import require

_FREQUENCIES = 8


class Control(eqx.Module):
    r"""Controls $u_i(t, x) = N_i(t, x) + g_i(t)\odot\nabla\ln\gamma(x)$ and a flow, zero before training.

    The second part is what the path integral sampler takes.

    Reference:
        Q. Zhang, Y. Chen, arXiv:2111.15141 (2022), sec. 5.
    """

    body: eqx.nn.MLP
    gain: eqx.nn.MLP
    scale: Scalar = eqx.field(converter=as_scalar)
    """Configurations are divided by it before they enter."""
    clip: Scalar = eqx.field(converter=as_scalar)
    """Largest length of the gradient that enters."""
    heads: int = eqx.field(static=True)

    def __init__(self, dim: int, heads: int, *, width: int = 64, depth: int = 2, scale: float = 1.0, clip: float = 100.0, key: Key):
        """A network with `heads` controls of `dim` coordinates.

        Args:
            dim: Coordinates of a configuration.
            heads: Number of controls.
            width: Units of a hidden layer.
            depth: Hidden layers.
            scale: Typical size of a coordinate.
            clip: Largest length of the gradient that enters.
            key: Random key of the initial weights.
        """
        require(heads >= 0 and width >= 1 and depth >= 1, "heads", "not be negative, width and depth positive", (heads, width, depth))
        body_key, gain_key = jr.split(key)
        outputs = heads * dim + 1
        self.body = silent(eqx.nn.MLP(2 * dim + 2 * _FREQUENCIES, outputs, width, depth, jax.nn.silu, key=body_key))
        self.gain = silent(eqx.nn.MLP(2 * _FREQUENCIES, max(heads, 1) * dim, 32, 1, jax.nn.silu, key=gain_key))
        self.scale, self.clip, self.heads = as_scalar(scale), as_scalar(clip), heads

    def __call__(self, t: Scalar, x: Float[Array, " dim"], force: Float[Array, " dim"]) -> tuple[Float[Array, "head dim"], Scalar]:
        r"""Controls and flow at time `t` between 0 and 1, where the target has the gradient `force`."""
        waves = t * jnp.pi * jnp.arange(1, _FREQUENCIES + 1, dtype=x.dtype)
        clock = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)])
        size = x.shape[0]
        features = jnp.concatenate([x / self.scale, jnp.arcsinh(force * self.scale), clock])
        out = self.body(features)
        gains = self.gain(clock)[: self.heads * size]
        return (out[:-1] + gains * jnp.tile(force, self.heads)).reshape(self.heads, size), out[-1]

    def clipped(self, force: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """A gradient, no longer than `clip`."""
        return force * jnp.minimum(1.0, self.clip / jnp.sqrt(jnp.sum(force**2) + 1e-12))


def silent(network: eqx.nn.MLP) -> eqx.nn.MLP:
    """A network whose last layer is zero."""
    last = lambda n: (n.layers[-1].weight, n.layers[-1].bias)
    return eqx.tree_at(last, network, tuple(jnp.zeros_like(a) for a in last(network)))
