r"""Noise schedules that models in use were trained with, schedules of one's own, and what to do where one is singular.

All are linear noising processes, $x_t \mid x_0 \sim N(\alpha(t)\,x_0, v(t))$, and so differ only in the pair $(\alpha, v)$. With the log
signal-to-noise ratio $\lambda = \ln(\alpha^2/v)$ the drift is $x\,d\ln\alpha/dt$ and the noise $\sigma^2 = -v\,d\lambda/dt$. Time runs from
data to noise.
"""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, cast, Scalar
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.dynamics._noising import AbstractNoising, preserving_step


class SubVariancePreserving(AbstractNoising):
    r"""The drift of `VariancePreserving` with less noise: $v = (1 - e^{-\int b})^2$ and $\sigma^2 = b\,(1 - e^{-2\int b})$.

    Reference:
        Y. Song et al., arXiv:2011.13456 (2021), the sub-VP process.
    """

    start: Scalar = eqx.field(converter=as_scalar, default=0.1)
    """$b$ at time 0."""
    stop: Scalar = eqx.field(converter=as_scalar, default=20.0)
    """$b$ at time 1."""

    def __check_init__(self):
        check_positive(self.start, "start")
        check_positive(self.stop, "stop")

    def drift(self, t, x):
        return -0.5 * self._rate(t) * x

    def noise(self, t):
        return jnp.sqrt(-self._rate(t) * jnp.expm1(4.0 * self.log_alpha(t)))

    def log_alpha(self, t):
        return -0.5 * t * (self.start + 0.5 * (self.stop - self.start) * t)

    def variance(self, t):
        return jnp.expm1(2.0 * self.log_alpha(t)) ** 2

    def transition(self, t0, t1):
        early, late = self.log_alpha(t0), self.log_alpha(t1)
        return jnp.exp(late - early), jnp.expm1(2.0 * (late - early)) * jnp.expm1(2.0 * (late + early))

    def _rate(self, t):
        return self.start + (self.stop - self.start) * t


class Elucidated(AbstractNoising):
    r"""$dx = \sqrt{2t}\,dW$: time is the standard deviation of the noise, and the data do not shrink.

    Usual ends are 0.002 and 80 for data of unit size. For another $\sigma(t)$ see `Schedule`.

    Reference:
        T. Karras et al., Elucidating the design space of diffusion-based generative models, arXiv:2206.00364 (2022).
    """

    def drift(self, t, x):
        del t
        return jnp.zeros_like(x)

    def noise(self, t):
        return jnp.sqrt(2.0 * t)

    def log_alpha(self, t):
        return jnp.zeros_like(t)

    def variance(self, t):
        return t**2

    def transition(self, t0, t1):
        return jnp.ones_like(t0), (t1 - t0) * (t1 + t0)


class Cosine(AbstractNoising):
    r"""The trigonometric interpolant $x_t = \cos(\tfrac{\pi}{2}t)\,x_0 + \sin(\tfrac{\pi}{2}t)\,z$; it preserves variance.

    Nothing of the data is left at $t = 1$, where the drift is infinite: see `cut_ends`.
    """

    def drift(self, t, x):
        return -0.5 * jnp.pi * jnp.sin(0.5 * jnp.pi * t) / self.alpha(t) * x

    def noise(self, t):
        return jnp.sqrt(jnp.pi * jnp.sin(0.5 * jnp.pi * t) / self.alpha(t))

    def alpha(self, t):
        # The sine of the time that is left keeps the digits of a small factor, and is zero at t = 1.
        return jnp.sin(0.5 * jnp.pi * (1.0 - t))

    def log_alpha(self, t):
        return jnp.log(self.alpha(t))

    def variance(self, t):
        return jnp.sin(0.5 * jnp.pi * t) ** 2

    def transition(self, t0, t1):
        added = jnp.sin(0.5 * jnp.pi * (t1 - t0)) * jnp.sin(0.5 * jnp.pi * (t1 + t0))
        return self.alpha(t1) / self.alpha(t0), added / self.alpha(t0) ** 2


class Interpolant(AbstractNoising):
    r"""The straight interpolant $x_t = (1 - t)\,x_0 + t\,z$ of flow matching and rectified flow, as a process.

    Its $\sigma^2 = 2t/(1 - t)$. Nothing of the data is left at $t = 1$, where drift and noise are infinite: see `cut_ends`.

    Reference:
        Y. Lipman et al., Flow matching for generative modeling, arXiv:2210.02747 (2023).
    """

    def drift(self, t, x):
        return -x / (1.0 - t)

    def noise(self, t):
        return jnp.sqrt(2.0 * t / (1.0 - t))

    def alpha(self, t):
        return 1.0 - t

    def log_alpha(self, t):
        return jnp.log1p(-t)

    def variance(self, t):
        return t**2

    def transition(self, t0, t1):
        step, left = t1 - t0, 1.0 - t0
        return 1.0 - step / left, step * (t1 + t0 - 2.0 * t0 * t1) / left**2


