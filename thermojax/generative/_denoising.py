r"""What few denoising steps cost: the error of the denoised data by noise level, and the time grids that follow from it.

Of the noise $z$ in $x_t = \alpha x_0 + \sqrt v\,z$ a score predicts $-\sqrt v\,s_\theta$, with the mean square error $e(\lambda) = \langle
\lVert z + \sqrt v\,s_\theta\rVert^2\rangle$ at the log signal-to-noise ratio $\lambda = \ln(\alpha^2/v)$; $e^{-\lambda} e$ is that of the
denoised data. A step from the noisier $\lambda_1$ to $\lambda_0$ then costs, given the datum and averaged over it,

- $\tfrac12(e^{\lambda_0 - \lambda_1} - 1)\,e(\lambda_1)$ with the variance of `Ancestral`, the posterior's at known data ("posterior");
- $\tfrac d2\ln[1 + (e^{\lambda_0 - \lambda_1} - 1)\,e(\lambda_1)/d]$ with the variance, equal in all $d$ coordinates, that costs least, the
  posterior's plus what the error adds ("optimal", `Calibrated`);

in nats. These are the terms of `kernel_terms`, here as functions of one number per level. What the grid can change is only how well the
sum of the steps meets the integral $\tfrac12\int e\,d\lambda$ ("posterior": a Riemann sum from above). The rest, for any grid:

conditional bound = path KL + $I(x_0; x_{t_0})$, where the mutual information at the first time is the data's own, and the path KL of the
noising of the data from the generation is discretisation and score error (`path_kl`). So the grid of least bound is that of least path KL.

For short steps a step costs $\tfrac14 l^2$ beyond the integral, with the length element $dl^2 = (e - de/d\lambda)\,d\lambda^2$, less
$e^2/d$ in the bracket for the variance that costs least. With the exact score that is $\alpha^4/v^2$ times the mean square of the
posterior covariance of the data, a metric: `length_grid` takes equal lengths, and $N$ steps cost $L^2/4N$. It is for denoising what the
thermodynamic length is for driving.

References:
    D. Guo, S. Shamai, S. Verdú, IEEE Trans. Inf. Theory 51, 1261 (2005), for information and error; D. P. Kingma et al., arXiv:2107.00630
    (2021), for the bound; F. Bao et al., Analytic-DPM, arXiv:2201.06503 (2022), for the variance; D. Watson et al., arXiv:2106.03802
    (2021), for dynamic programming over grids.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray as Key

from thermojax._array import as_float, cast, Scalar
from thermojax._check import ensure, require
from thermojax.distributions import as_mixture, Gaussian, GaussianMixture
from thermojax.dynamics import AbstractNoising, Score
from thermojax.generative._conditional import steadied
from thermojax.generative._entropy import average, check_method, points
from thermojax.generative._grids import cubic, level_ends, monotone_slopes, times_at
from thermojax.generative._sampling import Ancestral
from thermojax.phase import check_configurations
from thermojax.steppers import AbstractGaussianStepper

VARIANCES = ("posterior", "optimal")
# Places in a window of the refinement, which reaches two levels across.
_WINDOW = 17
# How often the windows of one width are moved, at most.
_ROUNDS = 200


class DenoisingProfile(NamedTuple):
    """The error of a score by noise level, from the cleanest; what grids are made of."""

    ts: Float[Array, " level"]
    """Increasing times."""
    log_snr: Float[Array, " level"]
    """Falling log signal-to-noise ratios at these times."""
    errors: Float[Array, " level"]
    r"""Mean square error $e$ of the predicted noise, summed over coordinates: signal-to-noise ratio times that of the denoised data."""
    stderrs: Float[Array, " level"]
    """Standard errors of `errors`, which share their draws between levels; zero by quadrature."""
    dim: Scalar
    """Number of coordinates."""


class Draws(NamedTuple):
    """Data and noise that all levels share."""

    x0s: Float[Array, "sample dim"]
    zs: Float[Array, "sample dim"]


class Calibrated(AbstractGaussianStepper):
    r"""The kernel of `Ancestral` with the variance that costs least: the posterior's, plus what the data are still uncertain by.

    $v_0 w/v_1 + (\alpha_0 w/v_1)^2\,e^{-\lambda_1} e(\lambda_1)/d$ from the noisier time $t_1$ to $t_0$; it adapts to the step's length.
    The error $e$ is read between the levels of a `DenoisingProfile` by straight lines.

    Reference:
        F. Bao et al., Analytic-DPM, arXiv:2201.06503 (2022).
    """

    profile: DenoisingProfile
    """The error of the score, from `denoising_profile`."""
    normals: ClassVar[int] = 1
    clock: ClassVar[float] = 0.0

    def reversal(self):
        raise TypeError("`stepper` must have a reversal by the same kernels, got Calibrated.")

    def check(self, dynamics, ts, x0s):
        return Ancestral().check(dynamics, ts, x0s)

    def increment(self, dynamics: Any, t0, t1, x0):
        mean, spread = Ancestral().increment(dynamics, t0, t1, x0)
        early, late = (dynamics.forward.log_snr(dynamics.horizon - t) for t in (t1, t0))
        error = jnp.interp(-late, -self.profile.log_snr, self.profile.errors)
        return mean, spread * jnp.sqrt(1.0 + jnp.expm1(early - late) * error / self.profile.dim)

    def __call__(self, dynamics, t0, t1, x0, zs):
        mean, spread = self.increment(dynamics, t0, t1, x0)
        return x0 + mean + spread * zs[0]


def denoising_profile(
    score: Score,
    noising: AbstractNoising,
    data: Gaussian | GaussianMixture | ArrayLike,
    *,
    start: ArrayLike = 0.0,
    horizon: ArrayLike = 1.0,
    levels: int = 257,
    samples: int | None = None,
    key: Key | None = None,
) -> DenoisingProfile:
    """The error of a score at equally spaced noise levels.

    Args:
        score: ``score(t, x)``, learned or exact.
        noising: The noising process.
        data: The density of the data, or configurations, shape ``(sample, dim)``.
        start: Earliest time, at which there is noise.
        horizon: Latest time.
        levels: Number of levels, both ends included.
        samples: Configurations to draw from a density. If omitted, quadrature, in one dimension only.
        key: Random key, for configurations and samples. All levels share the noise, so that the profile is smooth.

    Raises:
        ValueError: if the log signal-to-noise ratio is not finite at both ends, or samples or a key are missing.
    """
    require(levels >= 2, "levels", "be at least 2", levels)
    mixture, draws = drawn(data, samples, key)
    if draws is not None:
        score, noising, mixture = cast((score, noising, mixture), draws.x0s.dtype)
        start, horizon = (as_float(t).astype(draws.x0s.dtype) for t in (start, horizon))
    start, horizon, ends = level_ends(noising, start, horizon)
    return _denoising_profile(score, noising, mixture, draws, start, horizon, jnp.linspace(ends[0], ends[1], levels))


def step_costs(profile: DenoisingProfile, *, variance: str = "posterior") -> Float[Array, " step"]:
    """What each step between neighbouring levels costs given the datum, in nats: the terms of `kernel_terms`.

    Args:
        profile: The error of the score at the times of the grid.
        variance: "posterior" for the steps of `Ancestral`, or "optimal" for those of `Calibrated`.
    """
    check_variance(variance)
    return costs(profile.log_snr, profile.errors, profile.dim, variance)


def length_grid(profile: DenoisingProfile, steps: int, *, variance: str = "posterior") -> Float[Array, " time"]:
    r"""Times between which the length $\int\sqrt{e - de/d\lambda}\,d\lambda$ is equal: the grid of least cost when there are many steps.

    Args:
        profile: The error of the score; its noise, where it makes the bracket negative, counts as zero.
        steps: Number of intervals.
        variance: "posterior" or "optimal", which subtracts $e^2/d$ in the bracket.

    Returns:
        Increasing times, shape ``(steps + 1,)``.
    """
    check_variance(variance)
    return _spaced(profile, denoising_length(profile, variance=variance), steps)


def denoising_length(profile: DenoisingProfile, *, variance: str = "posterior") -> Float[Array, " level"]:
    r"""The length from the cleanest level to every other, $L$ at the last: $N$ steps cost $L^2/4N$ beyond the integral, for large $N$.

    See `length_grid` for the arguments.
    """
    check_variance(variance)
    levels, errors = profile.log_snr, profile.errors
    widths, middle = levels[:-1] - levels[1:], 0.5 * (errors[1:] + errors[:-1])
    squares = widths**2 * middle + widths * (errors[1:] - errors[:-1])
    if variance == "optimal":
        squares = squares - widths**2 * middle**2 / profile.dim
    return jnp.concatenate([jnp.zeros_like(levels[:1]), jnp.cumsum(jnp.sqrt(jnp.maximum(squares, 0.0)))])


def entropic_grid(profile: DenoisingProfile, steps: int) -> Float[Array, " time"]:
    r"""Times between which the denoising loss $\tfrac12\int e\,d\lambda$ is equal, in nats.

    With the exact score these are equal amounts of mutual information of datum and noised datum: every step reveals as much.

    Args:
        profile: The error of the score.
        steps: Number of intervals.

    Returns:
        Increasing times, shape ``(steps + 1,)``.
    """
    middle = 0.5 * (profile.errors[1:] + profile.errors[:-1])
    nats = 0.5 * jnp.cumsum(middle * (profile.log_snr[:-1] - profile.log_snr[1:]))
    return _spaced(profile, jnp.concatenate([jnp.zeros_like(nats[:1]), nats]), steps)


def dynamic_grid(profile: DenoisingProfile, steps: int, *, variance: str = "posterior", refinements: int = 4) -> Float[Array, " time"]:
    """The cheapest grid, ends included, by dynamic programming.

    The cost is a sum over steps, so on the levels of the profile this is the global optimum. Then the same is done again among places
    between them, in windows that follow what was found until it stays, each time half as wide. The time it takes grows with the steps
    and with the square of the levels.

    Args:
        profile: The error of the score at the candidates; between them it is read from a cubic.
        steps: Number of intervals, fewer than levels.
        variance: "posterior" or "optimal".
        refinements: How often to look between the levels; zero for times that are all levels of the profile.

    Returns:
        Increasing times, shape ``(steps + 1,)``.
    """
    check_variance(variance)
    count = profile.ts.shape[0] - 1
    require(1 <= steps <= count, "steps", f"be at least 1 and at most {count}, the intervals of the profile", steps)
    require(refinements >= 0, "refinements", "be at least 0", refinements)
    places = _cheapest(profile, steps, variance)
    return _refined(profile, places, variance, refinements) if refinements else profile.ts[places]


def check_variance(variance: str) -> None:
    """Raise unless `variance` is one of the two choices."""
    require(variance in VARIANCES, "variance", "be 'posterior' or 'optimal'", repr(variance))


def drawn(
    data: Gaussian | GaussianMixture | ArrayLike, samples: int | None, key: Key | None
) -> tuple[GaussianMixture | None, Draws | None]:
    """The density of the data if it is known, and draws unless averages are taken by quadrature."""
    if isinstance(data, Gaussian | GaussianMixture):
        check_method(data, samples, key)
        mixture = as_mixture(data)
        if samples is None or key is None:
            return mixture, None
        data_key, noise_key = jr.split(key)
        xs = mixture.sample(samples, key=data_key)
        return mixture, Draws(xs, jr.normal(noise_key, xs.shape, xs.dtype))
    xs = check_configurations(data)
    require(samples is None, "samples", "be omitted for configurations, which are all used", samples)
    require(key is not None, "key", "be given with configurations", key)
    assert key is not None
    return None, Draws(xs, jr.normal(key, xs.shape, xs.dtype))


def noise_error(
    score: Score, noising: AbstractNoising, mixture: GaussianMixture | None, draws: Draws | None, t: Scalar
) -> tuple[Scalar, Scalar]:
    """The error of the predicted noise at one time, and its standard error."""
    alpha, v = noising.alpha(t), noising.variance(t)
    if draws is not None:
        missed = jax.vmap(lambda x, z: jnp.sum((z + jnp.sqrt(v) * score(t, alpha * x + jnp.sqrt(v) * z)) ** 2))(*draws)
        missed = steadied(missed, draws.zs)
        return jnp.mean(missed), jnp.std(missed) / jnp.sqrt(missed.shape[0])
    assert mixture is not None
    density = noising.marginal(mixture, t)
    xs, weights = points(density, None, None)
    wrong = jax.vmap(lambda x: v * jnp.sum((score(t, x) - density.score(x)) ** 2))(xs)
    left = jax.vmap(lambda x: posterior_variance(noising, mixture, t, x))(xs)
    return average(wrong + alpha**2 / v * left, weights, None)


def posterior_variance(noising: AbstractNoising, mixture: GaussianMixture, t: Scalar, x: Float[Array, "1"]) -> Scalar:
    """The variance of the datum given the noised datum, on the line: within the components, and between them."""
    alpha, v = noising.alpha(t), noising.variance(t)
    means, variances = mixture.means[:, 0], mixture.covariances.ravel()
    spreads = alpha**2 * variances + v
    away = x[0] - alpha * means
    shares = jax.nn.softmax(jnp.log(mixture.weights) - 0.5 * (away**2 / spreads + jnp.log(spreads)))
    places = means + alpha * variances / spreads * away
    return shares @ (variances * v / spreads) + shares @ (places - shares @ places) ** 2


def costs(levels, errors, dim, variance):
    """The cost of each step between neighbours of the falling `levels`."""
    return _cost(levels[:-1] - levels[1:], errors[1:], dim, variance)


def _cost(drops, errors, dim, variance):
    growth = jnp.expm1(drops) * errors
    return 0.5 * growth if variance == "posterior" else 0.5 * dim * jnp.log1p(growth / dim)


@eqx.filter_jit
def _denoising_profile(score, noising, mixture, draws, start, horizon, levels):
    ts = times_at(noising, levels, start, horizon)
    errors, stderrs = lax.map(lambda t: noise_error(score, noising, mixture, draws, t), ts)
    dim = draws.x0s.shape[1] if mixture is None else mixture.means.shape[1]
    return DenoisingProfile(ts, levels, errors, stderrs, jnp.asarray(dim, levels.dtype))


@eqx.filter_jit
def _cheapest(profile, steps, variance) -> Int[Array, " time"]:
    levels, count = profile.log_snr, profile.log_snr.shape[0]
    # From row to column: only towards more noise.
    drops = jnp.maximum(levels[:, None] - levels[None], 0.0)
    errors = jnp.broadcast_to(profile.errors[None], drops.shape)
    rows = jnp.arange(count)
    table = jnp.where(rows[:, None] < rows[None], _cost(drops, errors, profile.dim, variance), jnp.inf)

    def step(best, _):
        through = best[:, None] + table
        return jnp.min(through, axis=0), jnp.argmin(through, axis=0)

    first = jnp.where(rows == 0, 0.0, jnp.full_like(levels, jnp.inf))
    _, origins = lax.scan(step, first, length=steps)

    def back(place, origin):
        return origin[place], origin[place]

    last = jnp.asarray(count - 1)
    _, places = lax.scan(back, last, origins, reverse=True)
    return jnp.concatenate([places, last[None]])


@eqx.filter_jit
def _refined(profile, places, variance, rounds):
    """Times between the levels: the best path through windows around each place, by dynamic programming."""
    offsets = jnp.linspace(-1.0, 1.0, _WINDOW, dtype=profile.ts.dtype)
    last = profile.ts.shape[0] - 1
    ends = (places == 0) | (places == last)
    # Levels and times are never to turn round; errors may.
    falling, rising = ((a, monotone_slopes(jnp.diff(a))) for a in (profile.log_snr, profile.ts))
    uneven = profile.errors, jnp.asarray(jnp.gradient(profile.errors))

    def zoom(places, width):
        moved = places[:, None] + jnp.where(ends[:, None], 0.0, width * offsets[None])
        moved = jnp.clip(moved, 0.0, float(last))
        levels, errors = (jax.vmap(jax.vmap(lambda u, a=a: _between(a[0], a[1], u)))(moved) for a in (falling, uneven))

        def step(best, inputs):
            before, after, error = inputs
            drops = before[:, None] - after[None]
            found = _cost(jnp.maximum(drops, 0.0), jnp.broadcast_to(error[None], drops.shape), profile.dim, variance)
            through = best[:, None] + jnp.where(drops > 0, found, jnp.inf)
            return jnp.min(through, axis=0), jnp.argmin(through, axis=0)

        best, origins = lax.scan(step, jnp.zeros_like(offsets), (levels[:-1], levels[1:], errors[1:]))
        back = lambda row, origin: (origin[row], origin[row])
        final = jnp.argmin(best)
        _, rows = lax.scan(back, final, origins, reverse=True)
        rows = jnp.concatenate([rows, final[None]])
        return jnp.take_along_axis(moved, rows[:, None], axis=1)[:, 0]

    def settle(places, width):
        """Windows follow what was found until it stays: all times may have to move by more than a window."""
        moving = lambda state: state[1] & (state[2] < _ROUNDS)

        def follow(state):
            found = zoom(state[0], width)
            return found, jnp.any(found != state[0]), state[2] + 1

        return lax.while_loop(moving, follow, (places, jnp.asarray(True), 0))[0], None

    widths = 0.5 ** jnp.arange(rounds, dtype=profile.ts.dtype)
    places, _ = lax.scan(settle, places.astype(profile.ts.dtype), widths)
    return jax.vmap(lambda u: _between(rising[0], rising[1], u))(places)


def _between(values, slopes, place):
    """The cubic through equally spaced values, with slopes per interval, at a place in units of the spacing."""
    k = jnp.clip(jnp.floor(place).astype(int), 0, values.shape[0] - 2)
    return cubic(values, slopes, k, place - k.astype(place.dtype))


def _spaced(profile, distances, steps):
    """Times at equal steps of a distance that grows along the profile."""
    require(steps >= 1, "steps", "be at least 1", steps)
    distances = ensure(distances, distances[-1] > 0, "profile", "have errors above zero", profile.errors)
    inner = jnp.interp(distances[-1] * jnp.arange(1, steps, dtype=distances.dtype) / steps, distances, profile.ts)
    return jnp.concatenate([profile.ts[:1], inner, profile.ts[-1:]])
