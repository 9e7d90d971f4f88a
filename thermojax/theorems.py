r"""The laws of stochastic thermodynamics, as numbers with error bars.

A theorem returns its residual: zero where the law holds, give or take the standard error. A bound returns its slack: never negative,
give or take the standard error. All of them are `Estimate`s, so a residual that rare samples decide says so. Entropies and
log-ratios are dimensionless; $k_B = 1$.

The fluctuation theorems hold at every step size for log-ratios of the kernels (`functionals.log_ratio`,
`functionals.total_reduced_work`, `switching.Drive.total_work`), and in the limit of small steps for everything else.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaincc
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, Scalar
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.estimators import Estimate, exponential_mean, mean
from thermojax.exact import gaussian_transport
from thermojax.phase import check_configurations

# The variance of the labels in a bin below which their sum has no Gaussian error bar.
_MIN_INFORMATION = 10.0


class Histogram(NamedTuple):
    r"""A symmetry of two densities, bin by bin: $\ln P(w)/\tilde P(-w) - (w - \Delta)$ where both have samples."""

    residual: Estimate
    """One number for the whole: the mean of a bounded function that the symmetry makes zero."""
    centres: Float[Array, " bin"]
    """The middle of each bin."""
    log_ratios: Float[Array, " bin"]
    r"""$\ln P(w)/\tilde P(-w)$ at the middle of each bin, free of bias by its width, to first order in the distance from the law;
    NaN for bins with few samples."""
    stderrs: Float[Array, " bin"]
    """Their standard errors; NaN for bins with few samples."""
    chi_squared: Scalar
    """Sum of the squared residuals of the bins, each in units of its error."""
    bins: Array
    """Bins that were used."""
    p_value: Scalar
    """Probability of a larger sum if the symmetry holds."""


def jarzynski(work: ArrayLike, delta_f: ArrayLike, *, beta: ArrayLike, **kinds: Any) -> Estimate:
    r"""Jarzynski's equality, $\langle e^{-\beta(W - \Delta F)}\rangle - 1$.

    Args:
        work: Work of paths from equilibrium.
        delta_f: The free-energy difference $\Delta F$.
        beta: Inverse temperature of the one constant bath; for a drive take `switching.Drive.beta`.
        **kinds: `weights` and `inefficiency` of the samples, as in `estimators.exponential_mean`.

    Raises:
        ValueError: if `beta` is not one positive number.

    Reference:
        C. Jarzynski, Phys. Rev. Lett. 78, 2690 (1997), eq. (2a).
    """
    require(jnp.ndim(beta) == 0, "beta", "be one number; for a changing bath take `generalised_jarzynski`", f"shape {jnp.shape(beta)}")
    beta = check_positive(as_scalar(beta), "beta")
    return generalised_jarzynski(beta * jnp.asarray(work), beta * as_scalar(delta_f), **kinds)


def generalised_jarzynski(reduced_work: ArrayLike, delta: ArrayLike, **kinds: Any) -> Estimate:
    r"""Jarzynski's equality in a bath that changes, $\langle e^{-(Y - \Delta(\beta F))}\rangle - 1$.

    Args:
        reduced_work: Reduced work $Y$ of paths from equilibrium.
        delta: $\Delta(\beta F) = -\ln Z_\tau/Z_0$.
        **kinds: `weights` and `inefficiency` of the samples.
    """
    return integral_fluctuation_theorem(jnp.asarray(reduced_work) - as_scalar(delta), **kinds)


def integral_fluctuation_theorem(entropies: ArrayLike, **kinds: Any) -> Estimate:
    r"""The integral fluctuation theorem, $\langle e^{-\Delta s}\rangle - 1$, for the total entropy or any log-ratio of path measures.

    Args:
        entropies: One number for each path.
        **kinds: `weights` and `inefficiency` of the samples.

    Reference:
        U. Seifert, Phys. Rev. Lett. 95, 040602 (2005).
    """
    found = exponential_mean(entropies, **kinds)
    return found._replace(value=found.value - 1.0)


def hatano_sasa(excess: ArrayLike, **kinds: Any) -> Estimate:
    r"""Hatano and Sasa's equality, $\langle e^{-Y_s}\rangle - 1$ for the sums of `functionals.HatanoSasa`.

    Args:
        excess: $Y_s$ of paths from the steady state of the first control.
        **kinds: `weights` and `inefficiency` of the samples.

    Reference:
        T. Hatano, S. Sasa, Phys. Rev. Lett. 86, 3463 (2001).
    """
    return integral_fluctuation_theorem(excess, **kinds)


def crooks(forward: ArrayLike, backward: ArrayLike, delta: ArrayLike, *, bins: int = 30) -> Histogram:
    r"""Crooks' relation, $P(Y)/\tilde P(-Y) = e^{Y - \Delta(\beta F)}$.

    The residual is the difference of the two sides of Bennett's equation, $\langle f(Y - \Delta)\rangle - \langle f(\tilde Y +
    \Delta)\rangle_{back}$ with $f(u) = 1/(1 + e^u)$: bounded, so that its error bar can be believed. The bins count how many of the
    samples near $Y$ are forward ones, against the odds $e^{Y - \Delta}$ of each.

    Args:
        forward: Reduced (or total) work of the protocol, $\beta W$ in one bath.
        backward: That of the reversed protocol.
        delta: $\Delta(\beta F)$.
        bins: Bins in the range of work where samples of both sides meet.

    Raises:
        ValueError: if a side has fewer than two samples, or samples that are not finite.

    Reference:
        G. E. Crooks, Phys. Rev. E 60, 2721 (1999), eq. (11).
    """
    forward, backward, delta = _sound(forward, "forward"), _sound(backward, "backward"), as_scalar(delta)
    ahead, back = forward - delta, backward + delta
    sides = [mean(jax.nn.sigmoid(-side)) for side in (ahead, back)]
    residual = Estimate(
        sides[0].value - sides[1].value,
        jnp.hypot(sides[0].stderr, sides[1].stderr),
        jnp.minimum(sides[0].ess, sides[1].ess),
        sides[0].trustworthy & sides[1].trustworthy,
        sides[0].samples + sides[1].samples,
        sides[0].excluded + sides[1].excluded,
    )
    positions = jnp.concatenate([ahead, -back])
    labels = jnp.concatenate([jnp.ones_like(ahead), jnp.zeros_like(back)])
    return _binned(
        residual, positions, labels, positions + jnp.log(ahead.shape[0] / back.shape[0]), delta, bins, fixed=(ahead.shape[0], back.shape[0])
    )


def detailed_fluctuation_theorem(entropies: ArrayLike, *, bins: int = 30) -> Histogram:
    r"""The detailed fluctuation theorem $P(s)/P(-s) = e^s$ of one ensemble, as in a steady state or under a protocol that is its own
    reversal.

    The residual is the mean of $f(s)\,[1 - 2f(s)]$ with $f(s) = 1/(1 + e^s)$, which the symmetry makes zero.

    Args:
        entropies: Total entropy production of each path.
        bins: Bins in the range of entropies that occur with either sign.

    Raises:
        ValueError: if there are fewer than two samples, or some are not finite.

    Reference:
        U. Seifert, Rep. Prog. Phys. 75, 126001 (2012), sec. 3.
    """
    s = _sound(entropies, "entropies")
    f = jax.nn.sigmoid(-s)
    return _binned(mean(f * (1.0 - 2.0 * f)), jnp.abs(s), (s > 0).astype(s.dtype), jnp.abs(s), jnp.zeros((), s.dtype), bins)


def second_law(dissipated: ArrayLike, **kinds: Any) -> Estimate:
    r"""The second law, $\langle\Sigma\rangle \ge 0$, for the dissipated reduced work or the total entropy production.

    Args:
        dissipated: One number for each path.
        **kinds: `weights` and `inefficiency` of the samples.
    """
    return mean(dissipated, **kinds)


def uncertainty_relation(currents: ArrayLike, entropies: ArrayLike) -> Estimate:
    r"""The thermodynamic uncertainty relation, $\mathrm{Var}J/\langle J\rangle^2 - 2/\langle\Delta s_{tot}\rangle \ge 0$.

    For currents of overdamped dynamics in a steady state; driven, underdamped and relaxing systems may break it.

    Args:
        currents: A current $J$ integrated along each path, for instance a `functionals.StochasticIntegral` in Stratonovich's convention.
        entropies: Total entropy production of the same paths.

    Raises:
        ValueError: if the two differ in number, or have samples that are not finite.

    References:
        A. C. Barato, U. Seifert, Phys. Rev. Lett. 114, 158101 (2015). T. R. Gingrich et al., Phys. Rev. Lett. 116, 120601 (2016).
    """
    currents, entropies = _sound(currents, "currents"), _sound(entropies, "entropies")
    require(
        currents.shape == entropies.shape, "entropies", f"have one number for each current, {currents.shape}", f"shape {entropies.shape}"
    )
    j, s = jnp.mean(currents), jnp.mean(entropies)
    variance = jnp.mean((currents - j) ** 2)
    # What one sample adds to the slack, to first order.
    influence = ((currents - j) ** 2 - variance) / j**2 - 2 * variance * (currents - j) / j**3 + 2 * (entropies - s) / s**2
    return mean(influence)._replace(value=variance / j**2 - 2 / s)


def speed_limit(
    entropies: ArrayLike, x0s: ArrayLike, x1s: ArrayLike, *, diffusion: ArrayLike, duration: ArrayLike, blocks: int = 50
) -> Estimate:
    r"""The Wasserstein speed limit, $\langle\Delta s_{tot}\rangle - W_2^2(p_0, p_\tau)/(D\tau) \ge 0$, for overdamped dynamics.

    $W_2$ is that of the Gaussians with the means and covariances of the samples: exact for Gaussian densities, and smaller than the true
    one for others, so that the bound stands.

    Args:
        entropies: Total entropy production of each path.
        x0s: First configurations, shape ``(sample, dim)``.
        x1s: Last configurations.
        diffusion: $D = \mu/\beta$, constant.
        duration: $\tau$.
        blocks: Blocks of the jackknife that gives the error bar.

    Raises:
        ValueError: if shapes do not fit, or numbers are not positive.

    References:
        E. Aurell et al., J. Stat. Phys. 147, 487 (2012). M. Gelbrich, Math. Nachr. 147, 185 (1990), for the bound by Gaussians.
    """
    entropies = _sound(entropies, "entropies")
    x0s, x1s = check_configurations(x0s), check_configurations(x1s, "x1s")
    same = x0s.shape == x1s.shape and x0s.shape[0] == entropies.shape[0]
    require(same, "x1s", f"have the shape of `x0s`, {x0s.shape}, one for each of `entropies`", f"shape {x1s.shape}")
    require(2 <= blocks <= x0s.shape[0] // 2, "blocks", "be between 2 and half the samples", blocks)
    scale = check_positive(as_scalar(diffusion), "diffusion") * check_positive(as_scalar(duration), "duration")
    size = x0s.shape[0] // blocks
    moments = _block_moments(x0s[: size * blocks], x1s[: size * blocks], entropies[: size * blocks], blocks)
    slack = lambda m: m[4] - gaussian_transport(m[0], m[1] - jnp.outer(m[0], m[0]), m[2], m[3] - jnp.outer(m[2], m[2])) / scale
    whole = jax.tree.map(lambda a: jnp.mean(a, axis=0), moments)
    without = jax.tree.map(lambda a, m: (blocks * m[None] - a) / (blocks - 1), moments, whole)
    left_out = jax.vmap(slack)(without)
    stderr = jnp.sqrt((blocks - 1) * jnp.mean((left_out - jnp.mean(left_out)) ** 2))
    return mean(entropies)._replace(value=slack(whole), stderr=stderr)


def landauer(work: ArrayLike, erased: ArrayLike, *, beta: ArrayLike) -> Estimate:
    r"""Landauer's bound on erasing one bit, $\beta\langle W\rangle - [\ln 2 - h(\epsilon)] \ge 0$ with the error rate $\epsilon$.

    $h(\epsilon) = -\epsilon\ln\epsilon - (1 - \epsilon)\ln(1 - \epsilon)$ is the information left in the bit. For a memory of two equal
    wells that starts in equilibrium and has its first energy landscape again at the end.

    Args:
        work: Work of each path.
        erased: Whether the path ended in the state that was asked for.
        beta: Inverse temperature.

    Raises:
        ValueError: if the two differ in number, or `beta` is not one positive number.

    References:
        R. Landauer, IBM J. Res. Dev. 5, 183 (1961). A. Bérut et al., Nature 483, 187 (2012), for the bound at a finite success rate.
    """
    work, erased = _sound(work, "work"), jnp.asarray(erased)
    require(jnp.ndim(beta) == 0, "beta", "be one number", f"shape {jnp.shape(beta)}")
    beta = check_positive(as_scalar(beta), "beta")
    require(erased.shape == work.shape, "erased", f"have one entry for each work, {work.shape}", f"shape {erased.shape}")
    failed = 1.0 - erased.astype(work.dtype)
    rate = jnp.mean(failed)
    # At an error rate of 0 or 1 nothing is left and nothing fluctuates; the clip keeps logarithm and slope finite.
    inside = jnp.clip(rate, 1e-12, 1 - 1e-7)
    left = -inside * jnp.log(inside) - (1 - inside) * jnp.log1p(-inside)
    influence = beta * work + jnp.where((rate > 0) & (rate < 1), jnp.log1p(-inside) - jnp.log(inside), 0.0) * (failed - rate)
    return mean(influence)._replace(value=beta * jnp.mean(work) - (jnp.log(2.0) - jnp.where((rate > 0) & (rate < 1), left, 0.0)))


def _binned(residual, positions, labels, logits, shift, bins, fixed=None):
    r"""A symmetry bin by bin, from what it says of each single sample: which side it comes from, given where it lies.

    The label of a sample at $w$ is a coin with the logarithm of its odds in `logits`. Given the places of all samples, the labels in a
    bin have a known mean and variance, so that neither the width of the bins nor their choice biases anything. Where the number of
    samples of either side is `fixed`, the counts of the bins are anticorrelated by $g V_b V_c$ with $g = 1/n + 1/m$.
    """
    chances = jax.nn.sigmoid(logits)
    information = chances * (1.0 - chances)
    order = jnp.argsort(positions)
    share = jnp.cumsum(information[order]) / jnp.sum(information)
    # Where a sample tells something: not in the tails that belong to one side alone.
    low, high = (positions[order][jnp.searchsorted(share, q)] for q in (0.001, 0.999))
    edges = jnp.linspace(low, high, bins + 1)
    place = jnp.searchsorted(edges, positions, side="right")
    # What lies outside falls into two further bins, which are dropped.
    gather = lambda values: jnp.zeros(bins + 2, positions.dtype).at[place].add(values)[1:-1]
    surplus, variance = gather(labels - chances), gather(information)
    used = variance >= _MIN_INFORMATION
    safe = jnp.where(used, variance, 1.0)
    g = 0.0 if fixed is None else 1.0 / fixed[0] + 1.0 / fixed[1]
    surplus, variance, count = jnp.where(used, surplus, 0.0), jnp.where(used, variance, 0.0), jnp.sum(used)
    # The inverse of a diagonal covariance less one of rank one.
    left = jnp.maximum(1.0 - g * jnp.sum(variance), 1e-3)
    chi_squared = jnp.sum(surplus**2 / safe) + g * jnp.sum(surplus) ** 2 / left
    p_value = gammaincc(jnp.maximum(count, 1).astype(positions.dtype) / 2, chi_squared / 2)
    centres = 0.5 * (edges[1:] + edges[:-1])
    blank = lambda a: jnp.where(used, a, jnp.nan)
    return Histogram(
        residual,
        centres + shift,
        blank(centres + surplus / safe),
        blank(jnp.sqrt((1.0 - g * variance) / safe)),
        chi_squared,
        count,
        p_value,
    )


def _block_moments(x0s, x1s, entropies, blocks):
    """In each block: mean and second moment of both ends, and the mean entropy."""
    cut = lambda a: a.reshape(blocks, -1, *a.shape[1:])
    average = lambda a: jnp.mean(cut(a), axis=1)
    square = lambda a: jnp.einsum("bsi,bsj->bij", cut(a), cut(a)) / cut(a).shape[1]
    return average(x0s), square(x0s), average(x1s), square(x1s), average(entropies)


def _sound(values, name):
    values = jnp.asarray(values)
    require(values.ndim == 1 and values.shape[0] >= 2, name, "be a vector of at least two samples", f"shape {values.shape}")
    values = values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(float)
    good = library_of(values).isfinite(values)
    return ensure(values, good, name, "be finite", f"{good.size - good.sum()} of {good.size} samples that are not")