class Tabulated(AbstractNoising):
    r"""A variance-preserving process through a table of $\bar\alpha_k = \alpha^2(k)$, $k = 1 \dots N$, as a discrete model has it.

    $\bar\alpha(0) = 1$, and $\ln\bar\alpha$ is linear in time between the integers. Steps of length one are the noising steps of the model.

    Reference:
        J. Ho, A. Jain, P. Abbeel, arXiv:2006.11239 (2020).
    """

    log_alpha_bars: Float[Array, " level"]
    r"""$\ln\bar\alpha_k$."""

    def __init__(self, alpha_bars: ArrayLike | list | tuple):
        # The logarithm is taken in the precision of the table: its first entries are close to one.
        xp = library_of(alpha_bars)
        table = xp.asarray(alpha_bars, float)
        require(table.ndim == 1 and table.size > 0, "alpha_bars", "be a vector", f"shape {table.shape}")
        falling = xp.concatenate([xp.ones_like(table[:1]), table[:-1]]) - table
        table = ensure(table, (table > 0) & (falling > 0), "alpha_bars", "fall strictly from below one, and stay above zero", table)
        self.log_alpha_bars = jnp.asarray(xp.log(table), float)

    @classmethod
    def from_betas(cls, betas: ArrayLike | list | tuple) -> "Tabulated":
        r"""The table of $\bar\alpha_k = \prod_{j \le k}(1 - \beta_j)$.

        Raises:
            ValueError: if a $\beta$ is not between zero and one.
        """
        xp = library_of(betas)
        table = xp.asarray(betas, float)
        return cls(xp.cumprod(1.0 - ensure(table, (table > 0) & (table < 1), "betas", "be between zero and one", table)))

    def drift(self, t, x):
        return -0.5 * self._rate(t) * x

    def noise(self, t):
        return jnp.sqrt(self._rate(t))

    def log_alpha(self, t):
        share, before, after = self._around(t)
        return 0.5 * ((1.0 - share) * before + share * after)

    def variance(self, t):
        return -jnp.expm1(2.0 * self.log_alpha(t))

    def transition(self, t0, t1):
        return preserving_step(self, t0, t1)

    def _rate(self, t):
        _, before, after = self._around(t)
        return before - after

    def _around(self, t):
        """The share of the interval that ends at or after `t` that has passed, and the logarithms at its ends."""
        last = jnp.clip(jnp.ceil(t).astype(int), 1, self.log_alpha_bars.shape[0])
        logs = jnp.concatenate([jnp.zeros_like(self.log_alpha_bars[:1]), self.log_alpha_bars])
        return t - (last - 1).astype(t.dtype), logs[last - 1], logs[last]


class Schedule(AbstractNoising):
    r"""The process of any two functions of time, $\ln\alpha(t)$ and $\lambda(t) = \ln(\alpha^2/v)$; the rest is differentiation.

    ``Schedule(lambda t: 0.0, lambda t: -2 * jnp.log(sigma(t)))`` has the noise level $\sigma(t)$ and does not shrink the data. Functions
    that are modules with array leaves can be trained.
    """

    log_scale: Callable[[Array], ArrayLike]
    r"""$\ln\alpha(t)$."""
    log_ratio: Callable[[Array], ArrayLike]
    r"""$\lambda(t)$, which falls."""

    def drift(self, t, x):
        return jax.grad(self.log_alpha)(t) * x

    def noise(self, t):
        return jnp.sqrt(-jax.grad(self.log_snr)(t) * self.variance(t))

    def log_alpha(self, t):
        return jnp.asarray(self.log_scale(t), t.dtype)

    def log_snr(self, t):
        return jnp.asarray(self.log_ratio(t), t.dtype)

    def variance(self, t):
        return jnp.exp(2.0 * self.log_alpha(t) - self.log_snr(t))


class Ends(NamedTuple):
    """An interval of time in which a process is regular, from `cut_ends`."""

    start: Scalar
    """The earliest time."""
    horizon: Scalar
    """The latest time."""
    notes: tuple[str, ...]
    """A sentence for each end that was moved."""


