"""Stochastic gradient descent on any loss of any model."""

import os
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray as Key, PyTree, Shaped

from thermojax._array import as_scalar
from thermojax._check import require
from thermojax.optimize._checkpoint import identity, restore, save
from thermojax.optimize._gradients import check_loss, check_mode, Loss, picked, value_and_grad, Where

Stopped = Literal["steps", "converged", "diverged"]


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
    stopped: Stopped
    """Why it ended: all steps were made; the validation had stopped improving; or a loss or a parameter was not finite, and `model` is
    from before."""

    @property
    def message(self) -> str:
        """The same in one sentence."""
        made = self.history.shape[0]
        kept = f"the model is that of step {self.steps}"
        if self.stopped == "diverged":
            lost = np.flatnonzero(~np.isfinite(np.asarray(self.history)))
            what = f"The loss was not finite at step {lost[0] + 1}" if lost.size else f"A parameter was not finite after step {made}"
            return f"{what}: {kept}."
        if self.validation.shape[0] > 0 and not bool(jnp.any(jnp.isfinite(self.validation))):
            return f"No validation in {made} steps was finite: {kept}."
        if self.stopped == "converged":
            return f"The validation had stopped improving after {made} steps: {kept}."
        return f"All {made} steps were made: {kept}."


class Descent(NamedTuple):
    """Where a descent is."""

    params: PyTree
    """The leaves that are optimised."""
    averaged: PyTree
    """Their exponential moving average."""
    memory: PyTree
    """The optimiser's own state."""
    made: Int[Array, ""]
    """Steps made."""


class _Track(NamedTuple):
    """A descent and all that is known about it."""

    descent: Descent
    best: PyTree
    best_step: int
    history: np.ndarray
    validation: np.ndarray
    stopped: Stopped | None


def fit(
    loss: Loss,
    model: PyTree,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    where: Where | None = None,
    mode: str = "reverse",
    noise: str = "fresh",
    average: float = 0.0,
    validate: Callable[[Any], Array] | str | None = None,
    every: int = 50,
    patience: int | None = None,
    tolerance: ArrayLike = 0.0,
    checkpoint: str | os.PathLike | None = None,
    progress: Callable[[int, float], None] | None = None,
    key: Key,
) -> Fit:
    """Minimise ``loss(model, key)`` by stochastic gradient descent.

    A descent diverges when a loss or a parameter is no longer finite; it then ends with the best model before. A loss that grows is not
    taken for divergence: no bound is known for it. A validation with `patience` ends such a descent.

    Args:
        loss: Returns one number. An `eqx.Module` that owns its data is compiled once for all data of a shape.
        model: Any pytree; its floating-point leaves are optimised.
        optimizer: An optax optimiser.
        steps: Number of gradient steps, at most.
        where: Picks the leaves to optimise, ``lambda dynamics: dynamics.protocol.knots``, or several of them, or whole branches, of which
            the floating-point leaves are meant; all floating-point leaves if omitted.
        mode: "reverse" for reverse-mode gradients, "forward" for forward-mode ones: these need no memory and win for few parameters.
        noise: "fresh" for a new key at every step, "common" for the same one (common random numbers: a deterministic problem, whose
            optimum depends on that key).
        average: Decay of the exponential moving average of the parameters that is returned and validated; none if zero.
        validate: A number to be small, of the (averaged) model, after each `every` steps; the best model is returned. "fresh" is the loss
            itself on noise that the descent never sees, the same after every round.
        every: Steps in a round: one compiled scan.
        patience: Rounds without a better validation after which to stop.
        tolerance: By how much a validation must be better to count, in its own unit, for `patience` only.
        checkpoint: A file. It is written after each round, all of it or nothing; where it exists, the descent goes on from there, to the
            same bits as without the interruption. Delete it to start anew. The optimiser and losses that are plain functions cannot be
            compared with those that wrote it.
        progress: Called with the number of steps made and the mean loss after each round.
        key: Random key.

    Raises:
        ValueError: if the loss is not one number or does not depend on the leaves picked, `where` picks what has no gradient, a choice is
            unknown, or the checkpoint is that of another problem.
    """
    check_mode(mode)
    require(noise in ("fresh", "common"), "noise", "be 'fresh' or 'common'", repr(noise))
    require(steps >= 1 and every >= 1, "steps", "be at least 1, like `every`", (steps, every))
    require(0.0 <= average < 1.0, "average", "lie in [0, 1)", average)
    require(validate in (None, "fresh") or callable(validate), "validate", "be 'fresh' or a function of the model", repr(validate))
    require(patience is None or validate is not None, "patience", "come with `validate`", patience)
    require(patience is None or patience >= 1, "patience", "be at least 1", patience)
    tolerance = float(as_scalar(tolerance))
    require(0.0 <= tolerance < np.inf, "tolerance", "be finite and not negative", tolerance)
    require(patience is not None or tolerance == 0.0, "tolerance", "come with `patience`", tolerance)
    dtype = check_loss(loss, model, key)
    params, fixed = picked(model, where)
    noise_key, judge_key = jr.split(key)

    def judge(averaged):
        if validate == "fresh":
            return float(_fresh(loss, averaged, fixed, judge_key))
        return float(_validation(validate, averaged, fixed))

    def advance(track):
        done = track.history.size
        size = min(every, steps - done)
        keys = step_keys(noise_key, jnp.arange(done, done + size)) if noise == "fresh" else jnp.broadcast_to(noise_key, (size,))
        descent, (losses, flat) = _round(loss, optimizer, fixed, track.descent, keys, mode, jnp.asarray(average))
        rule = "depend on the leaves that are picked"
        require(done > 0 or not bool(jnp.all(flat)), "loss", rule, f"a gradient of zero in each of the first {size} steps")
        history = np.append(track.history, losses)
        if not bool(_finite(losses, descent.params)):
            kept = (track.descent.averaged, done) if validate is None else (track.best, track.best_step)
            return _Track(descent, *kept, history, track.validation, "diverged")
        stopped = "steps" if history.size == steps else None
        if validate is None:
            return _Track(descent, descent.averaged, history.size, history, track.validation, stopped)
        value = judge(descent.averaged)
        better = value < np.min(track.validation, initial=np.inf, where=np.isfinite(track.validation))
        best = (descent.averaged, history.size) if better else (track.best, track.best_step)
        validation = np.append(track.validation, value)
        if patience is not None and _stalled(validation, tolerance) >= patience:
            stopped = "converged"
        return _Track(descent, *best, history, validation, stopped)

    descent = Descent(params, params, optimizer.init(params), jnp.zeros((), int))
    track = _Track(descent, params, 0, np.zeros(0, dtype), np.zeros(0), None)
    problem = {}
    if checkpoint is not None:
        settings = {"steps": steps, "every": every, "mode": mode, "noise": noise, "average": float(average), "patience": patience}
        settings |= {"tolerance": tolerance, "validate": "a function" if callable(validate) else validate}
        problem |= settings | identity(descent, (loss, model, validate), key)
        track = _resumed(checkpoint, track, problem)
    while track.stopped is None:
        track = advance(track)
        if checkpoint is not None:
            told = {"best_step": track.best_step, "stopped": track.stopped, "validations": track.validation.size}
            save(checkpoint, _saved(track), problem, track.history.size, **told)
        if progress is not None and track.stopped != "diverged":
            last = (track.history.size - 1) // every * every
            progress(track.history.size, float(np.mean(track.history[last:])))
    found = eqx.combine(track.best, fixed)
    return Fit(found, jnp.asarray(track.history), jnp.asarray(track.validation, float), track.best_step, track.stopped)


