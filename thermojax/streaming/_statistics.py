r"""Statistics that can be merged: of a block of values, compiled, on the device that has them; of several blocks, on the host.

A block is summed in the precision of the simulation; blocks are merged in double precision, so that $10^9$ samples of single precision lose
nothing. Values that are not finite are left out and counted.
"""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, PyTree

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.estimators import Estimate, summarise

# Samples that the verdict on an exponential average looks at, at least; groups of its jackknife.
_SHOWN, _GROUPS = 2**16, 20


class AbstractStatistic(eqx.Module):
    """A statistic of many values; as made by the user it has seen none, and `data` is None."""

    data: eqx.AbstractVar[Any]
    """What was seen: a dictionary of arrays, all that there is to store."""

    @abc.abstractmethod
    def of(self, values: Any, valid: Bool[Array, " sample"], shown: int) -> dict[str, Array]:
        """The data of one block, compiled: of those of its `values` that are `valid`; `shown` of them may be kept as they are."""

    @abc.abstractmethod
    def merge(self, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
        """The data of both, in NumPy."""

    def seen(self, data: dict[str, Any] | None) -> "AbstractStatistic":
        """This statistic with these data in place of what it has seen."""
        return eqx.tree_at(lambda s: s.data, self, data, is_leaf=lambda leaf: leaf is None or leaf is self.data)

    def _known(self) -> dict[str, Any]:
        require(self.data is not None, "statistic", "have seen values; `stream` returns one that has", "one that has not")
        return self.data


class Moments(AbstractStatistic):
    """Mean, variance, skewness and excess kurtosis.

    Reference:
        P. Pébay, Sandia Report SAND2008-6212 (2008), eqs. (2.1) to (3.1), for the merging.
    """

    paired: bool = eqx.field(static=True, default=False)
    """Whether the second half of a block is the mirror image of the first, as with ``noise="antithetic"``: the samples are then the
    means of pairs."""
    data: Any = None

    def of(self, values, valid, shown):
        if self.paired:
            half = values.shape[0] // 2
            values, valid = 0.5 * (values[:half] + values[half:]), valid[:half] & valid[half:]
        good = valid & jnp.isfinite(values)
        count = jnp.sum(good)
        mean = jnp.sum(jnp.where(good, values, 0.0)) / jnp.maximum(count, 1).astype(values.dtype)
        gaps = jnp.where(good, values - mean, 0.0)
        powers = {f"power{k}": jnp.sum(gaps**k) for k in (2, 3, 4)}
        return {"count": count, "excluded": jnp.sum(valid) - count, "mean": mean, **powers}

    def merge(self, first, second):
        if not second["count"] or not first["count"]:
            one, other = (first, second) if first["count"] else (second, first)
            return one | {"excluded": one["excluded"] + other["excluded"]}
        a, b = float(first["count"]), float(second["count"])
        n, gap = a + b, second["mean"] - first["mean"]
        p2, p3, p4 = zip(*((d["power2"], d["power3"], d["power4"]) for d in (first, second)), strict=True)
        return {
            "count": first["count"] + second["count"],
            "excluded": first["excluded"] + second["excluded"],
            "mean": first["mean"] + gap * b / n,
            "power2": p2[0] + p2[1] + gap**2 * a * b / n,
            "power3": p3[0] + p3[1] + gap**3 * a * b * (a - b) / n**2 + 3 * gap * (a * p2[1] - b * p2[0]) / n,
            "power4": p4[0]
            + p4[1]
            + gap**4 * a * b * (a**2 - a * b + b**2) / n**3
            + 6 * gap**2 * (a**2 * p2[1] + b**2 * p2[0]) / n**2
            + 4 * gap * (a * p3[1] - b * p3[0]) / n,
        }

    @property
    def variance(self) -> float:
        """Variance of one sample (of the mean of a pair, if paired)."""
        data = self._known()
        return float(data["power2"] / max(data["count"] - 1, 1))

    @property
    def skewness(self) -> float:
        """Third cumulant over the third power of the standard deviation."""
        data = self._known()
        return float(np.sqrt(data["count"]) * data["power3"] / data["power2"] ** 1.5)

    @property
    def kurtosis(self) -> float:
        """Excess kurtosis, zero for a Gaussian."""
        data = self._known()
        return float(data["count"] * data["power4"] / data["power2"] ** 2 - 3.0)

    def estimate(self) -> Estimate:
        """The mean; trustworthy if it rests on at least 30 samples, no sample was left out, and its error bar is known to a fifth."""
        data = self._known()
        count = float(data["count"])
        stderr = np.sqrt(self.variance / max(count, 1.0)) if count > 1 else np.nan
        # The relative error of a variance is sqrt((kurtosis + 2)/n), that of its root half as much.
        known = count >= 30 and (data["power2"] == 0 or (self.kurtosis + 2) / count <= 0.16)
        sound = np.asarray(bool(known and data["excluded"] == 0))
        return _estimate(data["mean"] if count else np.nan, stderr, count, sound, count, data["excluded"])


class Exponential(AbstractStatistic):
    r"""The exponential average $\langle e^{-\beta v}\rangle$ of values $v$, with its health."""

    beta: Scalar = eqx.field(converter=as_scalar, default=1.0)
    r"""Inverse temperature of the bath if the values are work; one for log-ratios."""
    paired: bool = eqx.field(static=True, default=False)
    """As for `Moments`: the samples are then the mean weights of pairs."""
    data: Any = None

    def __check_init__(self):
        check_positive(self.beta, "beta")

    def of(self, values, valid, shown):
        logs = -self.beta.astype(values.dtype) * values
        if self.paired:
            half = values.shape[0] // 2
            logs, valid = jnp.logaddexp(logs[:half], logs[half:]) - jnp.log(2.0).astype(values.dtype), valid[:half] & valid[half:]
        good = valid & jnp.isfinite(logs)
        count = jnp.sum(good)
        log_mean = logsumexp(jnp.where(good, logs, -jnp.inf)) - jnp.log(jnp.maximum(count, 1).astype(values.dtype))
        weights = jnp.where(good, jnp.exp(logs - log_mean), 0.0)
        gaps = jnp.where(good, weights - 1.0, 0.0)
        group = jnp.arange(logs.shape[0]) % _GROUPS
        total = lambda what: jax.ops.segment_sum(what, group, _GROUPS)
        return {
            "count": count,
            "excluded": jnp.sum(valid) - count,
            "log_mean": log_mean,
            "power2": jnp.sum(gaps**2),
            "power3": jnp.sum(gaps**3),
            "group_logs": jnp.log(total(weights)) + log_mean,
            "group_counts": total(good.astype(jnp.int32)),
            "shown": jnp.where(good, logs, jnp.nan)[:shown],
        }

    def merge(self, first, second):
        shown = np.concatenate([first["shown"], second["shown"]])
        sums = {name: first[name] + second[name] for name in ("count", "excluded", "group_counts")}
        if not second["count"] or not first["count"]:
            one = first if first["count"] else second
            return one | sums | {"shown": shown}
        a, b = float(first["count"]), float(second["count"])
        log_mean = np.logaddexp(first["log_mean"] + np.log(a), second["log_mean"] + np.log(b)) - np.log(a + b)
        # Weights in units of the common mean, then as for moments.
        scales = [np.exp(d["log_mean"] - log_mean) for d in (first, second)]
        p2, p3 = ([d[name] * s**k for d, s in zip((first, second), scales, strict=True)] for name, k in (("power2", 2), ("power3", 3)))
        n, gap = a + b, scales[1] - scales[0]
        return sums | {
            "log_mean": log_mean,
            "power2": p2[0] + p2[1] + gap**2 * a * b / n,
            "power3": p3[0] + p3[1] + gap**3 * a * b * (a - b) / n**2 + 3 * gap * (a * p2[1] - b * p2[0]) / n,
            "group_logs": np.logaddexp(first["group_logs"], second["group_logs"]),
            "shown": shown,
        }

    def _health(self):
        data = self._known()
        tops = np.exp(data["group_logs"] - data["log_mean"])
        used = data["group_counts"] > 0
        groups = jnp.asarray(tops[used], float), jnp.asarray(data["group_counts"][used], float)
        shown = data["shown"][np.isfinite(data["shown"])] - data["log_mean"]
        health = summarise(data["count"], data["excluded"], data["power2"], data["power3"], groups, jnp.asarray(shown, float))
        # The sums of many samples are known in double precision.
        count = float(data["count"])
        return count, np.sqrt(data["power2"]) / count, count**2 / (data["power2"] + count), health

    def estimate(self) -> Estimate:
        r"""The exponential average: one for the log-ratio of two path measures, $Z_\tau/Z_0$ for the reduced work."""
        count, stderr, ess, health = self._health()
        value = np.exp(self._known()["log_mean"])
        return _estimate(value, value * stderr, ess, health.sound(), count, self._known()["excluded"], health.tail_index)

    def free_energy(self) -> Estimate:
        r"""$-\beta^{-1}\ln\langle e^{-\beta v}\rangle$: the free-energy difference by Jarzynski's equality if the values are work."""
        count, stderr, ess, health = self._health()
        beta = float(self.beta)
        value = -self._known()["log_mean"] / beta
        return _estimate(value, stderr / beta, ess, health.sound(), count, self._known()["excluded"], health.tail_index)


class Histogram(AbstractStatistic):
    r"""How many values fall between edges; with weights, their sums, and quantiles to the width of a bin.

    If `weighted`, values are pairs $(v, \ln w)$.
    """

    edges: Float[Array, " edge"] = eqx.field(converter=as_float)
    """Edges of the bins, increasing; two more bins hold what is below and above. A value on an edge belongs to the bin above it."""
    weighted: bool = eqx.field(static=True, default=False)
    data: Any = None

    def __check_init__(self):
        require(self.edges.ndim == 1 and self.edges.shape[0] >= 2, "edges", "be a vector of at least two", f"shape {self.edges.shape}")
        ensure(self.edges, library_of(self.edges).diff(self.edges) > 0, "edges", "increase strictly", self.edges)

    def of(self, values, valid, shown):
        values, logs = values if self.weighted else (values, jnp.zeros_like(values))
        good = valid & ~jnp.isnan(values) & (logs < jnp.inf)
        bins = self.edges.shape[0] + 1
        # Values left out go to a bin of their own.
        places = jnp.where(good, jnp.searchsorted(self.edges.astype(values.dtype), values, side="right"), bins)
        total = lambda what: jax.ops.segment_sum(what, places, bins + 1)[:bins]
        data = {"counts": total(jnp.ones_like(places)), "excluded": jnp.sum(valid) - jnp.sum(good)}
        if not self.weighted:
            return data
        top = jnp.max(jnp.where(good, logs, -jnp.inf))
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        weights = jnp.where(good, jnp.exp(logs - top), 0.0)
        return data | {"log_weights": jnp.log(total(weights)) + top, "log_squares": jnp.log(total(weights**2)) + 2 * top}

    def merge(self, first, second):
        logs = ("log_weights", "log_squares") if self.weighted else ()
        sums = {name: first[name] + second[name] for name in ("counts", "excluded")}
        return sums | {name: np.logaddexp(first[name], second[name]) for name in logs}

    def _masses(self):
        """Weights of the bins in units of their sum, and the sums of their squares."""
        data = self._known()
        if not self.weighted:
            total = max(int(data["counts"].sum()), 1)
            return data["counts"] / total, data["counts"] / total**2
        total = np.logaddexp.reduce(data["log_weights"])
        return np.exp(data["log_weights"] - total), np.exp(data["log_squares"] - 2 * total)

    @property
    def probabilities(self) -> np.ndarray:
        """Share of each bin, the two outer ones included."""
        return self._masses()[0]

    def density(self) -> np.ndarray:
        """Probability density in each bin between the edges."""
        return self._masses()[0][1:-1] / np.diff(np.asarray(self.edges, float))

    def density_error(self) -> np.ndarray:
        """Standard error of `density`."""
        masses, squares = self._masses()
        return np.sqrt(_variances(masses, squares))[1:-1] / np.diff(np.asarray(self.edges, float))

    def quantile(self, level: float) -> Estimate:
        """The value below which a share `level` of the weight lies, by linear interpolation in its bin.

        The error bar is the statistical one; the interpolation is right to a fraction of the bin.

        Raises:
            ValueError: if it lies outside the edges.
        """
        require(0 < level < 1, "level", "lie between 0 and 1", level)
        masses, squares = self._masses()
        edges = np.asarray(self.edges, float)
        below = np.cumsum(masses)[:-1]
        inside = f"be between the shares of the weight below the first and the last edge, {below[0]:.3g} and {below[-1]:.3g}"
        require(bool(below[0] <= level < below[-1]), "level", inside, level)
        k = int(np.searchsorted(below, level, side="right"))
        share = (level - below[k - 1]) / masses[k]
        width = edges[k] - edges[k - 1]
        # Var of the weight below minus level times all the weight, over the density squared (delta method of a ratio).
        lower, total = squares[:k].sum() + share * squares[k], squares.sum()
        spread = np.sqrt((1 - level) ** 2 * lower + level**2 * (total - lower))
        ess, data = 1.0 / total, self._known()
        sound = np.asarray(bool(ess * min(level, 1 - level) >= 30 and data["excluded"] == 0))
        value = edges[k - 1] + share * width
        return _estimate(value, spread * width / masses[k], ess, sound, data["counts"].sum(), data["excluded"])


class Keep(AbstractStatistic):
    """The values themselves, of any shape, in the order of the trajectories; memory grows with their number."""

    data: Any = None

    def of(self, values, valid, shown):
        return {"values": values, "valid": valid}

    def merge(self, first, second):
        return {name: np.concatenate([first[name], second[name]]) for name in first}

    @property
    def values(self) -> np.ndarray:
        """All values, shape ``(sample, ...)``."""
        return self._known()["values"][self._known()["valid"]]


def arrays_of(statistics: PyTree[AbstractStatistic]) -> dict[str, np.ndarray]:
    """All that the statistics have seen, as named arrays to store."""
    return {f"{name}.{part}": np.asarray(a) for name, s in _named(statistics) for part, a in s._known().items()}


def with_arrays(statistics: PyTree[AbstractStatistic], arrays: Mapping[str, np.ndarray]) -> PyTree[AbstractStatistic]:
    """The statistics with what `arrays_of` others has seen added to what they have seen."""
    data_of = lambda name: {key.rpartition(".")[2]: a for key, a in arrays.items() if key.rpartition(".")[0] == name}
    add = lambda name, s: s.seen(data_of(name) if s.data is None else s.merge(s.data, data_of(name)))
    structure = jax.tree.structure(statistics, is_leaf=lambda node: isinstance(node, AbstractStatistic))
    return jax.tree.unflatten(structure, [add(name, s) for name, s in _named(statistics)])


def _named(statistics):
    is_statistic = lambda node: isinstance(node, AbstractStatistic)
    leaves = jax.tree_util.tree_leaves_with_path(statistics, is_leaf=is_statistic)
    return [(jax.tree_util.keystr(path, simple=True, separator=".") or "statistic", leaf) for path, leaf in leaves]


def widened(data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sums of a block as they are merged, in double precision; values that are kept stay as they are."""
    wide = lambda a: a.astype(np.float64 if np.issubdtype(a.dtype, np.floating) else np.int64)
    return {name: a if name in ("values", "valid") else wide(a) for name, a in data.items()}


def shown_of(blocks: int, size: int) -> int:
    """How many values of each block an exponential average may keep, so that in all they are enough."""
    return min(size, -(-_SHOWN // blocks))


def _variances(masses, squares):
    """Variances of shares: of the weight of a bin over that of all."""
    return (1 - masses) ** 2 * squares + masses**2 * (squares.sum() - squares)


def _estimate(value, stderr, ess, sound, count, excluded, tail_index=None):
    value, stderr, ess = (np.asarray(a, np.float64) for a in (value, stderr, ess))
    numbers: Any = (value, stderr, ess, sound, np.asarray(count), np.asarray(excluded), tail_index)
    return Estimate(*numbers)
