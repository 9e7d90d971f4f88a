r"""Bridges that are learned from paths: iterative Markovian fitting.

A coupling of the ends and the pinned reference between them make a process that has the right ends but remembers where it began. The
diffusion with the same densities at all times (its Markovian projection) has the guide $\langle\nabla\ln p_R(x_1|x_t)\mid x_t = x\rangle$,
found by regression; its own ends are a better coupling, and so on. Ends that are coupled by the bridge are left as they are.

Both directions are fitted, each to paths that the other one made from its own exact end, so that errors at the ends do not add up.

References:
    Y. Shi, V. De Bortoli, A. Campbell, A. Doucet, Diffusion Schrödinger bridge matching, arXiv:2303.16852 (2023), algorithm 1 and eqs. (9)
    to (11). S. Peluchetti, arXiv:2304.00917 (2023). A. Tong et al., arXiv:2307.03672 (2023), for the first coupling by entropic transport.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import Scalar
from thermojax._check import check_times, require
from thermojax.bridges._bridge import AbstractBridge, check_interval, Guide, Guided, pin, Samples
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractNoising, Reversed
from thermojax.ensemble import accumulate
from thermojax.estimators import Estimate, mean
from thermojax.functionals import GirsanovRatio
from thermojax.optimize import fit
from thermojax.phase import check_configurations
from thermojax.steppers import Diffrax


class NetworkGuide(eqx.Module):
    r"""A learned guide: linear in $x$ with coefficients that depend on time, and a correction that is not linear. Zero before training.

    The correction grows as $1/\sqrt w$ towards its end, with the variance $w$ that the reference has left there, to some thirty times its
    size in the middle: it can resolve densities of about a thirtieth of the reference's width.
    """

    reference: AbstractNoising
    """The reference process."""
    line: eqx.nn.MLP
    """The coefficients of the linear part."""
    curve: eqx.nn.MLP
    """The correction."""
    centre: Float[Array, " dim"]
    """The middle of the data."""
    scale: Scalar
    """Their standard deviation."""
    unit: Scalar
    """The size of a guide."""
    t0: Scalar
    """The beginning of the interval."""
    t1: Scalar
    """Its end."""
    backward: bool = eqx.field(static=True)
    """Whether it is the guide of the backward direction, whose end is the beginning."""

    def __init__(
        self,
        reference: AbstractNoising,
        centre: Array,
        scale: Scalar,
        t0: Scalar,
        t1: Scalar,
        *,
        backward: bool = False,
        width: int = 64,
        depth: int = 2,
        key: Key,
    ):
        """A guide that is zero.

        Args:
            reference: The reference process.
            centre: The middle of the data.
            scale: Their standard deviation.
            t0: The beginning of the interval.
            t1: Its end.
            backward: Whether it is the guide of the backward direction.
            width: Units of a hidden layer.
            depth: Hidden layers.
            key: Random key of the weights.
        """
        dim, (line_key, curve_key) = centre.shape[0], jr.split(key)
        self.reference, self.centre, self.scale, self.t0, self.t1, self.backward = reference, centre, scale, t0, t1, backward
        # A guide is about a distance over a variance; near the end of a noisy bridge, one over the width of the last density.
        self.unit = scale / reference.transition(t0, t1)[1] + 1 / scale
        network = lambda inputs, outputs, k: _silent(eqx.nn.MLP(inputs, outputs, width, depth, jax.nn.silu, dtype=centre.dtype, key=k))
        self.line = network(_FEATURES, dim * dim + dim, line_key)
        self.curve = network(_FEATURES + dim, dim, curve_key)

    def __call__(self, t: Scalar, x: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The guide at one place."""
        dim, z = x.shape[0], (x - self.centre) / self.scale
        s = (t - self.t0) / (self.t1 - self.t0)
        _, v = self.reference.transition(self.t0, self.t1)
        _, w = self.reference.transition(t, self.t1)
        # Variance of the reference before and after t, as shares of the whole: their logarithms resolve both ends.
        shares = jnp.stack([1 - w / v, w / v]) + _FLOOR
        waves = jnp.pi * s * jnp.arange(1, _WAVES + 1, dtype=x.dtype)
        time = jnp.concatenate([2 * s[None] - 1, jnp.sin(waves), jnp.cos(waves), 1 + 0.3 * jnp.log(shares)])
        growth = jax.lax.rsqrt(shares[0] if self.backward else shares[1])
        coefficients = self.line(time)
        linear = coefficients[: dim * dim].reshape(dim, dim) @ z + coefficients[dim * dim :]
        return self.unit * (linear + growth * self.curve(jnp.concatenate([time, z])))


class Guides(NamedTuple):
    """The guides of both directions, fitted together."""

    ahead: Guide
    """The forward guide."""
    back: Guide
    """The backward guide, in forward time."""


