r"""Optimisation: `fit` drives any loss of a model with optax; `MeanWork` and `MeanLogRatio` are losses of a protocol.

Both protocol losses are exact on the grid. The discrete work is what the simulated switches cost; the kernel log-ratio is a
Kullback-Leibler divergence at every step size, so no optimiser can push it below zero. (The Itô sum of the work has no such bound:
never optimise it.)
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray as Key, PyTree

from thermojax._array import as_float, Scalar
from thermojax._check import require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import AbstractLangevin
from thermojax.ensemble import accumulate
from thermojax.functionals import log_ratio, path_log_ratio, work
from thermojax.steppers import AbstractStepper

Loss = Callable[[Any, Key], Array]


class Fit(NamedTuple):
    """What `fit` found."""

    model: Any
    """The fitted model: the best one if there was a validation, else the last one (averaged, if asked for)."""
    history: Float[Array, " step"]
    """The loss before each step."""
    validation: Float[Array, " round"]
    """The validation after each round of steps; empty if there was none."""
    steps: int
    """The step after which `model` was taken."""
    stopped: Literal["steps", "patience", "diverged"]
    """Why it ended: all steps were made; validation had stopped improving; or the loss was no longer finite, and `model` is from before."""


class MeanWork(eqx.Module):
    r"""Mean work of a protocol, $\langle W\rangle$ in Crooks' order, from configurations drawn anew for every key."""

    dynamics: AbstractLangevin
    """What moves; its protocol is replaced by the one to be judged."""
    initial: AbstractDistribution
    """Where the paths start: equilibrium under the first control."""
    ts: Float[Array, " time"] = eqx.field(converter=as_float)
    """Time grid."""
    samples: int = eqx.field(static=True, default=1000)
    """Number of paths."""
    stepper: AbstractStepper | None = None
    """One-step kernel; `EulerMaruyama` if omitted."""
    segments: int = eqx.field(static=True, default=1)
    """See `ensemble.accumulate`."""

    def __call__(self, protocol: Any, key: Key) -> Scalar:
        """The mean over one ensemble."""
        _, _, works = _paths(self, work, protocol, key)
        return jnp.mean(works)


class MeanLogRatio(eqx.Module):
    r"""Mean log-ratio of a driven path measure to its reversal, $\langle\ell\rangle = \mathrm{KL}(P\|Q) \ge 0$ at every step size.

    With equilibrium densities at both ends it is the dissipated reduced work, shadow work included.
    """

    dynamics: AbstractLangevin
    """What moves; its protocol is replaced by the one to be judged."""
    initial: AbstractDistribution
    """Density of the first configuration under the forward measure."""
    final: AbstractDistribution
    """Density of the last configuration under the backward measure."""
    ts: Float[Array, " time"] = eqx.field(converter=as_float)
    """Time grid."""
    samples: int = eqx.field(static=True, default=1000)
    """Number of paths."""
    stepper: AbstractStepper | None = None
    """A kernel of known density; `EulerMaruyama` if omitted."""
    segments: int = eqx.field(static=True, default=1)
    """See `ensemble.accumulate`."""

    def __call__(self, protocol: Any, key: Key) -> Scalar:
        """The mean over one ensemble."""
        x0s, x1s, totals = _paths(self, log_ratio, protocol, key)
        return jnp.mean(path_log_ratio(self.initial, self.final, x0s, x1s, totals))


