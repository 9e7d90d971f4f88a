r"""Free-energy differences from the first cumulants of the work."""

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from thermojax._check import require
from thermojax.estimators._estimate import Estimate, one_beta, samples


def cumulants(
    work: ArrayLike, *, beta: ArrayLike, order: int = 2, weights: ArrayLike | None = None, inefficiency: ArrayLike = 1.0
) -> Estimate:
    r"""Free-energy difference from a truncated cumulant expansion, $\Delta F \approx \kappa_1 - \tfrac{\beta}{2}\kappa_2 +
    \tfrac{\beta^2}{6}\kappa_3$.

    Order two is exact for Gaussian work, so for slow driving; order one, the mean work, is an upper bound. $\kappa_n$ are the cumulants
    of the sample. The error bar of orders one and two is that of Gaussian work, $\kappa_2/n + \beta^2\kappa_2^2/2(n-1)$; order three, for
    work that is not Gaussian, takes it from the spread of the samples (delta method). What the truncation leaves out is *not* in the error
    bar: the estimate is trustworthy only if the next term of the series, with its own noise, is within two error bars.

    Args:
        work: Work of paths that start in equilibrium, shape ``(sample,)``.
        beta: Inverse temperature of the (single, constant) bath.
        order: Cumulants used: 1, 2 or 3.
        weights: Importance weights of the paths, up to a common factor; all one if omitted.
        inefficiency: How many correlated paths are worth one independent path; see `statistical_inefficiency`.

    Raises:
        ValueError: if `beta` is not one positive number, or `order` is not 1, 2 or 3.

    Reference:
        C. Jarzynski, Phys. Rev. Lett. 78, 2690 (1997); G. Hummer, J. Chem. Phys. 114, 7330 (2001).
    """
    require(order in (1, 2, 3), "order", "be 1, 2 or 3", order)
    data = samples(work, "work", weights=weights, inefficiency=inefficiency)
    beta = one_beta(beta, data.values)
    return _expand[order - 1](data, beta)


def _expansion(order, data, beta):
    share = data.weights / data.number
    average = jnp.sum(share * data.values)
    y = beta * (data.values - average)
    m2, m3, m4 = (jnp.sum(share * y**k) for k in (2, 3, 4))
    # Terms of -ln<exp(-y)>, and what each sample adds to them.
    terms = (jnp.zeros_like(m2), -m2 / 2, m3 / 6, -(m4 - 3 * m2**2) / 24)
    pulls = (
        y,
        -(y**2 - m2) / 2,
        (y**3 - m3 - 3 * m2 * y) / 6,
        -(y**4 - m4 - 4 * m3 * y - 6 * m2 * (y**2 - m2)) / 24,
    )
    spread = lambda pull: jnp.sum((share * pull) ** 2) * data.inefficiency
    size = data.independent
    variance = spread(sum(pulls[:order]))
    if order < 3:
        variance = m2 / size + (m2**2 / (2 * jnp.maximum(size - 1, 1)) if order == 2 else 0.0)
    neglected = terms[order] ** 2 + spread(pulls[order])
    trustworthy = (neglected < 4 * variance) & (size >= 30) & (data.excluded == 0)
    value = average + sum(terms[:order]) / beta
    return Estimate(value, jnp.sqrt(variance) / beta, size, trustworthy, data.number, data.excluded)


_expand = [jax.jit(lambda data, beta, order=order: _expansion(order, data, beta)) for order in (1, 2, 3)]
