r"""A score network that starts as the exact score of a Gaussian fit.

The network corrects the denoised data $\hat x_0$ of the Gaussian fit, in the fit's own basis and in units of what the fit leaves
uncertain there; its last layer starts at zero. So an untrained network is the score of the Gaussian fit, pushed through the
noising, at every noise level, and training only ever has to learn what is not Gaussian.

Quantised data (`Cells`) have a second, sharp structure: at little noise all that is left to know is the cell of each coordinate. The
network then also predicts the weights of the cells, and the data inside a cell are denoised in closed form.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import ndtr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import require
from thermojax.distributions import Gaussian
from thermojax.dynamics import AbstractNoising
from thermojax.generative._scores import data_to_score


class Cells(eqx.Module):
    """Coordinates that were quantised and then spread uniformly over their cell."""

    low: Float[Array, " dim"] = eqx.field(converter=as_float)
    """The lower edge of the first cell of each coordinate."""
    width: Scalar = eqx.field(converter=as_scalar)
    """The width of a cell."""
    log_weights: Float[Array, "dim cell"] = eqx.field(converter=as_float)
    """Logarithms of the weights of the cells of each coordinate, up to a constant."""

    def denoise(self, y: Float[Array, " dim"], sigma: Scalar, log_odds: ArrayLike = 0.0) -> Float[Array, " dim"]:
        r"""$\langle x\rangle$ given $y = x + \sigma z$, coordinate by coordinate, with weights multiplied by ``exp(log_odds)``."""
        weights = self.log_weights + log_odds
        places = jax.vmap(_cell_mean, in_axes=(0, None, 0))((y - self.low) / self.width, sigma / self.width, weights)
        return self.low + self.width * places


class Mixer(eqx.Module):
    """A residual MLP-mixer over the patches of an image, modulated by the noise level.

    Reference:
        I. Tolstikhin et al., arXiv:2105.01601 (2021); the modulation is that of W. Peebles, S. Xie, arXiv:2212.09748 (2022), sec. 3.2.
    """

    embed: eqx.nn.MLP
    enter: eqx.nn.Linear
    places: Float[Array, "patch width"]
    blocks: list["_Block"]
    modulate: eqx.nn.Linear
    leave: eqx.nn.Linear
    shape: tuple[int, int] = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int],
        features: int,
        outputs: int,
        *,
        patch: int = 2,
        width: int = 64,
        depth: int = 3,
        dropout: float = 0.05,
        key: Key,
    ):
        """A network from `features` numbers per pixel to `outputs` numbers per pixel, zero before training.

        Args:
            shape: Height and width of the image, multiples of `patch`.
            features: Input channels.
            outputs: Output channels.
            patch: Side of a patch.
            width: Channels of each patch inside the network.
            depth: Number of residual blocks.
            dropout: Share of the hidden units that are switched off in training.
            key: Random key of the initial weights.
        """
        require(shape[0] % patch == 0 and shape[1] % patch == 0, "shape", f"be a multiple of the patch, {patch}", shape)
        keys = jr.split(key, depth + 5)
        patches = shape[0] * shape[1] // patch**2
        self.embed = eqx.nn.MLP(2 * _FREQUENCIES, width, width, 1, jax.nn.silu, jax.nn.silu, key=keys[0])
        self.enter = eqx.nn.Linear(patch**2 * features, width, key=keys[1])
        self.places = 0.3 * jr.normal(keys[2], (patches, width))
        self.blocks = [_Block(patches, width, dropout, key=k) for k in keys[5:]]
        self.modulate = _scaled(eqx.nn.Linear(width, 2 * width, key=keys[3]), 0.1)
        self.leave = _scaled(eqx.nn.Linear(width, patch**2 * outputs, key=keys[4]), 0.0)
        self.shape, self.patch = shape, patch

    def __call__(self, level: Scalar, x: Float[Array, "pixel feature"], *, key: Key | None = None) -> Float[Array, "pixel output"]:
        """The output at log signal-to-noise ratio `level`; with a key, units drop out."""
        waves = level * jnp.exp(jnp.linspace(jnp.log(0.06), jnp.log(2.0), _FREQUENCIES, dtype=x.dtype))
        mood = self.embed(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)]))
        tokens = jax.vmap(self.enter)(self._cut(x)) + self.places
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, mood, key=None if key is None else jr.fold_in(key, i))
        scale, shift = jnp.split(self.modulate(mood), 2)
        return self._join(jax.vmap(lambda token: self.leave(_normalise(token) * (1 + scale) + shift))(tokens))

    def _cut(self, x):
        rows, columns = self.shape[0] // self.patch, self.shape[1] // self.patch
        return x.reshape(rows, self.patch, columns, self.patch, -1).swapaxes(1, 2).reshape(rows * columns, -1)

    def _join(self, tokens):
        rows, columns = self.shape[0] // self.patch, self.shape[1] // self.patch
        pixels = tokens.reshape(rows, columns, self.patch, self.patch, -1).swapaxes(1, 2)
        return pixels.reshape(self.shape[0] * self.shape[1], -1)


class ScoreNetwork(eqx.Module):
    r"""A learned score $s_\theta(t, x)$ that starts as the score of a Gaussian fit.

    Only `network` and `trust` are meant to be trained: ``fit(..., where=lambda score: (score.network, score.trust))``.
    """

    noising: AbstractNoising
    """The noising process."""
    mean: Float[Array, " dim"]
    """Mean of the fit."""
    eigenvalues: Float[Array, " dim"]
    """Eigenvalues of the covariance of the fit."""
    basis: Float[Array, "dim dim"]
    """Its eigenvectors, in columns."""
    cells: Cells | None
    """How the data were quantised."""
    network: Mixer
    """What is learned."""
    trust: eqx.nn.Linear
    """How much of the cells' denoiser enters, coordinate by coordinate and noise level by noise level; zero before training."""

    def __init__(
        self,
        noising: AbstractNoising,
        fit: Gaussian,
        shape: tuple[int, int],
        *,
        cells: Cells | None = None,
        patch: int = 2,
        width: int = 64,
        depth: int = 3,
        dropout: float = 0.05,
        key: Key,
    ):
        """A score for images of `shape`, flattened.

        Args:
            noising: The noising process.
            fit: The Gaussian fit of the data.
            shape: Height and width of an image.
            cells: How the data were quantised, if they were.
            patch: See `Mixer`, like the next three.
            width: Channels.
            depth: Residual blocks.
            dropout: Share of units that drop out.
            key: Random key of the initial weights.
        """
        dim = shape[0] * shape[1]
        require(fit.mean.shape == (dim,), "fit", f"have {dim} dimensions, the pixels of an image", f"shape {fit.mean.shape}")
        full = fit.covariance if fit.covariance.ndim == 2 else jnp.diag(jnp.broadcast_to(fit.covariance, (dim,)))
        self.noising, self.mean, self.cells = noising, fit.mean, cells
        self.eigenvalues, self.basis = jnp.linalg.eigh(full)
        network_key, trust_key = jr.split(key)
        outputs = 1 if cells is None else 2 + cells.log_weights.shape[1]
        features = 3 if cells is None else 6
        self.network = Mixer(shape, features, outputs, patch=patch, width=width, depth=depth, dropout=dropout, key=network_key)
        self.trust = _scaled(eqx.nn.Linear(2 * _FREQUENCIES, dim, key=trust_key), 0.0)

    def __call__(self, t: Scalar, x: Float[Array, " dim"], *, key: Key | None = None) -> Float[Array, " dim"]:
        """The score of one configuration; with a key, units of the network drop out."""
        return data_to_score(self.noising, t, x, self.denoise(t, x, key=key))

    def denoise(self, t: Scalar, x: Float[Array, " dim"], *, key: Key | None = None) -> Float[Array, " dim"]:
        r"""The denoised data $\hat x_0(t, x)$."""
        alpha, v = self.noising.alpha(t), self.noising.variance(t)
        level = 2 * jnp.log(alpha) - jnp.log(v)
        total = alpha**2 * self.eigenvalues + v
        modes = self.basis.T @ (x - alpha * self.mean)
        gaussian = self.mean + self.basis @ (alpha * self.eigenvalues / total * modes)
        variances = self.basis**2 @ self.eigenvalues
        white = self.basis @ (modes / jnp.sqrt(total))
        features = [white, (x - alpha * self.mean) / jnp.sqrt(alpha**2 * variances + v), gaussian]
        if self.cells is None:
            out = self.network(level, jnp.stack(features, axis=-1), key=key)
            return gaussian + self._uncertain(out[:, 0], v / total)
        y, sigma = x / alpha, jnp.sqrt(v) / alpha
        apart = self.cells.denoise(y, sigma)
        features += [apart, (apart - gaussian) * jnp.sqrt(1 / variances + alpha**2 / v), (apart - y) / sigma]
        out = self.network(level, jnp.stack(features, axis=-1), key=key)
        waves = level * jnp.exp(jnp.linspace(jnp.log(0.06), jnp.log(2.0), _FREQUENCIES, dtype=x.dtype))
        share = out[:, 1] + self.trust(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)]))
        informed = self.cells.denoise(y, sigma, out[:, 2:])
        return gaussian + self._uncertain(out[:, 0], v / total) + share * (informed - gaussian)

    def _uncertain(self, out, left):
        """`out` in units of the standard deviation that the Gaussian fit leaves in each of its modes."""
        return self.basis @ (jnp.sqrt(self.eigenvalues * left) * (self.basis.T @ out))


