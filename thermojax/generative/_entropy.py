r"""Entropy production of the noising of data and of its reversal: rates on the exact marginals, and sums along paths.

Rates. With drift $f$, $D = \sigma^2/2$ and the exact score $s$ of $p_t$, the probability flows with the local velocity
$\nu = f - D\,s$. Per unit time, in nats:

- entropy production $\pi = \langle|\nu|^2\rangle/D \ge 0$, the same for the noising and for its reversal;
- flux into the medium $\varphi = \langle f\cdot\nu\rangle/D = \langle|f|^2\rangle/D + \nabla\cdot f$ of the noising: second moments of
  the data are all it needs, so it is exact;
- flux into the medium $\varphi^*$ of the reversal, which has drift $2Ds - f$ and velocity $-\nu$: $\varphi + \varphi^* = 2\pi$;
- rate of the system $dS/dt = \pi - \varphi$ along the noising; along the reversal it is $\pi - \varphi^* = -dS/dt$.

$\int\pi\,dt$ is the mean total entropy production of either direction; under a noising that leaves $\rho$ invariant it is
$KL(p_0\|\rho) - KL(p_T\|\rho)$. It is no error of a model: a perfect score has it in full. What a learned score adds is the path KL of
`audit`.

Paths. The system's entropy changes by $-\ln p_1(x_1) + \ln p_0(x_0)$ with the exact marginals at both ends, the medium's by the
log-ratio of the kernels (`functionals.log_ratio`: $\langle e^{-\Delta s_{tot}}\rangle = 1$ in both directions at *every* step, whatever
the score) or by the midpoint rule (`functionals.medium_entropy_stratonovich`: the same in continuous time; at finite steps the
theorem holds up to $O(h)$ only, unless the sum telescopes).

The variance of $e^{-\Delta s_{tot}}$ is infinite for narrow data: for the noising to $N(0, 1)$ if a component that nothing covers has a
variance below 1/2. The paths that carry it may be so rare that no sample shows them. Its existence is therefore worked out as well:
along each axis of the widest component, where densities are Gaussian far out, the second moment goes through the kernels as a quadratic
form.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, Scalar
from thermojax._check import check_times, ensure, library_of, require
from thermojax.distributions import as_mixture, Gaussian, GaussianMixture, nodes_on_line
from thermojax.dynamics import AbstractNoising, Reversed, Score
from thermojax.ensemble import accumulate
from thermojax.estimators import Estimate, exponential_mean
from thermojax.functionals import log_ratio, medium_entropy_stratonovich, system_entropy
from thermojax.generative._scores import MixtureScore
from thermojax.steppers import AbstractStepper, EulerMaruyama, ExactLinear, with_density


class EntropyRates(NamedTuple):
    """Entropies along a noising process, in nats and nats per unit time, in the shape of the times."""

    production: Float[Array, "..."]
    r"""Entropy production rate $\pi$ of the noising, and of its reversal."""
    flux: Float[Array, "..."]
    r"""Entropy flux $\varphi$ into the medium of the noising, exact."""
    reverse_flux: Float[Array, "..."]
    r"""Entropy flux $\varphi^* = 2\pi - \varphi$ into the medium of the reversal."""
    system: Float[Array, "..."]
    r"""Rate $dS/dt = \pi - \varphi$ of the system's entropy, in the time of the noising."""
    entropy: Float[Array, "..."]
    r"""The system's entropy $S = -\langle\ln p_t\rangle$."""
    production_errors: Float[Array, "..."]
    """Standard errors of `production` and of `system`, and half of those of `reverse_flux`; zero by quadrature."""
    entropy_errors: Float[Array, "..."]
    """Standard errors of `entropy`; zero by quadrature."""


class PathEntropies(NamedTuple):
    """Entropy changes along paths, in nats, and the ends of the paths in the order in which they were made."""

    system: Float[Array, " sample"]
    r"""$-\ln p_1(x_1) + \ln p_0(x_0)$ with the exact marginals at both ends."""
    medium: Float[Array, " sample"]
    """Entropy of the medium, by the log-ratio of the kernels."""
    total: Float[Array, " sample"]
    r"""`system` and `medium`: $\langle e^{-\Delta s_{tot}}\rangle = 1$ at every step size."""
    midpoint_medium: Float[Array, " sample"]
    """Entropy of the medium, by the midpoint rule."""
    midpoint_total: Float[Array, " sample"]
    """`system` and `midpoint_medium`."""
    theorem: Estimate
    r"""$\langle e^{-\Delta s_{tot}}\rangle$ by the kernels, which is one. With the exact score it is trustworthy only if its variance is
    finite, however quiet the samples are."""
    x0s: Float[Array, "sample dim"]
    """First configurations."""
    x1s: Float[Array, "sample dim"]
    """Last configurations."""


