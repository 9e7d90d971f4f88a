"""What a controlled sampler is: moves that look at each state once, and paths from either side."""

import abc
import functools as ft
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray as Key

from thermojax._array import Scalar
from thermojax.measures import AbstractPair, Unnormalised, Walks
from thermojax.phase import position_of, State, States
from thermojax.samplers._network import Control


class Look(NamedTuple):
    r"""All that is asked of target and network at one configuration: both are called once."""

    log_target: Scalar
    r"""$\ln\gamma(x)$."""
    force: Float[Array, " dim"]
    r"""$\nabla\ln\gamma(x)$."""
    controls: Float[Array, "head dim"]
    """The heads of the network."""
    flow: Scalar
    """What the network adds to the interpolated log-density; see `AbstractSampler.log_flow`."""


class Trace(NamedTuple):
    """Paths of a sampler, with the numbers that losses read."""

    x0s: States
    """First states."""
    x1s: States
    """Last states."""
    first: Float[Array, " sample"]
    r"""$\ln p_0(x_0)$."""
    last: Float[Array, " sample"]
    r"""$\ln\gamma(x_N)$, with the density of the velocities if there are some."""
    ratios: Float[Array, "sample step"]
    r"""$\ln K_k(x_{k+1}|x_k) - \ln L_k(x_k|x_{k+1})$ of each step."""
    flows: Float[Array, "sample level"]
    r"""$\ln F_k(x_k)$, the model's unnormalised density at each level; exact at both ends, up to $\ln Z$ at the first."""

    @property
    def log_ratios(self) -> Float[Array, " sample"]:
        r"""$\ell = \ln dP/dQ$."""
        return self.first + jnp.sum(self.ratios, axis=1) - self.last


class AbstractSampler(AbstractPair):
    r"""A chain from a prior to a target $\gamma/Z$, and one back, by Gaussian kernels that a network controls.

    Whatever the network returns, $\langle e^{-\ell}\rangle_P = Z$ holds for any number of steps.
    """

    target: eqx.AbstractVar[Unnormalised]
    network: eqx.AbstractVar[Control]
    prior_mean: eqx.AbstractVar[Float[Array, " dim"]]
    prior_log_scale: eqx.AbstractVar[Float[Array, " dim"]]
    log_steps: eqx.AbstractVar[Float[Array, "step dim"]]
    tempering: eqx.AbstractVar[Float[Array, " step"]]
    log_z: eqx.AbstractVar[Scalar]

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.tempering.shape[0]

    @abc.abstractmethod
    def first(self, z: State) -> State:
        """A first state, from standard normals of its shape."""

    @abc.abstractmethod
    def log_first(self, x0: State) -> Scalar:
        """The log-density of a first state."""

    @abc.abstractmethod
    def look(self, k: Int[Array, ""], x: State) -> Look:
        """Target and network at level k."""

    @abc.abstractmethod
    def move(self, k: Int[Array, ""], x0: State, here: Look, z: Float[Array, " dim"], *, held: bool) -> tuple[State, Look, Scalar]:
        r"""Level k to k + 1: the new state, the look at it, $\ln K_k - \ln L_k$. A path that is `held` has no derivative itself."""

    @abc.abstractmethod
    def move_back(self, k: Int[Array, ""], x1: State, there: Look, z: Float[Array, " dim"]) -> tuple[State, Look, Scalar]:
        """Level k + 1 to k, likewise, along a path that is held."""

    @abc.abstractmethod
    def log_last(self, x1: State, there: Look) -> Scalar:
        r"""$\ln\gamma$ of a last state, with the density of its velocity."""

    @abc.abstractmethod
    def log_flow(self, k: Int[Array, ""], x: State, here: Look) -> Scalar:
        """The model's log-density of a state at level k, up to its normaliser."""

    @abc.abstractmethod
    def last(self, samples: int, key: Key) -> States:
        """Last states of paths of Q."""

    def at_rest(self, places: Float[Array, "sample dim"], key: Key) -> States:
        """States at these places, with fresh velocities if there are any."""
        del key
        return places

    @abc.abstractmethod
    def noise(self, samples: int, key: Key) -> States:
        """Standard normals in the shape of first states."""

    def forward(self, samples, *, key):
        trace = _walk(self, samples, key)
        return Walks(trace.x0s, trace.x1s, trace.log_ratios)

    def backward(self, samples, *, key):
        last_key, noise_key = jr.split(key)
        trace = _walk_back(self, self.last(samples, last_key), noise_key)
        return Walks(trace.x0s, trace.x1s, trace.log_ratios)


