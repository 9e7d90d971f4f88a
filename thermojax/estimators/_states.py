r"""Free energies along a chain of equilibrium states: integration of the mean force, and all states at once."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from thermojax._check import ensure, library_of, require
from thermojax.estimators._averages import mean
from thermojax.estimators._estimate import as_floating, Estimate
from thermojax.estimators._health import MIN_ESS

# Neighbouring states whose samples mix less than this make no reliable chain.
MIN_OVERLAP = 0.03


def thermodynamic_integration(
    lams: ArrayLike | Sequence,
    derivatives: Array | np.ndarray | Sequence[ArrayLike],
    *,
    rule: str = "trapezoid",
    inefficiency: ArrayLike | Sequence[ArrayLike] = 1.0,
) -> Estimate:
    r"""Free-energy difference $\int\langle\partial_\lambda V\rangle_\lambda\,d\lambda$ from equilibrium samples at each control.

    The integral is a weighted sum of the window means, so its standard error follows from theirs. The error of the *quadrature* is not
    in the error bar. It is judged by leaving out every other window (Richardson); the estimate is trustworthy only if that is below two
    error bars, so three windows are the least.

    Args:
        lams: Controls of the windows, strictly increasing or decreasing, shape ``(window,)``.
        derivatives: Samples of $\partial_\lambda V$ (not of $\beta\,\partial_\lambda V$) in each window: shape ``(window, sample)``, or one
            vector per window.
        rule: ``"trapezoid"``, or ``"spline"`` for the natural cubic spline through the means.
        inefficiency: How many correlated samples are worth one independent sample, for all windows or for each.

    Returns:
        The difference of the last window to the first; `ess` is that of the poorest window.

    Raises:
        ValueError: if the controls are not ordered, or their number is not that of the windows.

    Reference:
        J. G. Kirkwood, J. Chem. Phys. 3, 300 (1935).
    """
    require(rule in _RULES, "rule", f"be one of {', '.join(_RULES)}", rule)
    lams = as_floating(lams, "lams")
    require(lams.ndim == 1 and lams.shape[0] >= 2, "lams", "be a vector of at least two controls", f"shape {lams.shape}")
    steps = library_of(lams).diff(lams)
    lams = ensure(lams, (steps > 0).all() | (steps < 0).all(), "lams", "increase strictly or decrease strictly", lams)
    windows = lams.shape[0]
    require(len(derivatives) == windows, "derivatives", f"have one row for each of the {windows} controls", f"{len(derivatives)} rows")
    each = np.atleast_1d(np.asarray(inefficiency))
    each = np.repeat(each, windows) if each.size == 1 else each
    wanted = f"be one number or one for each of the {windows} controls"
    require(each.shape == (windows,), "inefficiency", wanted, f"shape {each.shape}")
    found = [mean(row, inefficiency=g) for row, g in zip(derivatives, each, strict=True)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *found)
    return _integrate[rule](lams.astype(stacked.value.dtype), stacked)


def _quadrature(rule, lams, means):
    share = _RULES[rule](lams)
    value, stderr = share @ means.value, jnp.sqrt(share**2 @ means.stderr**2)
    windows = lams.shape[0]
    rough = jnp.inf
    if windows >= 3:
        coarse = np.unique(np.r_[0:windows:2, windows - 1])
        gain = {"trapezoid": 3.0, "spline": 15.0}[rule]
        rough = jnp.abs(value - _RULES[rule](lams[coarse]) @ means.value[coarse]) / gain
    trustworthy = jnp.all(means.trustworthy) & (rough < 2 * stderr)
    return Estimate(value, stderr, jnp.min(means.ess), trustworthy, jnp.sum(means.samples), jnp.sum(means.excluded))


def _trapezoid(lams):
    half = 0.5 * jnp.diff(lams)
    return jnp.pad(half, (0, 1)) + jnp.pad(half, (1, 0))


def _spline(lams):
    """The integral of the natural cubic spline, as weights of the values: linear in them."""
    n, h = lams.shape[0], jnp.diff(lams)
    eye = jnp.eye(n, dtype=lams.dtype)
    if n == 2:
        return _trapezoid(lams)
    slopes = jnp.diff(eye, axis=0) / h[:, None]
    tie = jnp.diag(2 * (h[:-1] + h[1:])) + jnp.diag(h[1:-1], 1) + jnp.diag(h[1:-1], -1)
    curvatures = jnp.pad(jnp.linalg.solve(tie, 6 * jnp.diff(slopes, axis=0)), ((1, 1), (0, 0)))
    return _trapezoid(lams) - (h**3 / 24) @ (curvatures[:-1] + curvatures[1:])


_RULES = {"trapezoid": _trapezoid, "spline": _spline}
_integrate = {rule: jax.jit(lambda lams, means, rule=rule: _quadrature(rule, lams, means)) for rule in _RULES}


def mbar(reduced: ArrayLike, counts: ArrayLike | Sequence[int], *, inefficiency: ArrayLike = 1.0) -> Estimate:
    r"""Reduced free energies $\beta F_k - \beta F_0$ of all states from the samples of all: the multistate Bennett acceptance ratio.

    The equations are solved by pymbar, in double precision and outside compiled code; JAX's configuration and NumPy's random state are
    left as they were. The estimate of a state is trustworthy if it and the first state have enough effective samples, and if a path of
    states leads from one to the other whose neighbours mix.

    Args:
        reduced: Reduced potential $u_k(x_n)$ of every sample in every state, shape ``(state, sample)``, samples ordered by the state
            they come from.
        counts: Samples from each state, shape ``(state,)``; zero for states that were not sampled.
        inefficiency: How many correlated samples are worth one independent sample.

    Returns:
        One `Estimate` whose entries have shape ``(state,)``; the first is zero without error.

    Raises:
        ModuleNotFoundError: if pymbar is missing.
        ValueError: if the shapes do not agree or a reduced potential is not finite.

    Reference:
        M. R. Shirts, J. D. Chodera, J. Chem. Phys. 129, 124105 (2008); the overlap asked for: P. V. Klimovich, M. R. Shirts, D. L. Mobley,
        J. Comput.-Aided Mol. Des. 29, 397 (2015).
    """
    energies, numbers = np.asarray(reduced, dtype=np.float64), np.asarray(counts)
    require(energies.ndim == 2 and energies.shape[0] >= 2, "reduced", "have shape (state, sample)", f"shape {energies.shape}")
    rule = f"be one whole number for each of the {energies.shape[0]} states that add up to the {energies.shape[1]} samples"
    whole = numbers.shape == energies.shape[:1] and np.all(numbers == np.round(numbers)) and np.all(numbers >= 0)
    require(bool(whole and numbers.sum() == energies.shape[1]), "counts", rule, numbers.tolist())
    require(bool(np.all(np.isfinite(energies))), "reduced", "be finite", f"{np.sum(~np.isfinite(energies))} entries that are not")
    g = np.asarray(inefficiency, dtype=np.float64)
    require(g.ndim == 0 and bool(g >= 1), "inefficiency", "be one number of at least one", inefficiency)
    with _contained():
        values, errors, effective, links = _solved(energies, numbers.astype(int))
    errors, effective = errors * np.sqrt(g), effective / g
    mixed = _bottlenecks(links, numbers > 0)[0] >= MIN_OVERLAP
    enough = np.minimum(effective, effective[0]) >= MIN_ESS
    total = np.full(values.shape, energies.shape[1])
    parts = (values, errors, effective, enough & mixed, total, np.zeros_like(total))
    return Estimate(*(jnp.asarray(p) if p.dtype == bool else jnp.asarray(p).astype(float) for p in parts))


def _pymbar() -> Any:
    try:
        return importlib.import_module("pymbar")
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError("`mbar` needs the package pymbar; install the extra `thermojax[mbar]`.") from missing


def _solved(energies: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Free energies relative to the first state, their errors, effective samples of each state, and the overlap matrix."""
    pymbar = _pymbar()
    try:
        solver = pymbar.MBAR(energies, counts)
        found = solver.compute_free_energy_differences()
        effective, links = solver.compute_effective_sample_number(), solver.compute_overlap()["matrix"]
    except (pymbar.utils.ParameterError, pymbar.utils.ConvergenceError) as lost:
        raise ValueError("`reduced` must be of states whose samples overlap, got equations that pymbar could not solve.") from lost
    return tuple(np.array(a, dtype=np.float64) for a in (found["Delta_f"][0], found["dDelta_f"][0], effective, links))


