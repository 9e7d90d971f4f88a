r"""Time grids that are known by name, and clocks: where a sampler of few steps puts its times.

Every process that is linear in the data reads the same noise levels, $\lambda = \ln(\alpha^2/v)$, so that a grid of one process means the
same for any other: it is a list of levels, taken back to times by root finding. Between the levels $\lambda_0$ of `start` and $\lambda_N$
of `horizon` the named grids are equally spaced in

- "linear": the time itself, the only one that depends on the clock of the process;
- "log-snr": $\lambda$, the grid of `log_snr_grid`;
- "cosine": the angle $\arctan e^{-\lambda/2}$ between data and noise, as equal times of the process `Cosine` between the same levels are;
- "edm": $s^{1/\rho}$ of the noise $s = \sqrt v/\alpha = e^{-\lambda/2}$ per unit of data, with $\rho = 7$. The grid ends at `start`: the
  step to no noise at all, which that sampler adds, is left to whoever decodes.

Moving times and moving the schedule are the same thing. A `Clock` is a schedule of time that can be trained, and `reclocked` the process
that keeps it: equal steps of the new time are the steps of a grid of the old one, at the same cost.

References:
    A. Nichol, P. Dhariwal, arXiv:2102.09672 (2021), for the cosine; T. Karras et al., arXiv:2206.00364 (2022), for the powers.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, ArrayLike, Float, Int

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, check_times, ensure, require
from thermojax.dynamics import AbstractNoising, Schedule

_NAMES = ("linear", "log-snr", "cosine", "edm")


class Clock(eqx.Module):
    r"""A clock that can be trained: times that rise from `start` to `horizon` while $s$ goes from 0 to 1.

    The time is a cubic between equally spaced $s$, with slopes that keep it increasing whatever the logits: once continuously
    differentiable, of order three in the number of intervals. Train `logits` alone to leave the ends where they are.

    Reference:
        F. N. Fritsch, R. E. Carlson, SIAM J. Numer. Anal. 17, 238 (1980), for the slopes.
    """

    logits: Float[Array, " interval"] = eqx.field(converter=as_float)
    """Logarithms of the durations of the intervals, up to a constant."""
    start: Scalar = eqx.field(converter=as_scalar, default=0.0)
    """The time at $s = 0$."""
    horizon: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """The time at $s = 1$."""

    def __check_init__(self):
        require(self.logits.ndim == 1 and self.logits.size > 0, "logits", "be a vector", f"shape {self.logits.shape}")
        check_positive(self.horizon - self.start, "horizon - start")

    @classmethod
    def through(cls, ts: ArrayLike) -> "Clock":
        """The clock that shows the increasing times `ts` at equal steps.

        Raises:
            ValueError: if the times do not increase.
        """
        ts = check_times(ts, float)
        return cls(jnp.log(jnp.diff(ts)), ts[0], ts[-1])

    def times(self) -> Float[Array, " time"]:
        """The times between the intervals."""
        shares = jnp.cumsum(jax.nn.softmax(self.logits))[:-1]
        inner = self.start + (self.horizon - self.start) * shares
        return jnp.concatenate([self.start[None], inner, self.horizon[None]])

    def __call__(self, s: Scalar) -> Scalar:
        """The time at `s` between 0 and 1."""
        count = self.logits.shape[0]
        knots, place = self.times(), s * count
        k = jnp.clip(jnp.floor(place).astype(int), 0, count - 1)
        return cubic(knots, monotone_slopes(jnp.diff(knots)), k, place - k.astype(place.dtype))


class Chained(eqx.Module):
    """One function of time after another."""

    first: Callable[[Array], Array]
    """What is applied first."""
    second: Callable[[Array], Array]
    """What is applied to the result."""

    def __call__(self, t: Scalar) -> Scalar:
        """The second function of the first."""
        return self.second(self.first(t))


def reclocked(noising: AbstractNoising, clock: Callable[[Array], Array]) -> Schedule:
    """The process `noising` at the time that `clock` shows: the same densities, at another speed.

    Args:
        noising: The noising process.
        clock: Increasing and differentiable, a `Clock` or any other; its leaves can be trained.
    """
    return Schedule(Chained(clock, noising.log_alpha), Chained(clock, noising.log_snr))


def named_grid(
    name: str, noising: AbstractNoising, start: ArrayLike, horizon: ArrayLike, steps: int, *, rho: ArrayLike = 7.0
) -> Float[Array, " time"]:
    """Increasing times from `start` to `horizon`, equally spaced in the coordinate of that name.

    Args:
        name: "linear", "log-snr", "cosine" or "edm"; see the module for what each means for an arbitrary process.
        noising: The noising process.
        start: Earliest time, at which there is noise.
        horizon: Latest time, at which something of the data is left.
        steps: Number of steps, one less than that of the times.
        rho: The power of "edm".

    Raises:
        ValueError: if the name is unknown, or the log signal-to-noise ratio is not finite at both ends.
    """
    require(name in _NAMES, "name", f"be one of {', '.join(map(repr, _NAMES))}", repr(name))
    require(steps >= 1, "steps", "be at least 1", steps)
    start, horizon, ends = level_ends(noising, start, horizon)
    shares = jnp.linspace(0.0, 1.0, steps + 1, dtype=start.dtype)
    if name == "linear":
        return start + (horizon - start) * shares
    return times_at(noising, _levels(name, ends, shares, check_positive(as_scalar(rho), "rho")), start, horizon)


def level_ends(noising: AbstractNoising, start: ArrayLike, horizon: ArrayLike) -> tuple[Scalar, Scalar, Float[Array, "2"]]:
    """Both ends as numbers, and their log signal-to-noise ratios, which are finite and fall."""
    start, horizon = as_scalar(start), as_scalar(horizon)
    start, horizon = (t.astype(jnp.result_type(start, horizon)) for t in (start, horizon))
    ends = jnp.stack([noising.log_snr(start), noising.log_snr(horizon)])
    good = jnp.isfinite(ends) & (ends[0] > ends[1])
    return start, horizon, ensure(ends, good, "start", "have a finite log signal-to-noise ratio, above that of `horizon`", ends)


@eqx.filter_jit
def times_at(noising: AbstractNoising, levels: Float[Array, " time"], start: Scalar, horizon: Scalar) -> Float[Array, " time"]:
    """The times at which the log signal-to-noise ratio has these falling values, the first and the last at the ends.

    Differentiable: the times move with the levels, and with the process.
    """
    precision = 4.0 * float(jnp.finfo(levels.dtype).eps)
    search = optx.Bisection(rtol=precision, atol=precision)

    def find(level):
        excess = lambda t, args: args[0].log_snr(t) - args[1]
        options = {"lower": start, "upper": horizon}
        middle = 0.5 * (start + horizon)
        return optx.root_find(excess, search, middle, (noising, level), options=options, max_steps=100, throw=False).value

    return jnp.concatenate([start[None], jax.vmap(find)(levels[1:-1]), horizon[None]])


def cubic(values: Float[Array, " knot"], slopes: Float[Array, " knot"], k: Int[Array, ""], share: Scalar) -> Scalar:
    """The cubic with these values and slopes, per interval, at the ends of interval `k`, when a `share` of it has passed."""
    rest = 1.0 - share
    return (
        values[k] * rest**2 * (1.0 + 2.0 * share)
        + slopes[k] * share * rest**2
        + values[k + 1] * share**2 * (1.0 + 2.0 * rest)
        - slopes[k + 1] * share**2 * rest
    )


def monotone_slopes(rises: Float[Array, " interval"]) -> Float[Array, " knot"]:
    """Slopes at the knots per interval, by harmonic means: never more than twice the smaller neighbour, so that cubics are monotone."""
    if rises.shape[0] == 1:
        return jnp.concatenate([rises, rises])
    both = rises[1:] + rises[:-1]
    inner = 2.0 * rises[1:] * rises[:-1] / jnp.where(both == 0, 1.0, both)
    return jnp.concatenate([1.5 * rises[:1] - 0.5 * inner[:1], inner, 1.5 * rises[-1:] - 0.5 * inner[-1:]])


@eqx.filter_jit
def _levels(name, ends, shares, rho):
    if name == "log-snr":
        return ends[0] + (ends[1] - ends[0]) * shares
    noises = jnp.exp(-0.5 * ends)
    if name == "cosine":
        first, last = jnp.arctan(noises[0]), jnp.arctan(noises[1])
        return -2.0 * jnp.log(jnp.tan(first + (last - first) * shares))
    first, last = noises[0] ** (1.0 / rho), noises[1] ** (1.0 / rho)
    return -2.0 * rho * jnp.log(first + (last - first) * shares)