def entropy_rates(
    noising: AbstractNoising, data: Gaussian | GaussianMixture, ts: ArrayLike, *, samples: int | None = None, key: Key | None = None
) -> EntropyRates:
    r"""Entropy production, fluxes and entropy of noised data whose density is known.

    Args:
        noising: The noising process.
        data: The density of the data.
        ts: The time or the times, of any shape; the process must have noise there.
        samples: Configurations to average over at each time, drawn anew for each. If omitted, quadrature: exact to rounding, in one
            dimension only. It puts 40 nodes on each standard deviation of every component, so a component more than about 20 times
            narrower than another that covers it is not resolved.
        key: Random key, for samples only.

    Returns:
        The rates and the entropy, in the shape of `ts`.

    Raises:
        ValueError: if there is no noise at one of the times, or samples or their key are missing.

    Reference:
        U. Seifert, Rep. Prog. Phys. 75, 126001 (2012), sec. 2.
    """
    check_method(data, samples, key)
    ts = as_float(ts)
    noise = jax.vmap(noising.noise)(ts.ravel())
    ts = ensure(ts, library_of(noise).isfinite(noise) & (noise > 0), "ts", "be times at which the process has noise", ts)
    return _entropy_rates(noising, data, ts, samples, key)


def path_entropies(
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture,
    n: int,
    ts: ArrayLike,
    *,
    direction: str = "forward",
    score: Score | None = None,
    stepper: AbstractStepper | None = None,
    key: Key,
) -> PathEntropies:
    r"""Entropy changes along `n` paths of the noising, or of its reversal.

    Args:
        noising: The noising process.
        data: The density of the data.
        n: Number of paths, at least two.
        ts: Increasing times of the *noising*; every interval is one step.
        direction: "forward", from the marginal at the first time, or "reverse", `Reversed` from the marginal at the last time.
        score: ``score(t, x)`` of the reversal; the exact one if omitted. The noising needs none.
        stepper: One-step kernel of known density; if omitted, `ExactLinear` forward and `EulerMaruyama` in reverse.
        key: Random key.

    Returns:
        Entropy changes of system and medium along each path, and their exponential average.

    Raises:
        TypeError: if the transition density of `stepper` is unknown.
        ValueError: if times or direction have no meaning.

    Reference:
        U. Seifert, Phys. Rev. Lett. 95, 040602 (2005).
    """
    mixture = as_mixture(data)
    require(n >= 2, "n", "be at least 2", n)
    require(direction in ("forward", "reverse"), "direction", "be 'forward' or 'reverse'", repr(direction))
    require(score is None or direction == "reverse", "score", "be omitted for the noising, which has no score", "one")
    ts = check_times(ts, float)
    start_key, noise_key = jr.split(key)
    forward = direction == "forward"
    if stepper is None:
        stepper = ExactLinear() if forward else EulerMaruyama()
    with_density(stepper)
    ends, clock = (ts[0], ts[-1]), ts
    if not forward:
        ends, clock = ends[::-1], (ts[-1] - ts)[::-1]
    first, last = (noising.marginal(data, t) for t in ends)
    dynamics = noising if forward else Reversed(noising, MixtureScore(noising, data) if score is None else score, ts[-1])
    x0s = _draw(first, n, start_key)
    functionals = {"medium": log_ratio, "midpoint": medium_entropy_stratonovich}
    x1s, sums = accumulate(functionals, dynamics, x0s, clock, stepper=stepper, key=noise_key)
    system, medium, midpoint = _system_entropy(first, last, x0s, x1s), sums["medium"], sums["midpoint"]
    theorem = exponential_mean(system + medium)
    if score is None:
        finite = _second_moment_exists(noising, mixture, forward, ends, clock, stepper)
        theorem = theorem._replace(trustworthy=theorem.trustworthy & finite)
    return PathEntropies(system, medium, system + medium, midpoint, system + midpoint, theorem, x0s, x1s)