@contextlib.contextmanager
def _contained():
    """Give pymbar the settings it would otherwise make for the whole process: 64 bits in JAX, a seed of NumPy, and log lines."""
    state, log = np.random.get_state(), logging.getLogger("pymbar")
    level = log.level
    # Its warnings are about settings that are made here; where it finds no solution, it raises.
    log.setLevel(logging.ERROR)
    try:
        with (
            jax.enable_x64(True),
            jax.numpy_dtype_promotion("standard"),
            jax.numpy_rank_promotion("allow"),
            np.errstate(),
            warnings.catch_warnings(),
        ):
            # It hands SciPy options that SciPy does not know.
            warnings.filterwarnings("ignore", "Unknown solver options")
            yield
    finally:
        np.random.set_state(state)
        log.setLevel(level)


def _bottlenecks(links: np.ndarray, sampled: np.ndarray) -> np.ndarray:
    """The weakest link on the best path between each pair of states."""
    # The overlap with a state that was not sampled stands on one side of the diagonal only.
    best = np.where(sampled[:, None] & sampled[None], np.minimum(links, links.T), np.maximum(links, links.T))
    np.fill_diagonal(best, 1.0)
    for k in range(best.shape[0]):
        best = np.maximum(best, np.minimum(best[:, k, None], best[None, k]))
    return best