class BridgeMatching(eqx.Module):
    r"""The loss of one Markovian projection, a function of `Guides`, at the times at which Euler's steps read the drift:
    $\int\tfrac12\sigma_t^2\langle|g(t, x_t) - \nabla\ln p_R(x_1|x_t)|^2\rangle\,dt$, and the same for the other direction.

    Up to a constant it is the path KL from the pinned reference to the guided process. Each $x_t$ is seen with both signs of its noise,
    which takes most of the variance from the gradient near the ends.
    """

    reference: AbstractNoising
    """The reference process."""
    ts: Float[Array, " time"]
    """Times of the steps."""
    ahead: tuple[Float[Array, "pair dim"], Float[Array, "pair dim"]]
    """Pairs of ends for the forward guide."""
    back: tuple[Float[Array, "pair dim"], Float[Array, "pair dim"]]
    """Pairs of ends for the backward one."""
    batch: int = eqx.field(static=True)
    """Pairs in a gradient step."""

    def __call__(self, guides: Guides, key: Key) -> Scalar:
        """The loss on a batch."""
        ahead_key, back_key = jr.split(key)
        return self._one(guides.ahead, self.ahead, False, ahead_key) + self._one(guides.back, self.back, True, back_key)  # noqa: FBT003

    def _one(self, guide, pairs, backward, key):
        choice_key, time_key, noise_key = jr.split(key, 3)
        t0, t1 = self.ts[0], self.ts[-1]
        chosen = jr.randint(choice_key, (self.batch,), 0, pairs[0].shape[0])
        x0s, x1s = pairs[0][chosen], pairs[1][chosen]
        # Each step as often as every other, in strata: targets are noisier near the ends, where steps should be short.
        steps = self.ts.shape[0] - 1
        places = (jnp.arange(self.batch, dtype=t1.dtype) + jr.uniform(time_key, (self.batch,), t1.dtype)) / self.batch
        step = jnp.minimum((steps * places).astype(int), steps - 1)
        times, lengths = 0.5 * (self.ts[step] + self.ts[step + 1]), self.ts[step + 1] - self.ts[step]
        zs = jr.normal(noise_key, x0s.shape, x0s.dtype)

        def miss(t, x0, x1, z):
            r, s, tau = pin(self.reference, t0, t, t1)
            a, q = self.reference.transition(t0, t)
            b, w = self.reference.transition(t, t1)

            def at(noise):
                x = r * x0 + s * x1 + jnp.sqrt(tau) * noise
                target = (a * x0 - x) / q if backward else b * (x1 - b * x) / w
                return jnp.sum((guide(t, x) - target) ** 2)

            return 0.25 * self.reference.noise(t) ** 2 * (at(z) + at(-z))

        return steps * jnp.mean(lengths * jax.vmap(miss)(times, x0s, x1s, zs))


class LearnedBridge(AbstractBridge):
    """A bridge whose guides are networks; see `learn_bridge`, which makes it."""

    initial: AbstractDistribution
    """The first density."""
    final: AbstractDistribution
    """The last density."""
    reference: AbstractNoising
    """The reference process."""
    t0: Scalar
    """The beginning of the interval."""
    t1: Scalar
    """Its end."""
    guides: Guides
    """The networks of both directions."""
    path_kl: Estimate
    """Path KL to the reference after each round, of the forward process and at the time step of the training; shape ``(round,)`` each."""
    history: Float[Array, " step"]
    """The loss before each gradient step."""

    @property
    def guide(self) -> Any:
        """See `AbstractBridge`."""
        return self.guides.ahead

    @property
    def reverse_guide(self) -> Any:
        """See `AbstractBridge`."""
        return self.guides.back


