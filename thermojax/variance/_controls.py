"""Pairs, and the subtraction of controls whose mean is zero."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._check import require
from thermojax.distributions import AbstractDistribution
from thermojax.phase import State, States


def paired(values: ArrayLike) -> Float[Array, "pair ..."]:
    """The means of the antithetic pairs of an ensemble with ``noise="antithetic"``: independent samples of the same mean.

    Args:
        values: Sums of such an ensemble, or controls of it, shape ``(sample, ...)``; `mean` of the result has an honest error bar.
    """
    values = jnp.asarray(values)
    good = values.ndim >= 1 and values.shape[0] >= 2 and values.shape[0] % 2 == 0
    require(good, "values", "hold an even number of samples, two halves that mirror each other", f"shape {values.shape}")
    half = values.shape[0] // 2
    return 0.5 * (values[:half] + values[half:])


def controlled(values: ArrayLike, controls: ArrayLike, *, folds: int = 4) -> Float[Array, " sample"]:
    r"""Samples of the same mean and less variance: $y - \hat\beta\cdot c$ with controls $c$ of mean zero.

    The coefficients of each fold are fitted by least squares to the others, so that they are independent of the samples they are applied
    to and the mean stays what it was, exactly. Fitted to the same samples they would bias it by the order of (controls / samples).
    The result goes to `mean` or `replicated_mean`; antithetic values and controls through `paired` first.

    Args:
        values: Samples, shape ``(sample,)``.
        controls: Controls of known mean zero on the same samples, shape ``(sample,)`` or ``(sample, control)``; any that are constant
            or repeat each other do no harm.
        folds: Parts of the ensemble, one after the other. For `sobol_bridges` let it divide the number of replicates.

    Returns:
        The corrected samples, not finite where a value or a control is not.

    Raises:
        ValueError: if shapes do not agree.

    References:
        P. Glasserman, Monte Carlo Methods in Financial Engineering (2003), sec. 4.1. Cross-fitting: A. N. Avramidis, J. R. Wilson, Oper.
        Res. 41, 737 (1993) ("splitting").
    """
    values, controls = jnp.asarray(values), jnp.asarray(controls)
    require(values.ndim == 1, "values", "be a vector", f"shape {values.shape}")
    controls = controls[:, None] if controls.ndim == 1 else controls
    good = controls.ndim == 2 and controls.shape[0] == values.shape[0]
    require(good, "controls", f"be one row for each of the {values.shape[0]} values", f"shape {controls.shape}")
    require(2 <= folds <= values.shape[0], "folds", "be at least 2 and at most the number of values", folds)
    return _controlled(values, controls.astype(values.dtype), folds)


def stein_controls(distribution: AbstractDistribution, x0s: States, *, degree: int = 7) -> Float[Array, "sample control"]:
    r"""Controls of the first states: $\psi'(x_i) + \psi(x_i)\,\partial_i\ln p(x)$ for $\psi = 1, x, \dots, x^n$ of every coordinate.

    Their mean is zero by partial integration, whatever the normaliser, for any density that decays faster than $\psi$ grows.

    Args:
        distribution: Where `x0s` were drawn from; only its score is read.
        x0s: The samples, shape ``(sample, dim)``, or a `Phase` of them.
        degree: The largest power $n$.

    References:
        R. Assaraf, M. Caffarel, Phys. Rev. Lett. 83, 4682 (1999). A. Mira, R. Solgi, D. Imparato, Stat. Comput. 23, 653 (2013).
    """
    require(degree >= 0, "degree", "not be negative", degree)
    return _stein(distribution, x0s, degree)


def flat(state: State | States) -> Float[Array, "... coordinate"]:
    """All coordinates of states, positions first."""
    return jnp.concatenate(jax.tree.leaves(state), axis=-1)


@eqx.filter_jit
def _stein(distribution, x0s, degree):
    scores, places = flat(jax.vmap(distribution.score)(x0s)), flat(x0s)
    terms = [scores]
    for power in range(1, degree + 1):
        terms.append(power * places ** (power - 1) + places**power * scores)
    return jnp.concatenate(terms, axis=-1)


@eqx.filter_jit
def _controlled(values, controls, folds):
    count = values.shape[0]
    finite = jnp.isfinite(values) & jnp.all(jnp.isfinite(controls), axis=1)
    y = jnp.where(finite, values, 0.0)
    c = jnp.where(finite[:, None], controls, 0.0)
    # Of order one, so that the cutoff below means the same for all.
    scale = jnp.sqrt(jnp.sum(c**2, axis=0) / jnp.sum(finite.astype(y.dtype)))
    c = c / jnp.where(scale > 0, scale, 1.0)[None]
    rows = jnp.concatenate([finite[:, None].astype(y.dtype), c], axis=1)
    edges = [count * i // folds for i in range(folds + 1)]
    parts = [slice(low, high) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    grams = [(rows[part].T @ rows[part], rows[part].T @ y[part]) for part in parts]
    total = jax.tree.map(lambda *parts: sum(parts), *grams)
    cutoff = 10 * rows.shape[1] * float(jnp.finfo(y.dtype).eps)

    def corrected(part, own):
        gram, product = jax.tree.map(jnp.subtract, total, own)
        coefficients = jnp.linalg.pinv(gram, rtol=cutoff, hermitian=True) @ product
        return y[part] - c[part] @ coefficients[1:]

    samples = jnp.concatenate([corrected(part, own) for part, own in zip(parts, grams, strict=True)])
    return jnp.where(finite, samples, jnp.nan)
