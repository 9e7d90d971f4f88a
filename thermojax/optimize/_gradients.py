r"""Gradients of a loss with respect to chosen leaves of a model, and how noisy they are.

The gradient of a Monte Carlo loss is an estimate. Estimators of one gradient (pathwise, likelihood-ratio, antithetic noise) agree in the
mean and differ in variance and in time; what counts is the variance of one call times what the call costs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PRNGKeyArray as Key, PyTree

from thermojax._check import require
from thermojax.estimators import Estimate, mean

Loss = Callable[[Any, Key], Array]
Where = Callable[[Any], Any]


class GradientStatistics(NamedTuple):
    """What repeated calls of a loss with fresh noise say about its gradient."""

    mean: PyTree
    """The mean gradient: the model with None in place of all leaves that were not picked, so that ``where(mean)`` is the gradient."""
    stderr: PyTree
    """One standard error of each entry of the mean."""
    variance: Estimate
    """Variance of the gradient of one call, summed over all entries."""
    loss: Estimate
    """The loss itself."""

    @property
    def trustworthy(self) -> Array:
        """Whether variance and loss may be believed: enough calls, all finite, none of which decides the average."""
        return self.variance.trustworthy & self.loss.trustworthy


def gradient_statistics(
    loss: Loss, model: PyTree, *, where: Where | None = None, mode: str = "reverse", repeats: int = 30, key: Key
) -> GradientStatistics:
    """Mean and variance of the gradient of ``loss(model, key)``, over calls with fresh noise.

    Args:
        loss: Returns one number.
        model: Any pytree.
        where: Picks the leaves, as in `fit`; all floating-point leaves if omitted.
        mode: "reverse" or "forward", as in `fit`.
        repeats: Number of calls, one after the other; at least two, and 30 for trust.
        key: Random key.

    Raises:
        ValueError: if the loss is not one number, a choice is unknown, or `where` picks what has no gradient.
    """
    check_mode(mode)
    require(repeats >= 2, "repeats", "be at least 2", repeats)
    check_loss(loss, model, key)
    params, fixed = picked(model, where)
    average, stderr, far, values = _gradients(loss, params, fixed, jr.split(key, repeats), mode)
    finite = int(jnp.sum(jnp.isfinite(far)))
    require(finite >= 2, "loss", "be finite, like its gradient, in at least two calls", f"{finite} of {repeats}")
    return GradientStatistics(average, stderr, mean(far), mean(values))


def picked(model: PyTree, where: Where | None) -> tuple[PyTree, PyTree]:
    """The model's leaves to optimise, and the rest; each with None in place of the other.

    Raises:
        ValueError: if `where` picks what has no gradient, or nothing.
    """
    if where is None:
        params, fixed = eqx.partition(model, eqx.is_inexact_array)
        require(len(jax.tree.leaves(params)) > 0, "model", "have floating-point arrays as leaves", "none")
        return params, fixed
    named = jax.tree_util.tree_map_with_path(lambda path, leaf: _Leaf(f"…{jax.tree_util.keystr(path)}", leaf), model)
    try:
        nodes = where(named)
    except TypeError as error:
        raise ValueError("`where` must pick leaves of the model as they are, got a computation with them.") from error
    nodes = list(nodes) if type(nodes) in (tuple, list) else [nodes]
    require(len(nodes) > 0, "where", "pick floating-point arrays", "nothing")
    for node in nodes:
        leaves = jax.tree.leaves(node)
        strange = [leaf for leaf in leaves if not isinstance(leaf, _Leaf)]
        require(not strange, "where", "pick leaves of the model", f"{strange[0]!r}, which is none" if strange else "")
        # A picked module may hold functions and counts beside its arrays; what is picked by itself must be an array.
        found = f"{leaves[0].words} ({leaves[0].path})" if leaves else "nothing"
        require(any(leaf.floating for leaf in leaves), "where", "pick floating-point arrays", found)
    chosen = {id(leaf) for leaf in jax.tree.leaves(nodes)}
    leaves, structure = jax.tree.flatten(named)
    mask = jax.tree.unflatten(structure, [id(leaf) in chosen and leaf.floating for leaf in leaves])
    return eqx.partition(model, mask)


class _Leaf:
    """A leaf of a model and where it is."""

    def __init__(self, path, value):
        self.path = path
        self.floating = eqx.is_inexact_array(value)
        if isinstance(value, jax.Array):
            self.words = f"an array of {value.dtype}"
        else:
            self.words = "a function" if callable(value) else f"a {type(value).__name__}"


def value_and_grad(function: Callable, mode: str) -> Callable:
    """`jax.value_and_grad` in reverse or in forward mode."""
    if mode == "reverse":
        return jax.value_and_grad(function)

    def value_and_gradient(params, key):
        flat, unravel = ravel_pytree(params)
        both = lambda p: (function(unravel(p), key),) * 2
        grads, value = jax.jacfwd(both, has_aux=True)(flat)
        return value, unravel(grads)

    return value_and_gradient


def check_mode(mode: str) -> None:
    """Raise ``ValueError`` unless `mode` is known."""
    require(mode in ("reverse", "forward"), "mode", "be 'reverse' or 'forward'", repr(mode))


def check_loss(loss: Loss, model: PyTree, key: Key) -> Any:
    """The type of the loss of the model.

    Raises:
        ValueError: unless it is one floating-point number.
    """
    value = eqx.filter_eval_shape(loss, model, key)
    shape = jax.tree.map(jnp.shape, value)
    require(shape == (), "loss", "return one number", f"shape {shape}")
    require(jnp.issubdtype(value.dtype, jnp.floating), "loss", "return a floating-point number", value.dtype)
    return value.dtype


@eqx.filter_jit
def _gradients(loss, params, fixed, keys, mode):
    gradient = value_and_grad(lambda p, k: loss(eqx.combine(p, fixed), k), mode)
    values, grads = lax.map(lambda k: gradient(params, k), keys)
    rows = [g.reshape(g.shape[0], -1) for g in jax.tree.leaves(grads)]
    good = jnp.isfinite(values) & jnp.all(jnp.stack([jnp.all(jnp.isfinite(r), axis=1) for r in rows]), axis=0)
    n = jnp.sum(good).astype(values.dtype)

    def spread(g):
        used = jnp.expand_dims(good, tuple(range(1, g.ndim)))
        size = n.astype(g.dtype)
        average = jnp.sum(jnp.where(used, g, 0.0), axis=0) / size
        # Numbers for each call whose mean over the finite ones is the unbiased variance.
        squares = jnp.where(used, (g - average[None]) ** 2, 0.0) * (size / (size - 1))
        return average, jnp.sqrt(jnp.sum(squares, axis=0)) / size, squares.reshape(g.shape[0], -1)

    average, stderr, squares = jax.tree.transpose(jax.tree.structure(grads), jax.tree.structure((0, 0, 0)), jax.tree.map(spread, grads))
    far = sum(jnp.sum(s, axis=1).astype(values.dtype) for s in jax.tree.leaves(squares))
    return average, stderr, jnp.where(good, far, jnp.nan), values
