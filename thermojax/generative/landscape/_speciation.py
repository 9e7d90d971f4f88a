r"""Symmetry breaking: the time at which generation decides, and the phases of the reverse potential."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, ensure, require
from thermojax.distributions import as_mixture, Gaussian, GaussianMixture
from thermojax.dynamics import AbstractNoising
from thermojax.generative.landscape._potential import density_of, one_time, Points, rate_of, score_of
from thermojax.phase import check_configurations

PHASES = ("unbroken", "broken", "unstable")
# Halvings that take any interval to rounding, and Newton steps from one time to the next.
HALVINGS, NEWTON = 60, 6


class Curvature(NamedTuple):
    """The softest direction of the reverse potential at one configuration."""

    smallest: Scalar
    """The smallest eigenvalue of the Hessian."""
    direction: Float[Array, " dim"]
    """Its unit eigenvector; the entry of largest size is positive."""


class Speciation(NamedTuple):
    """Where on the way from noise to data the reverse potential loses its stability."""

    time: Scalar
    """The latest time at which the smallest curvature changes sign; NaN if it does not, see `broken`."""
    broken: Array
    """Whether it changes sign between start and horizon."""
    direction: Float[Array, " dim"]
    """The unit vector along which the symmetry breaks; at the earliest time if it does not."""
    point: Float[Array, " dim"]
    """The configuration at which the curvature was taken, at that time."""
    gradient: Scalar
    """Size of the gradient of the potential there: zero at a stationary point, not at an arbitrary `centre`."""

    @property
    def verdict(self) -> str:
        """In a word: "broken" or "unbroken"."""
        return "broken" if self.broken else "unbroken"


class Instability(NamedTuple):
    """When the reverse potential is bounded below."""

    time: Scalar
    """The latest time at which this changes; NaN if it does not, see `unstable`."""
    unstable: Array
    """Whether it changes between start and horizon."""


def curvature(noising: AbstractNoising, data: Any, t: ArrayLike, x: ArrayLike) -> Curvature:
    r"""The smallest eigenvalue of $\nabla\nabla U = -r - g^2\nabla s$ at one configuration, with the symmetric part of $\nabla s$.

    Costs `dim` derivatives of the score and the eigenvalues of a matrix.

    Args:
        noising: The noising process.
        data: A Gaussian, a mixture, points of shape ``(sample, dim)``, `Points`, or any score ``score(t, x)``.
        t: Time of the noising.
        x: One configuration, shape ``(dim,)``.
    """
    x = as_float(x)
    require(x.ndim == 1, "x", "have shape (dim,)", f"shape {x.shape}")
    return _curvature(noising, score_of(noising, data), one_time(t), x)


def speciation_time(
    noising: AbstractNoising,
    data: Any,
    *,
    centre: ArrayLike | None = None,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    levels: int = 64,
) -> Speciation:
    r"""The latest time at which the smallest curvature of the reverse potential changes sign at its stationary point.

    At the latest times the potential is convex with one stationary point; that point is followed by Newton's method to earlier times. By
    symmetry it becomes a saddle. Data without symmetry have an imperfect transition: the stationary point that comes from the noise stays
    a minimum, and the verdict is "unbroken" although other minima appear elsewhere. To ask for the curvature at a fixed place
    instead, give `centre`, the centre of the data, for instance their mean; it is carried along as $\alpha(t)$ times `centre`.

    Args:
        noising: The noising process.
        data: As for `curvature`; a score without known density needs a `centre`.
        centre: Centre of symmetry of the data, shape ``(dim,)``; the stationary point if omitted.
        start: Earliest time; points need one at which the process has noise.
        horizon: Latest time, at which the potential is convex.
        levels: Times of the coarse search; two changes of sign between neighbours are missed.

    Raises:
        ValueError: if the potential is not convex at `horizon`, or has no curvature at some time.
    """
    start, horizon = _interval(start, horizon, levels)
    score = score_of(noising, data)
    if centre is None:
        rule = "be given for a score whose data are not known"
        known = not callable(data) or isinstance(data, Points)
        require(known, "centre", rule, centre)
        origin = _mean_of(density_of(noising, data))
    else:
        origin = as_float(centre)
        require(origin.ndim == 1, "centre", "have shape (dim,)", f"shape {origin.shape}")
    found, latest, finite = _speciation(noising, score, origin, start, horizon, levels, centre is None)
    time = ensure(found.time, finite, "start", "be a time at which the score has finite slopes, like all later ones", start)
    rule = "be so late that the reverse potential is convex at its stationary point"
    return found._replace(time=ensure(time, latest > 0, "horizon", rule, horizon))


def speciation_time_of_covariance(noising: AbstractNoising, data: Any, *, start: ArrayLike = 0.0, horizon: ArrayLike = 1.0) -> Speciation:
    r"""Speciation from the covariance of the data alone: $\alpha^2\Lambda = \alpha^2 + v$ with $\Lambda$ its largest eigenvalue.

    For the Ornstein-Uhlenbeck process at unit temperature this is $t_S = \tfrac12\ln\Lambda$; other processes are compared at the same
    signal-to-noise ratio, $\ln(\alpha^2/v) = -\ln(\Lambda - 1)$. It is the leading term for $\Lambda \gg 1$, as in high dimension, and
    knows neither constants beside $\ln\Lambda$ nor whether the data have classes: between classes of unequal length it may name another
    direction than `speciation_time`. Data with $\Lambda \le 1$ are unbroken.

    Args:
        noising: The noising process.
        data: Configurations of shape ``(sample, dim)``, a Gaussian, or a mixture.
        start: Earliest time.
        horizon: Latest time.

    Returns:
        The time and the direction of largest variance; `gradient` is zero.

    Reference:
        G. Biroli, T. Bonnaire, V. de Bortoli, M. Mézard, arXiv:2402.18491 (2024).
    """
    start, horizon = _interval(start, horizon, 2)
    if isinstance(data, Gaussian | GaussianMixture):
        moments = as_mixture(data).moments()
        variances, directions = jnp.linalg.eigh(moments.covariance)
        largest, direction, centre = variances[-1], directions[:, -1], moments.mean
    else:
        points = as_float(check_configurations(data, "data"))
        require(points.shape[0] >= 2, "data", "hold at least two points", points.shape[0])
        centre = jnp.mean(points, axis=0)
        _, sizes, rows = jnp.linalg.svd(points - centre[None], full_matrices=False)
        largest, direction = sizes[0] ** 2 / (points.shape[0] - 1), rows[0]
    return _covariance_speciation(noising, largest, direction, centre, start, horizon)


def symmetric_mixture_speciation_time(
    mean: ArrayLike, variance: ArrayLike, *, rate: ArrayLike = 1.0, temperature: ArrayLike = 1.0
) -> Scalar:
    r"""Speciation of $\tfrac12 N(\mu, \sigma^2) + \tfrac12 N(-\mu, \sigma^2)$ under the Ornstein-Uhlenbeck process,
    $t_S = \tfrac1{2r}\ln\bigl[(\mu^2 + \sqrt{(\sigma^2 - T)^2 + \mu^4})/T\bigr]$.

    Negative if the symmetry is unbroken at all times $t \ge 0$. In `dim` dimensions (isotropic components) `mean` is the length of $\mu$.

    Reference:
        Z. Yu, H. Huang, arXiv:2405.11932 (2024), for $r = T = 1$.
    """
    mean, variance = as_scalar(mean), check_positive(as_scalar(variance), "variance")
    rate, temperature = check_positive(as_scalar(rate), "rate"), check_positive(as_scalar(temperature), "temperature")
    return jnp.log((mean**2 + jnp.hypot(variance - temperature, mean**2)) / temperature) / (2 * rate)


def instability_time(
    noising: AbstractNoising, data: Gaussian | GaussianMixture, *, start: ArrayLike = 0.0, horizon: ArrayLike = 1.0, levels: int = 64
) -> Instability:
    r"""The latest time at which the reverse potential ceases to be bounded below: $g^2/v_{\max} = r$.

    $v_{\max}$ is the largest variance of any component of the noised data in any direction. Under the Ornstein-Uhlenbeck process at unit
    temperature $t = \tfrac12\ln(\sigma^2 - 1)$, which is positive for $\sigma^2 > 2$: broad data are unstable at the earliest times.

    Raises:
        ValueError: if the potential is not bounded below at `horizon`.
    """
    start, horizon = _interval(start, horizon, levels)
    time, unstable, latest = _instability(noising, as_mixture(data), start, horizon, levels)
    return Instability(ensure(time, latest > 0, "horizon", "be a time at which the potential is bounded below", horizon), unstable)


def phase_of(noising: AbstractNoising, data: Gaussian | GaussianMixture, t: ArrayLike) -> str:
    """The phase of the reverse potential at time `t`: "unstable" if it is not bounded below; else "broken" if it curves downwards at the
    mean of the noised data, or "unbroken".
    """
    return PHASES[int(_phase(noising, as_mixture(data), one_time(t)))]


def phase_diagram(
    noising: AbstractNoising, family: Callable[[Scalar], Gaussian | GaussianMixture], values: ArrayLike, ts: ArrayLike
) -> Int[Array, "value time"]:
    """The phases of a family of data on a grid, as numbers: 0 unbroken, 1 broken, 2 unstable.

    Args:
        noising: The noising process.
        family: The data for one value of a parameter, ``family(value)``.
        values: Values of the parameter, shape ``(value,)``.
        ts: Times, shape ``(time,)``.
    """
    values, ts = as_float(values), as_float(ts)
    require(values.ndim == 1, "values", "be a vector", f"shape {values.shape}")
    require(ts.ndim == 1, "ts", "be a vector", f"shape {ts.shape}")
    return _phase_diagram(noising, family, values, ts)


@eqx.filter_jit
def _curvature(noising, score, t, x):
    values, vectors = jnp.linalg.eigh(_hessian(noising, score, t, x))
    return Curvature(values[0], _signed(vectors[:, 0]))


@eqx.filter_jit
def _speciation(noising, score, origin, start, horizon, levels, tracked):
    def measure(t, point):
        if not tracked:
            return jnp.linalg.eigvalsh(_hessian(noising, score, t, noising.alpha(t) * origin))[0], point
        point = lax.fori_loop(0, NEWTON, lambda _, x: _newton(noising, score, t, x), point)
        return jnp.linalg.eigvalsh(_hessian(noising, score, t, point))[0], point

    first = noising.alpha(horizon) * origin
    crossing = latest_crossing(measure, first, start, horizon, levels)
    t = jnp.where(crossing.found, crossing.time, start)
    point = crossing.carry if tracked else noising.alpha(t) * origin
    _, vectors = jnp.linalg.eigh(_hessian(noising, score, t, point))
    size = jnp.linalg.norm(_gradient(noising, score, t, point))
    found = Speciation(crossing.time, crossing.found, _signed(vectors[:, 0]), point, size)
    return found, crossing.latest, crossing.finite


@eqx.filter_jit
def _covariance_speciation(noising, largest, direction, centre, start, horizon):
    def measure(t, carry):
        # Positive at late times. Both sides of the criterion are finite even where there is no noise.
        shrunk = noising.alpha(t) ** 2
        return shrunk + noising.variance(t) - shrunk * largest, carry

    crossing = latest_crossing(measure, (), start, horizon, 2)
    t = jnp.where(crossing.found, crossing.time, start)
    return Speciation(crossing.time, crossing.found, _signed(direction), noising.alpha(t) * centre, jnp.zeros_like(t))


@eqx.filter_jit
def _instability(noising, mixture, start, horizon, levels):
    crossing = latest_crossing(lambda t, carry: (_stability(noising, mixture, t), carry), (), start, horizon, levels)
    return crossing.time, crossing.found, crossing.latest


@eqx.filter_jit
def _phase(noising, mixture, t):
    weights = mixture.weights / jnp.sum(mixture.weights)
    centre = noising.alpha(t) * (weights @ mixture.means)
    smallest = jnp.linalg.eigvalsh(_hessian(noising, score_of(noising, mixture), t, centre))[0]
    return jnp.where(_stability(noising, mixture, t) < 0, 2, jnp.where(smallest < 0, 1, 0))


@eqx.filter_jit
def _phase_diagram(noising, family, values, ts):
    return jax.vmap(lambda value: jax.vmap(lambda t: _phase(noising, as_mixture(family(value)), t))(ts))(values)


class Crossing(NamedTuple):
    """What `latest_crossing` found."""

    time: Scalar
    """The time; NaN if there is none."""
    found: Array
    """Whether there is one."""
    carry: Any
    """What was carried to that time, or to the earliest one."""
    latest: Scalar
    """The value at the latest time."""
    finite: Array
    """Whether all values of the coarse search are numbers."""


def latest_crossing(measure: Callable, carry: Any, start: Scalar, horizon: Scalar, levels: int, *, halvings: int = HALVINGS) -> Crossing:
    """The latest time at which ``measure(t, carry)`` turns from positive to negative, going backwards from `horizon`.

    A coarse search brackets it, bisection takes it to rounding. `measure` also returns the next carry.
    """

    def look(carry, t):
        value, carry = measure(t, carry)
        return carry, (value, carry)

    ts = jnp.linspace(horizon, start, levels)
    final, (values, carries) = lax.scan(look, carry, ts)
    below = values <= 0
    found = jnp.any(below) & (values[0] > 0)
    first = jnp.maximum(jnp.argmax(below), 1)

    def halve(_, state):
        early, late, carry = state
        middle = 0.5 * (early + late)
        value, reached = measure(middle, carry)
        above = value > 0
        carry = jax.tree.map(lambda new, old: jnp.where(above, new, old), reached, carry)
        return jnp.where(above, early, middle), jnp.where(above, middle, late), carry

    bracket = (ts[first], ts[first - 1], jax.tree.map(lambda a: a[first - 1], carries))
    early, late, reached = lax.fori_loop(0, halvings, halve, bracket)
    reached = jax.tree.map(lambda new, old: jnp.where(found, new, old), reached, final)
    time = jnp.where(found, 0.5 * (early + late), jnp.nan)
    return Crossing(time, found, reached, values[0], ~jnp.any(jnp.isnan(values)))


def _gradient(noising, score, t, x):
    return -rate_of(noising, t) * x - noising.noise(t) ** 2 * score(t, x)


def _hessian(noising, score, t, x):
    slopes = jax.jacfwd(lambda y: _gradient(noising, score, t, y))(x)
    return 0.5 * (slopes + slopes.T)


def _newton(noising, score, t, x):
    """One step of Newton's method towards a stationary point, no longer than the narrowest thermal width."""
    values, vectors = jnp.linalg.eigh(_hessian(noising, score, t, x))
    forces = vectors.T @ _gradient(noising, score, t, x)
    # Along a direction without curvature there is nothing to solve for.
    largest = jnp.max(jnp.abs(values))
    flat = jnp.abs(values) <= 10 * jnp.finfo(x.dtype).eps * largest
    step = vectors @ jnp.where(flat, 0.0, forces / jnp.where(flat, 1.0, values))
    limit = noising.noise(t) / jnp.sqrt(largest)
    return x - step * jnp.minimum(1.0, limit / jnp.maximum(jnp.linalg.norm(step), limit))


def _stability(noising, mixture, t):
    """Positive if the reverse potential is bounded below."""
    covariances = noising.marginal(mixture, t).covariances
    broadest = jnp.max(jnp.linalg.eigvalsh(covariances) if covariances.ndim == 3 else covariances)
    return noising.noise(t) ** 2 - rate_of(noising, t) * broadest


def _mean_of(density):
    return jnp.mean(density.points, axis=0) if isinstance(density, Points) else as_mixture(density).moments().mean


def _signed(vector):
    return vector * jnp.sign(vector[jnp.argmax(jnp.abs(vector))])


def _interval(start, horizon, levels):
    start, horizon = one_time(start, "start"), one_time(horizon, "horizon")
    require(levels >= 2, "levels", "be at least 2", levels)
    return start, ensure(horizon, horizon > start, "horizon", "be later than `start`", horizon)