def cut_ends(noising: AbstractNoising, start: ArrayLike, horizon: ArrayLike, *, log_snr: tuple[float, float] = (-18.0, 18.0)) -> Ends:
    """The interval from `start` to `horizon` without the ends at which `noising` is singular.

    An end is moved where the process has no noise, keeps nothing of the data, or has no finite drift and noise: inwards, to the first time,
    in the precision of `start` and `horizon`, at which the log signal-to-noise ratio is within its limit. Any other end stays as it is,
    whatever its ratio.

    Args:
        noising: The process, with known numbers: this is done outside `jax.jit`.
        start: Earliest time.
        horizon: Latest time.
        log_snr: The limits, for a `horizon` and for a `start` that are moved.

    Raises:
        ValueError: if no interval is left, or the process is singular inside it, or its log signal-to-noise ratio rises.
    """
    low, high = log_snr
    require(low < high, "log_snr", "be a lower and an upper limit", log_snr)
    dtype = jnp.result_type(start, horizon)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
    process = cast(noising, dtype)
    first, last = np.asarray(start, dtype), np.asarray(horizon, dtype)
    require(first.ndim == 0 and last.ndim == 0, "start", "be one number, like `horizon`", f"shapes {first.shape} and {last.shape}")
    require(bool(first < last) and bool(np.isfinite(last - first)), "horizon", f"be a finite time later than `start` = {first}", last)
    examine = ft.partial(_examine, process, last - first)
    ts = _between(first, last)
    faults, levels = examine(ts)
    _check_falls(ts, levels)
    good = (faults == 0) & (low <= levels) & (levels <= high)
    if faults[0] or faults[-1]:
        rule = f"have log signal-to-noise ratios from {low} to {high} between t = {first} and t = {last}"
        require(bool(good.any()), "noising", rule, "none")
    inner, notes = ts[good], []
    if faults[0]:
        first, level = _edge(examine, ts[0], inner[0], lambda levels: levels > high)
        notes.append(_note(faults[0], ts[0], first, level))
    if faults[-1]:
        last, level = _edge(examine, ts[-1], inner[-1], lambda levels: levels < low)
        notes.append(_note(faults[-1], ts[-1], last, level))
    require(bool(first < last), "noising", "be regular in an interval of time", f"one that is regular at t = {first} only")
    ts = _between(first, last)
    faults, levels = examine(ts)
    _check_falls(ts, levels)
    rule = "have noise, data, and finite drift inside its interval"
    places = np.append(np.flatnonzero(faults), 0)
    require(not bool(faults.any()), "noising", rule, f"one that {_FAULTS[faults[places[0]]]} at t = {ts[places[0]]:g}")
    return Ends(jnp.asarray(first), jnp.asarray(last), tuple(notes))


# What can be wrong at a time; zero is nothing.
_FAULTS = ("", "has no noise", "keeps nothing of the data", "has no finite drift and noise")
# Where an interval is looked at: evenly, and closer and closer to its ends.
_HALVES = 0.5 ** np.arange(7.0, 40.0)
_SHARES = np.concatenate([[0.0], _HALVES[::-1], np.linspace(0.0, 1.0, 65)[1:-1], 1.0 - _HALVES, [1.0]])


def _between(first, last):
    inner = first + _SHARES[1:-1].astype(first.dtype) * (last - first)
    return np.concatenate([[first], np.minimum(np.maximum(inner, np.minimum(first, last)), np.maximum(first, last)), [last]])


@eqx.filter_jit
def _read(noising, ts):
    def read(t):
        rate = noising.drift(t, jnp.ones(1, t.dtype))[0]
        return noising.alpha(t), noising.variance(t), noising.log_snr(t), rate, noising.noise(t)

    return jax.vmap(read)(ts)


def _examine(noising, duration, ts):
    """What is wrong at each time, and the log signal-to-noise ratio."""
    alphas, variances, levels, rates, noises = (np.asarray(a) for a in _read(noising, jnp.asarray(ts)))
    # A rate that moves everything within the rounding of the time is that of a singularity missed by rounding.
    fast = np.abs(rates) * duration * np.finfo(ts.dtype).eps > 1.0
    wild = fast | ~(np.isfinite(levels) & np.isfinite(rates) & np.isfinite(noises))
    return np.select([variances <= 0, alphas <= 0, wild], [1, 2, 3], 0), levels


def _edge(examine, outer, inner, beyond):
    """The time closest to `outer` that is regular and not `beyond` the limit, and its level; `inner` is such a time."""
    while True:
        ts = _between(outer, inner)
        faults, levels = examine(ts)
        # Both ends of the bracket are known, whatever rounding makes of their levels in another place of the batch.
        far = (faults > 0) | beyond(levels)
        last = int(np.flatnonzero(np.append(True, far[1:-1]))[-1])
        if {ts[last], ts[last + 1]} == {outer, inner}:
            return inner, levels[-1]
        outer, inner = ts[last], ts[last + 1]


def _note(fault, end, moved, level):
    place = f"it was cut by {abs(moved - end):.2g} to t = {moved:.7g}"
    return f"The schedule {_FAULTS[fault]} at t = {end:g}; {place}, where the log signal-to-noise ratio is {level:.4g}."


def _check_falls(ts, levels):
    ts, levels = ts[np.isfinite(levels)], levels[np.isfinite(levels)]
    # Neighbours may differ by rounding alone.
    rises = np.diff(levels) > 100 * np.finfo(ts.dtype).eps * (1.0 + np.abs(levels[1:]))
    place = int(np.argmax(rises)) if rises.any() else 0
    found = [f"{levels[k]:.4g} at t = {ts[k]:g}" for k in ((place, place + 1) if rises.any() else (0, -1)) if len(ts)]
    falls = not rises.any() and (len(ts) == 0 or levels[-1] < levels[0])
    require(bool(falls), "noising", "have a log signal-to-noise ratio that falls with time", " and ".join(found))
