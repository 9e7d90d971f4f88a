r"""The transport bound from samples: the debiased Sinkhorn divergence of OTT-JAX.

With the entropic cost $OT_\epsilon$ of two clouds the divergence is $S_\epsilon(p, q) = OT_\epsilon(p, q) - \tfrac12 OT_\epsilon(p, p) -
\tfrac12 OT_\epsilon(q, q)$; it is zero for equal clouds and tends to $W_2^2$ as $\epsilon \to 0$.

Two biases remain. The regularisation makes it too small, by $O(\epsilon^2)$ for smooth densities. The finite number of samples makes it too
large, by $O(1/n)$ for $\epsilon$ as large as the clouds, but as for $W_2^2$ itself, $n^{-2/d}$, for small $\epsilon$: in two dimensions it
hides in the error bar, in five it does not. A bound that is too large is no bound; `SampledBound.halved` shows how much of it samples make.
"""

import importlib
import warnings
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive, require
from thermojax.estimators import Estimate
from thermojax.geometry._transport import diffused
from thermojax.phase import check_configurations


class SampledBound(NamedTuple):
    """What samples say about the least entropy production."""

    bound: Estimate
    """The bound, in nats. The error bar is that of the samples alone; not trustworthy if an iteration did not converge."""
    halved: Scalar
    """The mean of what both halves of the samples say: what it is more than `bound` is about the bias that half as many samples add."""
    epsilon: Scalar
    r"""The regularisation $\epsilon$, a squared length."""


def sampled_transport_bound(
    x0s: ArrayLike,
    x1s: ArrayLike,
    duration: ArrayLike,
    *,
    beta: ArrayLike = 1.0,
    mobility: ArrayLike = 1.0,
    epsilon: ArrayLike | None = None,
) -> SampledBound:
    r"""The least entropy production $W_2^2\beta/(\mu\tau)$ between two densities that are known by samples, in any dimension.

    The error bar is the spread of the dual potentials, to first order in the fluctuations of the samples. Memory grows as the product
    of their numbers. Needs the package ott-jax.

    Args:
        x0s: Configurations at time 0, shape ``(sample, dim)``.
        x1s: Configurations at time `duration`, independent of the first ones, shape ``(sample, dim)``.
        duration: $\tau$.
        beta: Inverse temperature.
        mobility: $\mu$.
        epsilon: Regularisation, a squared length; 0.05 times the mean square distance of a sample from the middle of its cloud if omitted.

    Raises:
        ModuleNotFoundError: if ott-jax is missing.
        TypeError, ValueError: if shapes or numbers have no meaning.

    References:
        J. Feydy et al., arXiv:1810.08278 (2018), for the divergence. E. del Barrio, J.-M. Loubes, Ann. Probab. 47, 926 (2019), for the
        spread of the potentials as the error bar of $W_2^2$.
    """
    x0s, x1s = check_configurations(x0s), check_configurations(x1s, "x1s")
    require(x0s.shape[1] == x1s.shape[1], "x1s", f"have the dimension of `x0s`, {x0s.shape[1]}", x1s.shape[1])
    smallest = min(x0s.shape[0], x1s.shape[0])
    require(smallest >= 4, "x0s", "hold at least four samples, like `x1s`", smallest)
    scale = diffused(duration, beta, mobility).astype(x0s.dtype)
    x1s = x1s.astype(x0s.dtype)
    _divergence_of()
    if epsilon is None:
        epsilon = 0.025 * (jnp.sum(jnp.var(x0s, axis=0)) + jnp.sum(jnp.var(x1s, axis=0)))
    epsilon = check_positive(as_scalar(epsilon), "epsilon").astype(x0s.dtype)
    value, stderr, converged = _divergence(x0s, x1s, epsilon)
    halves = [_divergence(x0s[i : i + x0s.shape[0] // 2 * 2 : 2], x1s[i : i + x1s.shape[0] // 2 * 2 : 2], epsilon) for i in range(2)]
    count = jnp.asarray(smallest, x0s.dtype)
    bound = Estimate(value / scale, stderr / scale, count, converged, count, jnp.zeros_like(count))
    return SampledBound(bound, 0.5 * (halves[0][0] + halves[1][0]) / scale, epsilon)


@eqx.filter_jit
def _divergence(x0s, x1s, epsilon):
    # OTT is not written for strict promotion.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        value, found = _divergence_of()(x0s, x1s, epsilon=epsilon)
    (out, back), (first, _), (_, last) = found.potentials
    variance = jnp.var(out - first, ddof=1) / x0s.shape[0] + jnp.var(back - last, ddof=1) / x1s.shape[0]
    return value, jnp.sqrt(variance), jnp.all(jnp.stack([jnp.asarray(c) for c in found.converged]))


def _divergence_of() -> Any:
    try:
        with warnings.catch_warnings():
            # A package that OTT imports says on import that it is no longer maintained.
            warnings.filterwarnings("ignore", "JAXopt is no longer maintained", DeprecationWarning)
            return importlib.import_module("ott.tools.sinkhorn_divergence").sinkdiv
    except ImportError as missing:
        raise ModuleNotFoundError("`sampled_transport_bound` needs OTT-JAX; install the extra `thermojax[ott]`.") from missing
