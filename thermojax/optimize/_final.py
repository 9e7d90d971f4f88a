"""Objectives of the state at the end: how far it is from what was wanted.

None of them looks at the model other than through the last density, so that they are legal terminal costs of stochastic control.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from thermojax import exact
from thermojax._array import as_float, as_scalar
from thermojax._check import check_positive, require
from thermojax.distributions import AbstractDistribution
from thermojax.optimize._objectives import AbstractObjective
from thermojax.optimize._statistics import check_dimension, flat, full, gaussian_divergence, gaussian_moments, line_transport
from thermojax.phase import check_configurations


class AbstractFinal(AbstractObjective):
    """An objective of the density at the end alone."""


class FinalMean(AbstractFinal):
    r"""The mean of a cost of the last state, $\langle g(x_\tau)\rangle$."""

    cost: Callable[[Any], Array]
    """$g$, of one state."""

    def of_paths(self, paths):
        return paths.average(_each(self.cost, paths.x1s, "cost"))

    def of_density(self, flow):
        return flow.average(_over_cells(self.cost, flow, "cost"))


class ErrorRate(AbstractFinal):
    r"""The probability that a logical operation fails: that the last state is not where it should be.

    With a width $w$ a failure counts $1/(1 + e^{g/w})$, which has a derivative; without one it is the true rate, whose derivative the
    paths do not know.
    """

    inside: Callable[[Any], Array]
    """$g(x)$, positive where the state is right."""
    width: Array | None = eqx.field(converter=lambda width: _as_width(width), default=None)
    """How smoothly a failure counts, in units of $g$; zero (a Python number) or None for the true rate."""

    def __check_init__(self):
        if self.width is not None:
            check_positive(self.width, "width")

    @property
    def smooth(self):
        return self.width is not None

    def of_paths(self, paths):
        return paths.average(self._failed(_each(self.inside, paths.x1s, "inside")))

    def of_density(self, flow):
        return flow.average(self._failed(_over_cells(self.inside, flow, "inside")))

    def _failed(self, places):
        if self.width is None:
            return jnp.where(places > 0, 0.0, 1.0).astype(places.dtype)
        return jax.nn.sigmoid(-places / self.width)


class FinalMoments(AbstractFinal):
    r"""The squared distance of the last mean, and covariance matrix, from what they should be: $|m - \bar m|^2 + \|C - \bar C\|_F^2$.

    A `Phase` counts as its position followed by its velocity. From n paths it is too large by the variance of the moments, $O(1/n)$.
    """

    mean: Array = eqx.field(converter=as_float)
    """The mean wanted, shape ``(dim,)``."""
    covariance: Array | None = eqx.field(converter=lambda value: None if value is None else as_float(value), default=None)
    """The covariance wanted: one variance, one each, or a matrix; any if omitted."""

    def __check_init__(self):
        require(self.mean.ndim == 1, "mean", "have shape (dim,)", f"shape {self.mean.shape}")
        if self.covariance is not None:
            dim = self.mean.shape[0]
            allowed = ((), (dim,), (dim, dim))
            require(self.covariance.shape in allowed, "covariance", f"have one of the shapes {allowed}", f"shape {self.covariance.shape}")

    def of_paths(self, paths):
        return self._distance(*paths.final_moments())

    def of_density(self, flow):
        return self._distance(*flow.final_moments())

    def _distance(self, mean, covariance):
        require(mean.shape == self.mean.shape, "mean", f"have the shape of a state, {mean.shape}", f"shape {self.mean.shape}")
        distance = jnp.sum((mean - self.mean) ** 2)
        if self.covariance is None:
            return distance
        return distance + jnp.sum((covariance - full(self.covariance, mean.shape[0])) ** 2)


class FinalKL(AbstractFinal):
    r"""The Kullback-Leibler divergence $\mathrm{KL}(p_\tau\|q)$ of the last density from a target.

    On a density it is exact, for any target. On paths it is that of the Gaussian with their moments, from a Gaussian target: a lower
    bound, exact if the last density is Gaussian.
    """

    target: AbstractDistribution
    """$q$."""

    def of_paths(self, paths):
        wanted = gaussian_moments(self.target)
        if wanted is None:
            name = type(self.target).__name__
            raise TypeError(f"`target` must be Gaussian for paths, whose density is unknown; use `FokkerPlanck`, got {name}.")
        mean, covariance = paths.final_moments()
        check_dimension(self.target, mean.shape[0])
        return gaussian_divergence(mean, covariance, *wanted)

    def of_density(self, flow):
        check_dimension(self.target, flow.grid.dim)
        return flow.final_divergence(self.target)


class FinalWasserstein(AbstractFinal):
    r"""The squared Wasserstein distance $W_2^2$ of the last density from a target.

    On the line it is $\int[x(u) - q(u)]^2du$ with the quantile functions, for any target; from n paths it is too large by the distance of
    n samples from their density. In more dimensions it is the distance of the Gaussians with the same moments (Gelbrich's lower bound),
    exact if both are Gaussian.

    Reference:
        M. Gelbrich, Math. Nachr. 147, 185 (1990).
    """

    target: AbstractDistribution | Array = eqx.field(converter=lambda target: _as_target(target))
    """The density wanted, or samples of it, shape ``(sample, dim)``."""

    def of_paths(self, paths):
        points = flat(paths.x1s)
        check_dimension(self.target, points.shape[1])
        if points.shape[1] == 1:
            return line_transport(points[:, 0], paths.shares, self.target)
        return self._of_moments(*paths.final_moments())

    def of_density(self, flow):
        check_dimension(self.target, flow.grid.dim)
        if flow.grid.dim == 1:
            return line_transport(flow.grid.lines[0], flow.final.density * flow.grid.volume, self.target)
        return self._of_moments(*flow.final_moments())

    def _of_moments(self, mean, covariance):
        if isinstance(self.target, AbstractDistribution):
            wanted = gaussian_moments(self.target)
            if wanted is None:
                name = type(self.target).__name__
                raise TypeError(f"`target` must be Gaussian, or samples, in more than one dimension, got {name}.")
        else:
            wanted = jnp.mean(self.target, axis=0), jnp.cov(self.target, rowvar=False)
        return exact.gaussian_transport(mean, covariance, *wanted)


def _as_width(width):
    """The width, or None for zero: whether there is a derivative must be known before the paths run."""
    known_zero = isinstance(width, int | float) and width == 0
    return None if width is None or known_zero else as_scalar(width)


def _as_target(target):
    return target if isinstance(target, AbstractDistribution) else check_configurations(target, "target")


def _each(function, xs, name):
    values = jax.vmap(function)(xs)
    require(jnp.ndim(values) == 1, name, "return one number", f"shape {jnp.shape(values)[1:]}")
    return values


def _over_cells(function, flow, name):
    return _each(function, flow.grid.centres.reshape(-1, flow.grid.dim), name).reshape(flow.grid.cells)