def _saved(track):
    """The arrays of a track."""
    return track.descent, track.best, track.history, track.validation


def _resumed(checkpoint, track, problem):
    """The track that a checkpoint holds; the one given if there is no file yet."""

    def like(made, told):
        return _saved(track._replace(history=np.zeros(made, track.history.dtype), validation=np.zeros(told["validations"])))

    found = restore(checkpoint, problem, like)
    if found is None:
        return track
    (descent, best, history, validation), _, told = found
    return _Track(descent, best, told["best_step"], history, validation, told["stopped"])


def descent_step(loss: Loss, optimizer: optax.GradientTransformation, fixed: PyTree, mode: str, average: ArrayLike) -> Callable:
    """One step of a descent, to be scanned over keys; it also returns the loss and whether the whole gradient is zero."""
    gradient = value_and_grad(lambda p, k: loss(eqx.combine(p, fixed), k), mode)

    def step(state: Descent, key: Key):
        params, averaged, memory, k = state
        value, grads = gradient(params, key)
        flat = jnp.all(jnp.stack([jnp.all(g == 0) for g in jax.tree.leaves(grads)]))
        # optax is not written for strict dtype promotion.
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimizer.update(grads, memory, params)
            params = optax.apply_updates(params, updates)
            # Young averages forget faster, so that the starting point does not linger.
            decay = jnp.minimum(average, (1 + k) / (10 + k))
            averaged = jax.tree.map(lambda a, p: (p + decay * (a - p)).astype(p.dtype), averaged, params)
        return Descent(params, averaged, memory, k + 1), (value, flat)

    return step


@eqx.filter_jit
def _round(loss, optimizer, fixed, descent, keys, mode, average):
    return lax.scan(descent_step(loss, optimizer, fixed, mode, average), descent, keys)


@eqx.filter_jit
def _fresh(loss, params, fixed, key):
    return loss(eqx.combine(params, fixed), key)


@eqx.filter_jit
def _validation(validate, params, fixed):
    return validate(eqx.combine(params, fixed))


@jax.jit
def step_keys(key: Key, steps: Int[Array, " step"]) -> Shaped[Array, " step"]:
    """A key for each of the steps, which depends on the step's number alone."""
    return jax.vmap(lambda k: jr.fold_in(key, k))(steps)


@jax.jit
def _finite(losses, params):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in (losses, *jax.tree.leaves(params))]))


def _stalled(validation, tolerance):
    """Rounds since the last validation that was better by more than the tolerance than the one that counted before."""
    mark, last = np.inf, -1
    for i, value in enumerate(validation):
        if value < mark - tolerance:
            mark, last = value, i
    return len(validation) - 1 - last