def fit(
    loss: Loss,
    model: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    where: Callable[[Any], Any] | None = None,
    mode: str = "reverse",
    noise: str = "fresh",
    average: float = 0.0,
    validate: Callable[[Any], Array] | None = None,
    every: int = 50,
    patience: int | None = None,
    progress: Callable[[int, float], None] | None = None,
    key: Key,
) -> Fit:
    """Minimise ``loss(model, key)`` by stochastic gradient descent.

    Args:
        loss: Returns one number. An `eqx.Module` that owns its data is compiled once for all data of a shape.
        model: Any pytree; its floating-point leaves are optimised.
        optimizer: An optax optimiser.
        steps: Number of gradient steps, at most.
        where: Picks the leaves to optimise, ``lambda protocol: protocol.knots``; all floating-point leaves if omitted.
        mode: "reverse" for reverse-mode gradients, "forward" for forward-mode ones: these need no memory and win for few parameters.
        noise: "fresh" for a new key at every step, "common" for the same one (common random numbers: a deterministic problem, whose
            optimum depends on that key).
        average: Decay of the exponential moving average of the parameters that is returned and validated; none if zero.
        validate: A number to be small, of the (averaged) model, after each `every` steps; the best model is returned.
        every: Steps in a round: one compiled scan.
        patience: Rounds without a better validation after which to stop.
        progress: Called with the number of steps made and the mean loss after each round.
        key: Random key.

    Raises:
        ValueError: if the loss is not one number, or a choice is unknown.
    """
    require(mode in ("reverse", "forward"), "mode", "be 'reverse' or 'forward'", repr(mode))
    require(noise in ("fresh", "common"), "noise", "be 'fresh' or 'common'", repr(noise))
    require(steps >= 1 and every >= 1, "steps", "be at least 1, like `every`", (steps, every))
    require(0.0 <= average < 1.0, "average", "lie in [0, 1)", average)
    require(patience is None or validate is not None, "patience", "come with `validate`", patience)
    shape = jax.tree.map(jnp.shape, eqx.filter_eval_shape(loss, model, key))
    require(shape == (), "loss", "return one number", f"shape {shape}")

    params, fixed = eqx.partition(model, eqx.is_inexact_array if where is None else _picked(model, where))
    judge = None if validate is None else eqx.filter_jit(lambda p: validate(eqx.combine(p, fixed)))
    state = (params, params, optimizer.init(params), jnp.zeros((), int))
    history, validations = [], []
    best, best_value, best_step, stopped = params, jnp.inf, 0, "steps"
    done = 0
    while done < steps:
        size = min(every, steps - done)
        keys = jr.split(jr.fold_in(key, done), size) if noise == "fresh" else jnp.broadcast_to(key, (size,))
        before, (state, losses) = state, _round(loss, optimizer, fixed, state, keys, mode, average)
        history.append(losses)
        if not bool(jnp.all(jnp.isfinite(losses))):
            stopped = "diverged"
            best, best_step = (before[1], done) if judge is None else (best, best_step)
            break
        done += size
        if judge is None:
            best, best_step = state[1], done
        else:
            value = float(judge(state[1]))
            validations.append(value)
            if value < best_value:
                best, best_value, best_step = state[1], value, done
        if progress is not None:
            progress(done, float(jnp.mean(losses)))
        if patience is not None and done - best_step >= patience * every:
            stopped = "patience"
            break
    return Fit(eqx.combine(best, fixed), jnp.concatenate(history), jnp.asarray(validations, float), best_step, stopped)


@eqx.filter_jit
def _round(loss, optimizer, fixed, state, keys, mode, average):
    gradient = _value_and_grad(lambda p, k: loss(eqx.combine(p, fixed), k), mode)

    def step(state, key):
        params, averaged, memory, k = state
        value, grads = gradient(params, key)
        # optax is not written for strict dtype promotion.
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimizer.update(grads, memory, params)
            params = optax.apply_updates(params, updates)
            # Young averages forget faster, so that the starting point does not linger.
            decay = jnp.minimum(average, (1 + k) / (10 + k))
            averaged = jax.tree.map(lambda a, p: (p + decay * (a - p)).astype(p.dtype), averaged, params)
        return (params, averaged, memory, k + 1), value

    return lax.scan(step, state, keys)


def _value_and_grad(function, mode):
    if mode == "reverse":
        return jax.value_and_grad(function)

    def value_and_grad(params, key):
        flat, unravel = ravel_pytree(params)
        both = lambda p: (function(unravel(p), key),) * 2
        grads, value = jax.jacfwd(both, has_aux=True)(flat)
        return value, unravel(grads)

    return value_and_grad


def _picked(model, where):
    nothing = jax.tree.map(lambda _: False, model)
    return eqx.tree_at(where, nothing, jax.tree.map(eqx.is_inexact_array, where(model)))


def _paths(loss, functional, protocol, key):
    start_key, noise_key = jr.split(key)
    x0s = loss.initial.sample(loss.samples, key=start_key)
    driven = eqx.tree_at(lambda d: d.protocol, loss.dynamics, protocol)
    x1s, totals = accumulate(functional, driven, x0s, loss.ts, stepper=loss.stepper, segments=loss.segments, key=noise_key)
    return x0s, x1s, totals