class _Block(eqx.Module):
    modulate: eqx.nn.Linear
    across: eqx.nn.MLP
    expand: eqx.nn.Linear
    shrink: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, patches, width, dropout, *, key):
        keys = jr.split(key, 4)
        self.modulate = _scaled(eqx.nn.Linear(width, 6 * width, key=keys[0]), 0.1)
        self.across = eqx.nn.MLP(patches, patches, width, 1, jax.nn.silu, key=keys[1])
        self.expand = eqx.nn.Linear(width, 2 * width, key=keys[2])
        self.shrink = eqx.nn.Linear(2 * width, width, key=keys[3])
        self.dropout = eqx.nn.Dropout(dropout)

    def __call__(self, tokens, mood, *, key):
        first_key, second_key = (None, None) if key is None else jr.split(key)
        scale, shift, gate, scale2, shift2, gate2 = jnp.split(self.modulate(mood)[None], 6, axis=1)
        mixed = jax.vmap(self.across, 1, 1)(_normalise(tokens) * (1 + scale) + shift)
        tokens = tokens + (1 + gate) * self._drop(mixed, first_key)
        hidden = jax.nn.silu(jax.vmap(self.expand)(_normalise(tokens) * (1 + scale2) + shift2))
        return tokens + (1 + gate2) * jax.vmap(self.shrink)(self._drop(hidden, second_key))

    def _drop(self, x, key):
        return self.dropout(x, key=key, inference=key is None)