def walk(sampler: AbstractSampler, samples: int, *, held: bool = False, stretch: Any = 1.0, key: Key) -> Trace:
    """Paths of P.

    Args:
        sampler: The pair.
        samples: Number of paths.
        held: Whether paths are constants for differentiation, so that only their densities have a derivative.
        stretch: A factor of all noise. Above one the paths explore more than those of P; they must be held.
        key: Random key.
    """
    first_key, noise_key = jr.split(key)
    x0s = jax.vmap(sampler.first)(jax.tree.map(lambda z: stretch * z, sampler.noise(samples, first_key)))
    x0s = _constant(x0s) if held else x0s
    dim, dtype = position_of(x0s).shape[1], position_of(x0s).dtype

    def move(carry, k):
        xs, here = carry
        zs = stretch * jr.normal(jr.fold_in(noise_key, k), (samples, dim), dtype)
        ys, there, gains = jax.vmap(ft.partial(sampler.move, k, held=held))(xs, here, zs)
        return (ys, there), (gains, jax.vmap(ft.partial(sampler.log_flow, k))(xs, here))

    start = jnp.zeros((), int)
    here = jax.vmap(ft.partial(sampler.look, start))(x0s)
    (x1s, there), (ratios, flows) = lax.scan(move, (x0s, here), jnp.arange(sampler.steps))
    last = jax.vmap(sampler.log_last)(x1s, there)
    return Trace(x0s, x1s, jax.vmap(sampler.log_first)(x0s), last, ratios.T, jnp.concatenate([flows, last[None]]).T)


def walk_back(sampler: AbstractSampler, x1s: States, *, key: Key) -> Trace:
    """Paths of Q from the last states `x1s`, held."""
    samples, dim = position_of(x1s).shape

    def move(carry, k):
        xs, there = carry
        zs = jr.normal(jr.fold_in(key, k), (samples, dim), position_of(x1s).dtype)
        ys, here, gains = jax.vmap(ft.partial(sampler.move_back, k))(xs, there, zs)
        return (ys, here), (gains, jax.vmap(ft.partial(sampler.log_flow, k))(ys, here))

    end = jnp.asarray(sampler.steps)
    there = jax.vmap(ft.partial(sampler.look, end))(x1s)
    last = jax.vmap(sampler.log_last)(x1s, there)
    (x0s, _), (ratios, flows) = lax.scan(move, (x1s, there), jnp.arange(sampler.steps), reverse=True)
    return Trace(x0s, x1s, jax.vmap(sampler.log_first)(x0s), last, ratios.T, jnp.concatenate([flows, last[None]]).T)


def log_normal(z: Float[Array, " dim"], log_scale: Float[Array, "..."]) -> Scalar:
    r"""The log-density of a Gaussian of scale $e^{\text{log_scale}}$ at `z` scales from its mean, without $(2\pi)^{-d/2}$."""
    return -0.5 * jnp.sum(z**2) - jnp.sum(jnp.broadcast_to(log_scale, z.shape))


def hold(x: Any, held: bool) -> Any:  # noqa: FBT001
    """`x`, as a constant for differentiation if `held`."""
    return _constant(x) if held else x


def _constant(x):
    return jax.tree.map(lax.stop_gradient, x)


@eqx.filter_jit
def _walk(sampler, samples, key):
    return walk(sampler, samples, key=key)


@eqx.filter_jit
def _walk_back(sampler, x1s, key):
    return walk_back(sampler, x1s, key=key)
