"""Fronts of competing objectives: one descent for each choice of weights, all of them in one compiled solve."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, PRNGKeyArray as Key, PyTree

from thermojax._array import as_float
from thermojax._check import require
from thermojax.optimize._checkpoint import identity, restore, save
from thermojax.optimize._fit import Descent, descent_step, step_keys
from thermojax.optimize._gradients import check_loss, check_mode, Loss, picked, Where


class Front(NamedTuple):
    """What `pareto` found, one member for each row of weights."""

    models: tuple[Any, ...]
    """The fitted models."""
    weights: Float[Array, "member term"]
    """The weights of the terms that each was fitted for."""
    values: Float[Array, "member term"]
    """The terms of each on fresh noise, without their weights; the same noise for all members."""
    stderrs: Float[Array, "member term"]
    """Their standard errors."""
    dominated: Bool[Array, " member"]
    """Whether another member is better in every term, by more than two standard errors of the difference; also for a member with a term
    that is not finite."""


class _State(NamedTuple):
    """Where the descents of a front are."""

    descents: Descent
    """Of each member."""
    flat: Bool[Array, " member"]
    """Whether all gradients of a member were zero."""


def pareto(
    loss: Loss,
    model: PyTree,
    weights: ArrayLike | list,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    where: Where | None = None,
    mode: str = "reverse",
    average: float = 0.0,
    repeats: int = 30,
    every: int = 50,
    checkpoint: str | os.PathLike | None = None,
    progress: Callable[[int], None] | None = None,
    key: Key,
) -> Front:
    """Minimise a weighted loss for each row of weights, from the same model and with the same noise, and judge what was found.

    Args:
        loss: A loss with the weights of its terms as the leaf ``loss.objective.weights``, shape ``(term,)``, and with
            ``loss.terms(model, key)``, the terms without them.
        model: Where all descents start.
        weights: Weights, shape ``(member, term)``, finite and not negative.
        optimizer: An optax optimiser.
        steps: Number of gradient steps of each member.
        where: Picks the leaves to optimise, as in `fit`.
        mode: As in `fit`.
        average: As in `fit`.
        repeats: Calls of ``loss.terms`` that judge each member, at least two.
        every: Steps in a round: one compiled scan.
        checkpoint: A file for the descents of all members, as in `fit`.
        progress: Called with the number of steps made after each round.
        key: Random key.

    Raises:
        ValueError: if the loss has no weights, or they have another shape, or one of its weighted sums does not depend on the leaves
            picked; else as `fit`.
    """
    check_mode(mode)
    require(steps >= 1 and every >= 1, "steps", "be at least 1, like `every`", (steps, every))
    require(0.0 <= average < 1.0, "average", "lie in [0, 1)", average)
    require(repeats >= 2, "repeats", "be at least 2", repeats)
    own = getattr(getattr(loss, "objective", None), "weights", None)
    rule = "have `objective.weights` and `terms`, as of a weighted sum of objectives"
    require(own is not None and hasattr(loss, "terms"), "loss", rule, type(loss).__name__)
    own = jnp.asarray(own)
    weights = as_float(weights).astype(own.dtype)
    rule = f"have shape (member, {own.shape[0]}), one column for each term"
    require(weights.ndim == 2 and weights.shape[0] >= 1 and weights.shape[1:] == own.shape, "weights", rule, f"shape {weights.shape}")
    good = np.isfinite(weights) & (np.asarray(weights) >= 0)
    require(bool(np.all(good)), "weights", "be finite and not negative", np.array2string(np.asarray(weights), precision=6, threshold=6))
    check_loss(loss, model, key)
    params, fixed = picked(model, where)
    noise_key, judge_key = jr.split(key)
    state, done, problem = _begin(optimizer, params, weights), 0, {}
    if checkpoint is not None:
        problem |= {"steps": steps, "every": every, "mode": mode, "average": float(average)}
        problem |= identity(state, (loss, model, weights), key)
        kept = restore(checkpoint, problem, lambda made, told: state)
        state, done, _ = (state, done, {}) if kept is None else kept
    while done < steps:
        keys = step_keys(noise_key, jnp.arange(done, min(done + every, steps)))
        state = _round(loss, optimizer, fixed, weights, state, keys, mode, jnp.asarray(average))
        done += keys.shape[0]
        if checkpoint is not None:
            save(checkpoint, state, problem, done)
        if progress is not None:
            progress(done)
    members, flat = state.descents.averaged, state.flat
    first = np.array2string(np.asarray(weights)[np.argmax(flat)], precision=6)
    got = f"a gradient of zero in each of the {steps} steps for the weights {first}"
    require(not np.any(flat), "loss", "depend on the leaves that are picked", got)
    terms = _terms(loss, members, fixed, jr.split(judge_key, repeats))
    values, stderrs = (jnp.mean(terms, axis=1), jnp.std(terms, axis=1, ddof=1) / np.sqrt(repeats))
    pick = lambda i: eqx.combine(jax.tree.map(lambda a: a[i], members), fixed)
    models = tuple(pick(i) for i in range(weights.shape[0]))
    return Front(models, weights, values, stderrs, _dominated(terms))


@eqx.filter_jit
def _begin(optimizer, params, weights):
    start = Descent(params, params, optimizer.init(params), jnp.zeros((), int))
    spread = lambda a: jnp.broadcast_to(a, (weights.shape[0], *jnp.shape(a)))
    return _State(jax.tree.map(spread, start), jnp.ones(weights.shape[0], bool))


@eqx.filter_jit
def _round(loss, optimizer, fixed, weights, state, keys, mode, average):
    def advance(row, descent, flat):
        weighted = eqx.tree_at(lambda own: own.objective.weights, loss, row)
        descent, (_, flats) = lax.scan(descent_step(weighted, optimizer, fixed, mode, average), descent, keys)
        return _State(descent, flat & jnp.all(flats))

    return jax.vmap(advance)(weights, state.descents, state.flat)


@eqx.filter_jit
def _terms(loss, members, fixed, keys):
    judge = lambda params, key: loss.terms(eqx.combine(params, fixed), key)
    return jax.vmap(lambda params: lax.map(lambda key: judge(params, key), keys))(members)


@jax.jit
def _dominated(terms):
    """Which members are beaten in every term; `terms` has shape (member, repeat, term). Differences have less noise than the terms."""
    gaps = terms[:, None] - terms[None, :]
    n = jnp.asarray(terms.shape[1], terms.dtype)
    worse = jnp.mean(gaps, axis=2) > 2.0 * jnp.std(gaps, axis=2, ddof=1) / jnp.sqrt(n)
    return jnp.any(jnp.all(worse, axis=2), axis=1) | ~jnp.all(jnp.isfinite(terms), axis=(1, 2))
