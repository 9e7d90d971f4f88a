r"""Objectives: what is to be small, as statistics of an ensemble or of a density.

All read weighted statistics of `Paths`, so that one definition serves every kind of gradient. Signs and discretisation are those of
`functionals`; work is in units of energy, log-ratios and entropies in nats, and the error of a free energy is that of $\beta\,\Delta F$.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import require
from thermojax.distributions import AbstractDistribution
from thermojax.dynamics import Escorted
from thermojax.ensemble import Functional
from thermojax.fokker_planck import generating_function, work_moments
from thermojax.functionals import (
    BackwardRatio,
    GirsanovRatio,
    heat,
    log_ratio,
    medium_entropy,
    path_log_ratio,
    reduced_work,
    system_entropy,
    total_reduced_work,
    work,
)
from thermojax.optimize._paths import Flow, Paths
from thermojax.optimize._statistics import flat, log_average, log_determinant

ESTIMATORS = ("jarzynski", "reverse", "bar")


class AbstractObjective(eqx.Module):
    """A number to be small, of an ensemble of paths or of a density that evolves.

    Objectives add up and may be multiplied by numbers: ``Mean(work) + 20.0 * ErrorRate(lambda x: x[0], 0.1)``.
    """

    # NumPy's numbers leave the product to us.
    __array_ufunc__: ClassVar[None] = None

    def functionals(self, dynamics: Any) -> Any:
        """The functionals of a step whose sums along each path it needs, in any structure."""
        return ()

    @abc.abstractmethod
    def of_paths(self, paths: Paths) -> Scalar:
        """Its value on an ensemble."""

    def of_density(self, flow: Flow) -> Scalar:
        """Its value on a density.

        Raises:
            ValueError: if it is not a property of a density.
        """
        raise no_density(type(self).__name__)

    @property
    def smooth(self) -> bool:
        """Whether it has a derivative in the places that the paths visit."""
        return True

    def split(self) -> tuple[tuple["AbstractObjective", ...], Float[Array, " term"]]:
        """The terms whose weighted sum it is."""
        return (self,), jnp.ones(1)

    def __add__(self, other: "AbstractObjective") -> "Weighted":
        (first, weights), (second, others) = self.split(), other.split()
        return Weighted(first + second, jnp.concatenate([weights, others]))

    def __mul__(self, factor: Any) -> "Weighted":
        terms, weights = self.split()
        return Weighted(terms, as_scalar(factor) * weights)

    __rmul__ = __mul__


class Weighted(AbstractObjective):
    """A weighted sum of objectives; also what ``+`` and ``*`` make."""

    terms: tuple[AbstractObjective, ...]
    """What is added up."""
    weights: Float[Array, " term"] = eqx.field(converter=as_float)
    """What each term counts: numbers like any other, so that a trade-off can be swept without compiling again."""

    def __check_init__(self):
        _check_objectives(self.terms)
        require(self.weights.shape == (len(self.terms),), "weights", f"have shape ({len(self.terms)},)", f"shape {self.weights.shape}")

    @property
    def smooth(self):
        return all(term.smooth for term in self.terms)

    def functionals(self, dynamics):
        return tuple(term.functionals(dynamics) for term in self.terms)

    def of_paths(self, paths):
        pairs = zip(self.terms, paths.sums, strict=True)
        return self._sum([term.of_paths(paths._replace(sums=sums)) for term, sums in pairs])

    def of_density(self, flow):
        return self._sum([term.of_density(flow) for term in self.terms])

    def split(self):
        return self.terms, self.weights

    def _sum(self, values):
        values = jnp.stack(values)
        return jnp.sum(self.weights.astype(values.dtype) * values)


class Mean(AbstractObjective):
    r"""The mean of a functional: `work`, `heat`, `escorted_work`, a `GirsanovRatio`, …; never of a Stratonovich or Itô sum of the work.

    On a density: of `work`, `heat`, `reduced_work` and `medium_entropy`, and of a `GirsanovRatio`, the path Kullback-Leibler divergence
    $\int\langle|b - b'|^2\rangle/2\sigma^2\,dt$.
    """

    functional: Functional
    """What is summed along each path; see `thermojax.functionals`."""

    def functionals(self, dynamics):
        return _fitting(self.functional, dynamics)

    def of_paths(self, paths):
        return paths.average(paths.sums)

    def of_density(self, flow):
        if isinstance(self.functional, GirsanovRatio):
            return _path_divergence(flow, self.functional.other)
        for functional in (work, heat, reduced_work, medium_entropy):
            if self.functional is functional:
                value = getattr(flow.energetics, functional.__name__)
                rule = "return one beta for all coordinates, for the reduced work"
                require(value is not None, "bath", rule, "several")
                return value
        raise no_density(f"Mean({_name(self.functional)})")


class Variance(AbstractObjective):
    """The variance of a functional; on a density, of `work` and `reduced_work`."""

    functional: Functional
    """What is summed along each path."""

    def functionals(self, dynamics):
        return _fitting(self.functional, dynamics)

    def of_paths(self, paths):
        away = paths.sums - paths.average(paths.sums)
        return paths.unbiased * paths.average(away**2)

    def of_density(self, flow):
        for functional, quantity in ((work, "work"), (reduced_work, "reduced work")):
            if self.functional is functional:
                return work_moments(flow.dynamics, flow.initial, flow.grid, flow.ts, quantity=quantity, tolerance=flow.tolerance)[1]
        raise no_density(f"Variance({_name(self.functional)})")


class LogRatio(AbstractObjective):
    r"""The mean log-ratio of the path measure to its reversal, $\langle\ell\rangle = \mathrm{KL}(P\|Q) \ge 0$ at every step size.

    $Q$ starts from `final`, $P$ from the density of the loss. With equilibrium densities at both ends it is the dissipated reduced work,
    shadow work included.
    """

    final: AbstractDistribution | Callable[[Any], Array]
    """Density of the last configuration under the backward measure: a distribution, or its logarithm."""

    def functionals(self, dynamics):
        return log_ratio

    def of_paths(self, paths):
        return paths.average(path_log_ratio(paths.initial, self.final, paths.x0s, paths.x1s, paths.sums))

    def of_density(self, flow):
        # KL(P||Q) is the entropy production and what the last density lacks to be that from which Q starts.
        return flow.energetics.entropy_production + flow.final_divergence(self.final)


class EntropyProduction(AbstractObjective):
    r"""The mean total entropy production $\langle\Delta s_\text{tot}\rangle$, between several baths and in a changing one too.

    On a density it is exact. On paths the unknown density at the end is replaced by the Gaussian of the same mean and covariance: that is
    the Kullback-Leibler divergence of the paths from a reversal that starts there. It is exact if the last density is Gaussian, and an
    upper bound otherwise. The Gaussian is fitted to the same n paths, which must be more than the dimensions. It fits them too well: the
    mean is too small by $O(\text{dim}^2/n)$, by $\text{dim}(\text{dim} + 1)/4n$ if the last density is Gaussian, and in a small batch it
    may be negative. The first density may have any shape.
    """

    def functionals(self, dynamics):
        return log_ratio

    def of_paths(self, paths):
        count, dim = flat(paths.x1s).shape
        require(count > dim, "samples", f"be more than the dimensions of a state, {dim}, for a covariance with a logarithm", count)
        _, covariance = paths.final_moments()
        entropy = 0.5 * (log_determinant(covariance) + dim * (1.0 + jnp.log(2.0 * jnp.pi)))
        nothing = lambda x: jnp.zeros((), covariance.dtype)
        return entropy + paths.average(system_entropy(paths.initial, nothing, paths.x0s, paths.x1s) + paths.sums)

    def of_density(self, flow):
        return flow.energetics.entropy_production


class FreeEnergyError(AbstractObjective):
    r"""The variance that an estimate of $\beta\,\Delta F$ from n paths would have, times n, to first order in 1/n.

    All from forward paths, the backward ones by Crooks' relation: with the total reduced work $Y$ and $\Delta = -\ln\langle
    e^{-Y}\rangle$ it is $\langle e^{-2(Y-\Delta)}\rangle - 1$ for Jarzynski's estimate, $\langle e^{Y-\Delta}\rangle - 1$ for the same
    from reversed paths, and $1/A - 2$ with $A = \langle 1/(1 + e^{Y-\Delta})\rangle$ for Bennett's with n paths in each direction. Paths
    must start in equilibrium. For `Escorted` dynamics $Y$ is the escorted work.

    Reference:
        C. H. Bennett, J. Comput. Phys. 22, 245 (1976). C. Jarzynski, Phys. Rev. E 73, 046105 (2006).
    """

    estimator: str = eqx.field(static=True, default="jarzynski")
    """``"jarzynski"``, ``"reverse"`` or ``"bar"``."""

    def __check_init__(self):
        require(self.estimator in ESTIMATORS, "estimator", f"be one of {', '.join(ESTIMATORS)}", self.estimator)

    def functionals(self, dynamics):
        return total_reduced_work

    def of_paths(self, paths):
        works, log_weights = paths.sums, paths.log_weights
        delta = -log_average(-works, log_weights)
        if self.estimator == "jarzynski":
            return jnp.expm1(log_average(-2.0 * works, log_weights) + 2.0 * delta)
        if self.estimator == "reverse":
            return jnp.expm1(log_average(works, log_weights) - delta)
        # The Fermi function of a work in the far tail underflows to its exponential, never to an overflow.
        return 1.0 / paths.average(jnp.exp(-jnp.logaddexp(0.0, works - delta))) - 2.0

    def of_density(self, flow):
        if self.estimator == "bar":
            raise no_density("FreeEnergyError('bar')")
        exponents = jnp.asarray([-1.0, -2.0 if self.estimator == "jarzynski" else 1.0], flow.ts.dtype)
        options = {"quantity": "reduced work", "tolerance": flow.tolerance}
        first, second = generating_function(flow.dynamics, flow.initial, flow.grid, flow.ts, exponents, **options)
        return second / first**2 - 1.0 if self.estimator == "jarzynski" else second * first - 1.0


class Duration(AbstractObjective):
    """How long the process takes; something to weigh against its cost where the loss has a `clock`."""

    def of_paths(self, paths):
        return paths.duration

    def of_density(self, flow):
        return flow.duration


def no_density(name: str) -> ValueError:
    """What to say of an objective that a density does not know."""
    return ValueError(
        "`objective` must be a property of a density for `FokkerPlanck`: the `Mean` of work, heat, reduced_work, medium_entropy or a "
        "`GirsanovRatio`, the `Variance` of work or reduced_work, `LogRatio`, `EntropyProduction`, `FreeEnergyError` of 'jarzynski' or "
        f"'reverse', `Duration`, or one of the last density; `MonteCarlo` has the others, got {name}."
    )


def leaves_of(objective: AbstractObjective) -> list[AbstractObjective]:
    """The objectives that a sum is made of, sums of sums included."""
    if not isinstance(objective, Weighted):
        return [objective]
    return [leaf for term in objective.terms for leaf in leaves_of(term)]


def is_path_divergence(objective: AbstractObjective) -> bool:
    """Whether it is the divergence from a path measure that does not depend on the model."""
    return isinstance(objective, Mean) and isinstance(objective.functional, GirsanovRatio | BackwardRatio)


def _check_objectives(terms):
    require(len(terms) >= 1, "terms", "hold at least one objective", "none")
    for term in terms:
        if not isinstance(term, AbstractObjective):
            raise TypeError(f"`terms` must be objectives, got {type(term).__name__}.")


def _fitting(functional, dynamics):
    """`functional`, if it has a meaning for these dynamics."""
    wrong = isinstance(dynamics, Escorted) and functional in (work, heat, reduced_work, medium_entropy)
    rule = "be `escorted_work` or `log_ratio` for `Escorted` dynamics, whose escort is not a force"
    require(not wrong, "functional", rule, _name(functional))
    return functional


def _path_divergence(flow, other):
    """The path divergence, with the mean of the densities at both ends of each step and the coefficients in its middle."""
    ts, grid, dynamics = flow.ts, flow.grid, flow.dynamics
    densities, middles = flow.evolution.densities, 0.5 * (ts[:-1] + ts[1:])
    places = grid.centres.reshape(-1, grid.dim)

    def rate(t, p):
        gap = lambda x: jnp.sum(((dynamics.drift(t, x) - other.drift(t, x)) / dynamics.noise(t)) ** 2)
        return 0.5 * grid.integrate(p * jax.vmap(gap)(places).reshape(grid.cells))

    return jnp.sum(jnp.diff(ts) * jax.vmap(rate)(middles, 0.5 * (densities[:-1] + densities[1:])))


def _name(functional):
    return getattr(functional, "__name__", type(functional).__name__)