def learn_bridge(
    initial: AbstractDistribution | ArrayLike,
    final: AbstractDistribution | ArrayLike,
    reference: AbstractNoising,
    ts: ArrayLike,
    *,
    pairs: tuple[ArrayLike, ArrayLike] | None = None,
    rounds: int = 6,
    steps: int = 500,
    batch: int = 256,
    pool: int = 8192,
    learning_rate: float = 3e-3,
    width: int = 64,
    depth: int = 2,
    checkpoint: str | os.PathLike | None = None,
    progress: Callable[[int], None] | None = None,
    key: Key,
) -> LearnedBridge:
    """Learn the Schrödinger bridge between two densities that can be drawn from.

    Each round goes on from the guides of the last one, by Adam with a rate that falls to zero as a cosine; its result is an average over
    its last steps. The first round starts from given pairs, or from independent ones; see `SampledBridge.pairs` for better ones.

    Args:
        initial: The first density, or samples of it of shape ``(sample, dim)``.
        final: The last density, likewise.
        reference: The reference process, of one noise for all coordinates.
        ts: Times of the steps, from the beginning of the interval to its end; guides are learned
            at their middles, where Euler's method reads them.
        pairs: Pairs of ends for the first round, shape ``(pair, dim)`` each; independent draws if omitted.
        rounds: Markovian projections.
        steps: Gradient steps of a round.
        batch: Pairs in a gradient step, for each direction.
        pool: Paths that each direction makes in a round.
        learning_rate: The first step of Adam.
        width: Units of a hidden layer of the networks.
        depth: Their hidden layers.
        checkpoint: A file, beside which the descent of each round keeps itself, as `optimize.fit` does: ``checkpoint.0`` and so on.
        progress: Called with the number of rounds made.
        key: Random key.

    Raises:
        TypeError, ValueError: if shapes or numbers have no meaning.
    """
    initial, final = _drawable(initial, "initial"), _drawable(final, "final")
    require(min(rounds, steps) >= 1, "rounds", "be at least 1, like `steps`", (rounds, steps))
    require(min(batch, pool) >= 2, "batch", "be at least 2, like `pool`", (batch, pool))
    require(learning_rate > 0, "learning_rate", "be positive", learning_rate)
    first_key, last_key, network_key, key = jr.split(key, 4)
    x0s, x1s = initial.sample(pool, key=first_key), final.sample(pool, key=last_key)
    require(x0s.shape[1] == x1s.shape[1], "final", f"have the dimension of `initial`, {x0s.shape[1]}", x1s.shape[1])
    ahead = back = (x0s, x1s) if pairs is None else _checked(pairs, x0s)
    ts = check_times(ts, x0s.dtype)
    t0, t1 = ts[0], ts[-1]
    check_interval(reference, t0, t1)
    guides = _untrained(reference, x0s, x1s, t0, t1, width, depth, network_key)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    weights = lambda guides: [part for guide in guides for part in (guide.line, guide.curve)]
    # Of second order: the ends of Euler's paths are off by O(h), and a guide that learns from them is off as much.
    heun = Diffrax(diffrax.Heun())  # pyright: ignore[reportCallIssue]
    kls, history = [], []
    for k in range(rounds):
        fit_key, noise_key, first_key, last_key, return_key = jr.split(jr.fold_in(key, k), 5)
        loss = BridgeMatching(reference, ts, ahead, back, batch)
        options = {"optimizer": optimizer, "steps": steps, "every": steps, "where": weights, "average": 0.99}
        kept = None if checkpoint is None else f"{os.fspath(checkpoint)}.{k}"
        found = fit(loss, guides, checkpoint=kept, key=fit_key, **options)
        guides = found.model
        history.append(found.history)
        forward, reverse = Guided(reference, guides.ahead), Reversed(reference, guides.back, t0 + t1)
        x0s, x1s = initial.sample(pool, key=first_key), final.sample(pool, key=last_key)
        kls.append(mean(accumulate(GirsanovRatio(reference), forward, x0s, ts, key=noise_key)[1]))
        # Each direction learns from the paths of the other one.
        if k + 1 < rounds:
            back = x0s, accumulate((), forward, x0s, ts, stepper=heun, key=noise_key)[0]
            own = (t0 + t1 - ts)[::-1]
            ahead = accumulate((), reverse, x1s, own, stepper=heun, key=return_key)[0], x1s
        if progress is not None:
            progress(k + 1)
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *kls)
    return LearnedBridge(initial, final, reference, t0, t1, guides, stacked, jnp.concatenate(history))


def _drawable(density, name):
    if isinstance(density, AbstractDistribution):
        return density
    return Samples(check_configurations(density, name))


def _checked(pairs, like):
    x0s, x1s = (check_configurations(xs, f"pairs[{i}]").astype(like.dtype) for i, xs in enumerate(pairs))
    require(x0s.shape == x1s.shape, "pairs", "be two arrays of one shape", (x0s.shape, x1s.shape))
    require(x0s.shape[1] == like.shape[1], "pairs", f"have the dimension of `initial`, {like.shape[1]}", x0s.shape[1])
    return x0s, x1s


@eqx.filter_jit
def _untrained(reference, x0s, x1s, t0, t1, width, depth, key):
    both = jnp.concatenate([x0s, x1s])
    centre = jnp.mean(both, axis=0)
    scale = jnp.sqrt(jnp.mean((both - centre[None]) ** 2))
    ahead, back = jr.split(key)
    make = lambda backward, k: NetworkGuide(reference, centre, scale, t0, t1, backward=backward, width=width, depth=depth, key=k)
    return Guides(make(False, ahead), make(True, back))  # noqa: FBT003


def _silent(network):
    """A network whose last layer is zero."""
    last = lambda n: (n.layers[-1].weight, n.layers[-1].bias)
    return eqx.tree_at(last, network, tuple(jnp.zeros_like(a) for a in last(network)))


_WAVES = 3
_FEATURES = 3 + 2 * _WAVES
_FLOOR = 1e-3