def check_method(data: Gaussian | GaussianMixture, samples: int | None, key: Key | None) -> None:
    """Raise unless averages over `data` can be taken: by quadrature in one dimension, or by samples with a key."""
    dim = as_mixture(data).means.shape[1]
    require(samples is not None or dim == 1, "samples", f"be given in {dim} dimensions: quadrature is for one", samples)
    require(samples is None or samples >= 2, "samples", "be at least 2", samples)
    require(samples is None or key is not None, "key", "be given with `samples`", key)


def points(density: Gaussian | GaussianMixture, samples: int | None, key: Key | None) -> tuple[Array, Array]:
    """Configurations and weights that stand for a density: samples, or the nodes of a quadrature in one dimension."""
    mixture = as_mixture(density)
    if samples is not None and key is not None:
        return mixture.sample(samples, key=key), jnp.full(samples, 1.0 / samples, mixture.means.dtype)
    return nodes_on_line(mixture)


def average(values: Float[Array, " point"], weights: Float[Array, " point"], samples: int | None) -> tuple[Scalar, Scalar]:
    """Average over `points` and its standard error, zero by quadrature."""
    found = jnp.sum(weights * values)
    error = jnp.zeros_like(found) if samples is None else jnp.sqrt(jnp.sum(weights * (values - found) ** 2) / (samples - 1))
    return found, error


@eqx.filter_jit
def _entropy_rates(noising, data, ts, samples, key):
    def at(inputs):
        t, time_key = inputs
        density = noising.marginal(data, t)
        xs, weights = points(density, samples, time_key)
        diffusion = 0.5 * noising.noise(t) ** 2
        velocity = lambda x: noising.drift(t, x) - diffusion * density.score(x)
        squares = jax.vmap(lambda x: jnp.sum(velocity(x) ** 2))(xs)
        production, error = average(squares / diffusion, weights, samples)
        entropy, entropy_error = average(-jax.vmap(density.log_prob)(xs), weights, samples)
        flux = _flux(noising, density, t)
        return EntropyRates(production, flux, 2.0 * production - flux, production - flux, entropy, error, entropy_error)

    flat = ts.ravel()
    keys = None if key is None else jr.split(key, flat.shape[0])
    return jax.tree.map(lambda a: a.reshape(ts.shape), lax.map(at, (flat, keys)))


def _flux(noising, density, t):
    """Entropy flux of a linear drift, from the second moments."""
    gaussian = as_mixture(density).moments()
    units = jnp.ones_like(gaussian.mean)
    slope = noising.drift(t, units)
    square = slope**2 * (gaussian.mean**2 + jnp.diagonal(gaussian.covariance))
    return jnp.sum(2.0 * square / noising.noise(t) ** 2 + slope)


@eqx.filter_jit
def _draw(density, n, key):
    return density.sample(n, key=key)


@eqx.filter_jit
def _system_entropy(first, last, x0s, x1s):
    return system_entropy(first, last, x0s, x1s)


@eqx.filter_jit
def _second_moment_exists(noising, data, forward, ends, clock, stepper):
    """Whether the second moment of the exponential of minus the total entropy is finite, along each axis of the widest component."""
    covariances = data.covariances
    full = covariances.ndim == 3
    widths = jnp.max(jnp.linalg.eigvalsh(covariances) if full else covariances.reshape(covariances.shape[0], -1), axis=0)
    one = jnp.ones(1, widths.dtype)

    def along(width):
        axis = Gaussian(jnp.zeros_like(one), width)
        dynamics = noising if forward else Reversed(noising, MixtureScore(noising, axis), ends[0])
        first, last = (noising.marginal(axis, t).covariance for t in ends)

        def step(carry, times):
            # exp(-g x^2/2) at the end of a step becomes another one at its beginning, if the integral over the end exists.
            g, exists = carry
            gain, spread = stepper.increment(dynamics, *times, one)
            factor, variance = 1.0 + gain[0], spread**2
            form = (2.0 * factor**2 - 1.0) / variance + g
            return ((2.0 - factor**2) / variance - (factor / variance) ** 2 / form, exists & (form > 0)), None

        start = (2.0 / last, jnp.asarray(True))
        (g, exists), _ = lax.scan(step, start, (clock[:-1], clock[1:]), reverse=True)
        return exists & (g > 1.0 / first)

    return jnp.all(jax.vmap(along)(widths))
