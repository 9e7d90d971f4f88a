r"""Free-energy differences from the work of a protocol and of its reverse."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import ArrayLike

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.estimators._estimate import Estimate, one_beta, Samples, samples
from thermojax.estimators._health import MIN_ESS


def bar(
    forward: ArrayLike,
    backward: ArrayLike,
    *,
    beta: ArrayLike,
    weights: Sequence[ArrayLike | None] | ArrayLike | None = None,
    inefficiency: Sequence[ArrayLike] | ArrayLike = 1.0,
) -> Estimate:
    r"""Free-energy difference from the work of a protocol and of its reverse: Bennett's acceptance ratio.

    Solves $n\langle f(M + \beta(W - \Delta F))\rangle = m\langle f(-M + \beta(\tilde W + \Delta F))\rangle$ with $f(u) = 1/(1 + e^u)$
    and $M = \ln(n/m)$, where $n$ and $m$ count independent samples: the estimate of least variance. `ess` is that of the side that
    overlaps less.

    Args:
        forward: Work of paths that start in equilibrium at the first control, shape ``(n,)``.
        backward: Work of paths under the reversed protocol, from equilibrium at the last control, shape ``(m,)``.
        beta: Inverse temperature, one number for both.
        weights: Importance weights of the two sides, up to a factor each; None for a side whose weights are equal.
        inefficiency: How many correlated paths are worth one independent path, for both sides or for each.

    Raises:
        ValueError: if `beta` is not one positive number, or a side has no finite sample.

    Reference:
        C. H. Bennett, J. Comput. Phys. 22, 245 (1976), eqs. (12); the error bar: M. R. Shirts et al., Phys. Rev. Lett. 91, 140601 (2003).
    """
    ahead, back, beta = two_sides(forward, backward, beta, weights, inefficiency)
    return _bar(ahead, back, beta)


def two_sides(
    forward: Any, backward: Any, beta: ArrayLike, weights: Any = None, inefficiency: Any = 1.0
) -> tuple[Samples, Samples, Scalar]:
    r"""The samples of $\beta W$ in both directions, and $\beta$."""
    weights = (None, None) if weights is None else weights
    require(isinstance(weights, tuple | list) and len(weights) == 2, "weights", "be a pair, one for each side", type(weights).__name__)
    pair = inefficiency if isinstance(inefficiency, tuple | list) else (inefficiency, inefficiency)
    require(len(pair) == 2, "inefficiency", "be one number or a pair, one for each side", f"{len(pair)} of them")
    ahead = samples(forward, "forward", weights=weights[0], inefficiency=pair[0])
    back = samples(backward, "backward", weights=weights[1], inefficiency=pair[1])
    dtype = jnp.promote_types(ahead.values.dtype, back.values.dtype)
    ahead, back = (jax.tree.map(lambda a: a.astype(dtype), side) for side in (ahead, back))
    beta = one_beta(beta, ahead.values)
    return ahead._replace(values=beta * ahead.values), back._replace(values=beta * back.values), beta


@jax.jit
def _bar(ahead, back, beta):
    shift = jnp.log(ahead.independent / back.independent)
    scales = ahead.independent / ahead.number, back.independent / back.number

    def fermi(delta):
        return jax.nn.sigmoid(delta - ahead.values - shift), jax.nn.sigmoid(shift - back.values - delta)

    def excess(delta):
        taken, returned = fermi(delta)
        gap = scales[0] * jnp.sum(ahead.weights * taken) - scales[1] * jnp.sum(back.weights * returned)
        slope = scales[0] * jnp.sum(ahead.weights * taken * (1 - taken)) + scales[1] * jnp.sum(back.weights * returned * (1 - returned))
        return gap, slope

    # At the ends of this bracket each side's terms have a definite sign.
    least = lambda side, sign: jnp.min(jnp.where(side.weights > 0, sign * side.values, jnp.inf))
    low = jnp.minimum(least(ahead, 1.0), least(back, -1.0))
    high = -jnp.minimum(least(ahead, -1.0), least(back, 1.0))
    root = lax.stop_gradient(_bracketed_newton(excess, *lax.stop_gradient((low, high))))
    # One more Newton step, with its slope held, carries the derivative of the root (implicit function theorem).
    gap, slope = excess(root)
    delta = root - gap / lax.stop_gradient(jnp.maximum(slope, jnp.finfo(slope.dtype).tiny))

    (ess_ahead, variance_ahead), (ess_back, variance_back) = map(_side, (ahead, back), fermi(delta))
    excluded = ahead.excluded + back.excluded
    ess = jnp.minimum(ess_ahead, ess_back)
    # Two samples without overlap: every term is zero or one, and the error bar would be zero over zero.
    healthy = (ess >= MIN_ESS) & (excluded == 0) & (slope > 1.0)
    return Estimate(delta / beta, jnp.sqrt(variance_ahead + variance_back) / beta, ess, healthy, ahead.number + back.number, excluded)


def _side(side, terms):
    """Effective samples of one side, and the relative variance of the mean of its terms."""
    total, average = jnp.sum(side.weights * terms), jnp.sum(side.weights * terms) / side.number
    ess = total**2 / jnp.sum((side.weights * terms) ** 2) / side.inefficiency
    return ess, jnp.sum((side.weights * (terms - average)) ** 2) / total**2 * side.inefficiency


def _bracketed_newton(excess, low, high):
    """Root of an increasing function, by Newton steps that fall back to bisection when they leave the bracket."""
    tolerance = 4 * jnp.finfo(low.dtype).eps

    def searching(state):
        low, high, _, move, k = state
        return (k < 100) & (jnp.abs(move) > tolerance * jnp.maximum(1.0, jnp.maximum(jnp.abs(low), jnp.abs(high))))

    def improve(state):
        low, high, x, _, k = state
        gap, slope = excess(x)
        low, high = jnp.where(gap < 0, x, low), jnp.where(gap < 0, high, x)
        newton = x - gap / jnp.maximum(slope, jnp.finfo(x.dtype).tiny)
        y = jnp.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
        return low, high, y, y - x, k + 1

    start = (low, high, 0.5 * (low + high), jnp.full_like(low, jnp.inf), 0)
    return lax.while_loop(searching, improve, start)[2]