_FREQUENCIES = 16


def _scaled(linear, factor):
    return jax.tree.map(lambda leaf: leaf * factor if eqx.is_inexact_array(leaf) else leaf, linear)


def _normalise(x):
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)


def _cell_mean(y, sigma, log_weights):
    """The mean of a number in [0, cells], uniform in each unit cell, given itself plus noise of size `sigma`."""
    cells = log_weights.shape[0]
    edges = jnp.arange(cells + 1, dtype=log_weights.dtype)
    # Little noise: exact. Far outside all cells the masses underflow; there the answer is the nearest edge anyway.
    s = jnp.minimum(sigma, _COARSE)
    near = jnp.clip(y, -3.5 * s, cells + 3.5 * s)
    a = (edges - near) / s
    weights = jax.nn.softmax(log_weights)
    heights = jnp.exp(-0.5 * a**2) / jnp.sqrt(2 * jnp.pi)
    masses = weights * jnp.maximum(jnp.diff(ndtr(a)), 1e-12)
    fine = near - s * jnp.sum(weights * jnp.diff(heights)) / jnp.sum(masses)
    # Much noise: differences of ndtr lose their digits, but each cell is then as good as a Gaussian of variance 1/12.
    middles = edges[:-1] + 0.5
    spread = jnp.maximum(sigma, _COARSE) ** 2 + 1 / 12
    middle = jnp.sum(jax.nn.softmax(log_weights - 0.5 * (y - middles) ** 2 / spread) * middles)
    coarse = middle + (y - middle) / (12 * spread)
    return jnp.where(sigma < _COARSE, fine, coarse)


# The noise, in cells, at which the two forms above agree to about a part in ten thousand.
_COARSE = 1.5
