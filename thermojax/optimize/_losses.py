r"""Losses: an objective of a dynamics, on an ensemble with fresh noise or on a density without any.

What is optimised is any leaf of the dynamics: its protocol, bath, escort, potential, or a drift. With ``clock`` the duration is one of
them.

Three gradients of a Monte Carlo loss, all of the same value:

- ``"pathwise"`` differentiates through the simulation, noise held fixed. It needs objectives that are smooth in the paths, and is
  mostly the least noisy.
- ``"likelihood-ratio"`` holds the paths fixed and differentiates their density, $\ln p_\theta = \sum_k\ln K_k(x_{k+1}|x_k)$, and what the
  objective itself has of $\theta$. Every objective has it. Each path weighs $e^{\ln p_\theta}$, and statistics are normalised by the
  weights: of a mean the gradient is the covariance with the score,
  $\frac{1}{n-1}\sum_i(a_i - \bar a)\,\partial_\theta\ln p_\theta$, without bias and with the mean of the batch as baseline.
- ``"log-variance"`` is for path divergences from a fixed measure $Q$, with costs of the last state: it is the gradient of
  $\tfrac12\mathrm{Var}\,\ln dP_\theta/dQ$ over fixed paths, which is the likelihood-ratio gradient without a term whose mean is zero. It
  vanishes on every batch where the optimum is reached.

The work is the discrete one in Crooks' order, and the log-ratio is that of the kernels: both are exact for the steps that are simulated, so
no optimiser gains by exploiting them. (The Itô sum of the work has no such bound: never optimise it.)

References:
    J. P. C. Kleijnen, R. Y. Rubinstein, Eur. J. Oper. Res. 88, 413 (1996), for the likelihood-ratio gradient.
    N. Nüsken, L. Richter, Partial Differ. Equ. Appl. 2, 48 (2021), for the log-variance.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax._array import as_float, cast, Scalar
from thermojax._check import check_times, ensure, require
from thermojax.distributions import AbstractDistribution, centre_of, sample_in_pairs
from thermojax.dynamics import Underdamped
from thermojax.ensemble import accumulate, Functional, NOISES, Step
from thermojax.fokker_planck import Grid
from thermojax.optimize._final import AbstractFinal
from thermojax.optimize._objectives import AbstractObjective, is_path_divergence, leaves_of, Weighted
from thermojax.optimize._paths import Flow, Paths
from thermojax.phase import position_of
from thermojax.steppers import AbstractStepper, log_density, with_density

GRADIENTS = ("pathwise", "likelihood-ratio", "log-variance")
Initial = AbstractDistribution | Callable[[Any], AbstractDistribution]


class AbstractLoss(eqx.Module):
    """An objective as a function of the dynamics and a random key, as `fit` takes it."""

    objective: eqx.AbstractVar[AbstractObjective]

    def __call__(self, dynamics: Any, key: Key | None = None) -> Scalar:
        """The objective."""
        values, (_, weights) = self.terms(dynamics, key), self.objective.split()
        return jnp.sum(weights.astype(values.dtype) * values)

    @abc.abstractmethod
    def terms(self, dynamics: Any, key: Key | None = None) -> Float[Array, " term"]:
        """The terms of the objective without their weights; one number if it is not a sum."""


class MonteCarlo(AbstractLoss):
    """An objective of an ensemble, drawn anew for every key.

    Raises:
        TypeError, ValueError: if the gradient asked for does not exist for this objective or this stepper, or shapes or times have no
            meaning.
    """

    objective: AbstractObjective
    """What is to be small."""
    initial: Initial
    """Where the paths start: a density, or a function of the dynamics that returns one, so that the start moves with the model."""
    ts: Float[Array, " time"] = eqx.field(converter=as_float)
    """Time grid; with a `clock`, shares of the duration from zero to one."""
    samples: int = eqx.field(static=True, default=1000)
    """Number of paths."""
    stepper: AbstractStepper | None = eqx.field(default=None, kw_only=True)
    """One-step kernel, as in `ensemble.accumulate`."""
    segments: int = eqx.field(static=True, default=1, kw_only=True)
    """See `ensemble.accumulate`."""
    gradient: str = eqx.field(static=True, default="pathwise", kw_only=True)
    """``"pathwise"``, ``"likelihood-ratio"`` or ``"log-variance"``."""
    clock: Callable[[Any], Array] | None = eqx.field(default=None, kw_only=True)
    """The duration as a function of the dynamics, ``lambda dynamics: dynamics.protocol.duration``; fixed if omitted."""
    noise: str = eqx.field(static=True, default="independent", kw_only=True)
    """``"independent"``, or ``"antithetic"``: the second half of the paths sees minus the noise of the first, and starts from the mirror
    image if the first density is Gaussian. Means of odd functions lose their noise; `FinalMoments` and `Variance` are then biased by
    O(1/n). For pathwise gradients only."""
    batches: int = eqx.field(static=True, default=1, kw_only=True)
    """The loss is the average over that many ensembles, one after the other, in the memory of one."""
    devices: tuple[Any, ...] | None = eqx.field(static=True, default=None, kw_only=True)
    """Devices that share the `batches` evenly and average values and gradients; if omitted, one does all of it. The ensembles are the same
    on any number of devices, their averages to rounding."""

    def __check_init__(self):
        _check_objective(self.objective)
        check_grid(self.ts, self.clock)
        require(self.samples >= 2, "samples", "be at least 2", self.samples)
        require(self.batches >= 1, "batches", "be at least 1", self.batches)
        if self.devices is not None:
            count = len(self.devices)
            require(count >= 1 and self.batches % count == 0, "batches", f"be a multiple of the number of devices, {count}", self.batches)
        require(self.gradient in GRADIENTS, "gradient", f"be one of {', '.join(GRADIENTS)}", repr(self.gradient))
        require(self.noise in NOISES, "noise", f"be one of {', '.join(NOISES)}", repr(self.noise))
        # The mean of the batch, their baseline, would know the noise of a path from its mirror image: a bias.
        rule = f"be 'independent' for {self.gradient} gradients, which need paths that know nothing of each other"
        require(self.noise == "independent" or self.gradient == "pathwise", "noise", rule, repr(self.noise))
        require(self.noise != "antithetic" or self.samples % 2 == 0, "samples", "be even for antithetic noise", self.samples)
        if self.gradient != "pathwise" and self.stepper is not None:
            with_density(self.stepper)
        for leaf in leaves_of(self.objective):
            rule = (
                "have a derivative along the paths for pathwise gradients; give it a width, or take gradient='likelihood-ratio' or "
                "`FokkerPlanck`"
            )
            require(leaf.smooth or self.gradient != "pathwise", "objective", rule, type(leaf).__name__)
        if self.gradient == "log-variance":
            self._check_log_variance()

    def terms(self, dynamics, key=None):
        if key is None:
            raise TypeError("`key` must be a random key for `MonteCarlo`, got None.")
        if self.gradient != "pathwise":
            rule = "be first order in time for this gradient, since a step in phase space has no density; take 'pathwise'"
            require(not isinstance(dynamics, Underdamped), "dynamics", rule, type(dynamics).__name__)
        return _terms(self, dynamics, key)

    def _check_log_variance(self):
        leaves = leaves_of(self.objective)
        rule = (
            "be a divergence from a fixed path measure, `Mean(GirsanovRatio(…))` or `Mean(BackwardRatio(…))`, with costs of the last "
            "state, for the log-variance gradient; take 'pathwise' or 'likelihood-ratio' for others"
        )
        strange = [type(leaf).__name__ for leaf in leaves if not (is_path_divergence(leaf) or isinstance(leaf, AbstractFinal))]
        require(not strange, "objective", rule, ", ".join(strange))
        require(any(map(is_path_divergence, leaves)), "objective", rule, "costs of the last state alone")
        rule = "be one fixed density for the log-variance gradient"
        require(isinstance(self.initial, AbstractDistribution), "initial", rule, "a function of the dynamics")
        require(self.clock is None, "clock", "be omitted for the log-variance gradient: the fixed measure has a duration", "one")


class FokkerPlanck(AbstractLoss):
    """An objective of the density on a grid: no noise, and the exact gradient of what the grid and the steps give.

    For `Overdamped` dynamics, and for objectives of the last density and path divergences for every other one with additive noise.

    Raises:
        TypeError, ValueError: if the objective is not a property of a density, or the grid does not hold it.
    """

    objective: AbstractObjective
    """What is to be small."""
    initial: Initial
    """The density at first, or a function of the dynamics that returns it."""
    ts: Float[Array, " time"] = eqx.field(converter=as_float)
    """Times of the steps; with a `clock`, shares of the duration from zero to one."""
    grid: Grid
    """The cells, in one or two dimensions."""
    clock: Callable[[Any], Array] | None = eqx.field(default=None, kw_only=True)
    """The duration as a function of the dynamics; fixed if omitted."""
    tolerance: Array | None = eqx.field(converter=lambda value: None if value is None else as_float(value), default=None, kw_only=True)
    """Probability that the grid may miss, as for `fokker_planck.evolve`."""

    def __check_init__(self):
        _check_objective(self.objective)
        check_grid(self.ts, self.clock)

    def terms(self, dynamics, key=None):
        ts = self.ts if self.clock is None else self.ts * self.clock(dynamics).astype(self.ts.dtype)
        flow = Flow(dynamics, _initial_of(self.initial, dynamics), ts, self.grid, self.tolerance)
        terms, _ = self.objective.split()
        return jnp.stack([_one_number(term.of_density(flow)) for term in terms])


def check_grid(ts: Any, clock: Any) -> None:
    """Refuse times that do not increase, and with a clock those that are no shares."""
    check_times(ts)
    if clock is not None:
        good = (jnp.abs(ts[0]) == 0.0) & (jnp.abs(ts[-1] - 1.0) <= 8 * jnp.finfo(ts.dtype).eps)
        ensure(ts, good, "ts", "be shares of the duration from 0 to 1 with a `clock`", ts)


class _Attached(eqx.Module):
    """A functional of a path that is held fixed: what it knows of the model and of the times keeps its derivative."""

    functional: Functional
    dynamics: Any
    stretch: Scalar

    def __call__(self, step: Step) -> Array:
        return self.functional(step._replace(dynamics=self.dynamics, t0=self.stretch * step.t0, t1=self.stretch * step.t1))


@eqx.filter_jit
def _terms(loss, dynamics, key):
    if loss.batches == 1:
        return _batch(loss, dynamics, key)
    keys = jr.split(key, loss.batches)
    arrays, rest = eqx.partition((loss, dynamics), eqx.is_array)

    def share(keys, arrays):
        # Nothing of a batch is kept for the backward pass but its key.
        own, model = eqx.combine(arrays, rest)
        batch = jax.checkpoint(lambda k: _batch(own, model, k), prevent_cse=False)
        return lax.map(batch, keys)

    if loss.devices is None:
        return jnp.mean(share(keys, arrays), axis=0)

    mesh = Mesh(np.array(loss.devices), ("batch",))
    shared = jax.shard_map(share, mesh=mesh, in_specs=(P("batch"), P()), out_specs=P("batch"), check_vma=False)
    return jnp.mean(shared(keys, arrays), axis=0)


def _batch(loss, dynamics, key):
    start_key, noise_key = jr.split(key)
    initial = _initial_of(loss.initial, dynamics)
    if initial is not loss.initial and loss.gradient == "pathwise":
        name = type(initial).__name__
        rule = "be Gaussian where it moves with the model, for pathwise gradients; take gradient='likelihood-ratio'"
        require(centre_of(initial) is not None, "initial", rule, name)
    antithetic = loss.noise == "antithetic"
    x0s = sample_in_pairs(initial, loss.samples, key=start_key) if antithetic else initial.sample(loss.samples, key=start_key)
    dtype = position_of(x0s).dtype
    objective, dynamics, initial = cast((loss.objective, dynamics, initial), dtype)
    ts, stretch = loss.ts.astype(dtype), jnp.ones((), dtype)
    if loss.clock is not None:
        duration = loss.clock(dynamics).astype(dtype)
        held = lax.stop_gradient(duration)
        ts, stretch = (ts * duration, stretch) if loss.gradient == "pathwise" else (ts * held, duration / held)
    terms, _ = objective.split()
    wanted = tuple(term.functionals(dynamics) for term in terms)
    options: dict[str, Any] = {"stepper": loss.stepper, "segments": loss.segments, "noise": loss.noise, "key": noise_key}
    zeros = jnp.zeros(loss.samples, dtype)
    if loss.gradient == "pathwise":
        x1s, sums = _accumulate_once(wanted, dynamics, x0s, ts, options)
        found = Paths(dynamics, initial, x0s, x1s, sums, zeros, ts[-1] - ts[0])
        return _evaluate(terms, found)
    x0s = lax.stop_gradient(x0s)
    attach = lambda functional: _Attached(functional, dynamics, stretch)
    everything = wanted if loss.gradient == "log-variance" else (wanted, _log_kernel)
    x1s, found = _accumulate_once(everything, _held(dynamics), x0s, ts, options, attach)
    sums, logs = (found, _divergence(terms, found)) if loss.gradient == "log-variance" else found
    duration = stretch * (ts[-1] - ts[0])
    if loss.gradient == "log-variance":
        sums = lax.stop_gradient(sums)
    elif initial is not loss.initial:
        logs = logs + jax.vmap(initial.log_prob)(x0s)
    # Zero in value. The factor takes the bias out that the normalisation of the weights brings.
    log_weights = loss.samples / (loss.samples - 1) * (logs - lax.stop_gradient(logs))
    return _evaluate(terms, Paths(dynamics, initial, x0s, x1s, sums, log_weights, duration))


def _accumulate_once(functionals, dynamics, x0s, ts, options, attach=lambda functional: functional):
    """`accumulate` with what several objectives ask for summed but once."""
    leaves, structure = jax.tree.flatten(functionals, is_leaf=callable)
    distinct = list({id(leaf): leaf for leaf in leaves}.values())
    x1s, sums = accumulate([attach(leaf) for leaf in distinct], dynamics, x0s, ts, **options)
    place = {id(leaf): total for leaf, total in zip(distinct, sums, strict=True)}
    return x1s, jax.tree.unflatten(structure, [place[id(leaf)] for leaf in leaves])


def _evaluate(terms, paths):
    pairs = zip(terms, paths.sums, strict=True)
    return jnp.stack([_one_number(term.of_paths(paths._replace(sums=sums))) for term, sums in pairs])


def _one_number(value):
    require(jnp.shape(value) == (), "objective", "return one number", f"shape {jnp.shape(value)}")
    return value


def _divergence(objectives, sums):
    """The first path divergence among objectives: its derivative along fixed paths is that of their log-density."""
    pairs = list(zip(objectives, sums, strict=True))
    while pairs:
        objective, found = pairs.pop(0)
        if is_path_divergence(objective):
            return found
        if isinstance(objective, Weighted):
            pairs = [*zip(objective.terms, found, strict=True), *pairs]
    raise AssertionError("checked before")


def _log_kernel(step):
    return log_density(step.stepper, step.dynamics, step.t0, step.t1, step.x0, step.x1)


def _held(tree):
    """`tree` without derivatives."""
    return jax.tree.map(lambda leaf: lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def _initial_of(initial, dynamics):
    return initial if isinstance(initial, AbstractDistribution) else initial(dynamics)


def _check_objective(objective):
    if not isinstance(objective, AbstractObjective):
        raise TypeError(f"`objective` must be an objective such as `Mean(work)`, got {type(objective).__name__}.")
