r"""Equilibrium, $\pi(x) = e^{-\beta V(x, \lambda)}/Z$: exact where it is Gaussian, on a grid in one and two dimensions, by MCMC
otherwise.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.distributions._gaussian import AbstractDistribution, Gaussian
from thermojax.potentials import energy, Potential

# A Boltzmann factor below exp(-50) changes no digit of a float64 sum over a grid.
_CUTOFF = 50.0


class GridBoltzmann(AbstractDistribution):
    r"""A Boltzmann density in one or two dimensions, normalised by quadrature.

    `log_prob` and `score` use the potential itself; only the normaliser is a sum over the grid, which converges faster than
    any power of the spacing for a smooth potential. `sample` draws a cell and a uniform place in it: its moments are off by
    the square of the spacing (4096 cells in one dimension, 512 by 512 in two).
    """

    potential: Potential
    lam: Array = eqx.field(converter=as_float)
    beta: Scalar = eqx.field(converter=as_scalar)
    centres: Float[Array, "cell dim"]
    """The middle of every cell."""
    spacing: Float[Array, " dim"]
    """The size of a cell in each coordinate."""

    @property
    def log_z(self) -> Scalar:
        r"""$\ln Z = \ln\int e^{-\beta V}dx$."""
        return logsumexp(self._log_weights()) + jnp.sum(jnp.log(self.spacing))

    def sample(self, n, *, key):
        cell_key, place_key = jr.split(key)
        weights = self._log_weights()
        levels, finer = jr.uniform(cell_key, (n,), weights.dtype), jr.uniform(jr.fold_in(cell_key, 1), (n,), weights.dtype)
        places = jr.uniform(place_key, (n, self.spacing.shape[0]), weights.dtype, minval=-0.5, maxval=0.5)
        return self.centres[cells_at(weights, levels, finer)] + jax.vmap(lambda u: u * self.spacing)(places)

    def log_prob(self, x):
        return -self.beta * energy(self.potential, x, self.lam) - self.log_z

    def score(self, x):
        return jax.grad(lambda y: -self.beta * energy(self.potential, y, self.lam))(x)

    def _log_weights(self):
        logs = -self.beta * jax.vmap(lambda x: energy(self.potential, x, self.lam))(self.centres)
        return jnp.where(jnp.isfinite(logs), logs, -jnp.inf)


def cells_at(log_weights: Array, levels: Array, finer: Array) -> Array:
    """The cells in which the shares `levels` of the weight are reached, each level being a multiple of the spacing of numbers below one
    and `finer` its place between two of them.

    In single precision one of eight million levels is zero, which is not where the weights begin; and sums that approach one cannot tell
    the cells of the upper tail apart. So the places between are filled, and the upper half is counted from its own end.
    """
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    eps = jnp.finfo(weights.dtype).eps
    upper = levels >= 0.5
    # Both are exact: the level, or what is left above it, and its place between two of them.
    shares = jnp.where(upper, 1.0 - levels - eps, levels) + eps * jnp.where(upper, 1.0 - finer, finer)
    from_below, from_above = jnp.cumsum(weights), jnp.cumsum(weights[::-1])
    last = weights.shape[0] - 1
    below = jnp.searchsorted(from_below, from_below[-1] * shares, side="right")
    above = last - jnp.searchsorted(from_above, from_above[-1] * shares, side="right")
    return jnp.clip(jnp.where(upper, above, below), 0, last)


class SampledBoltzmann(AbstractDistribution):
    r"""A Boltzmann density known up to its normaliser, sampled by the no-U-turn sampler of BlackJAX.

    The draws come from `chains` independent chains, each adapted and then thinned: they are nearly, not exactly, independent, and
    wells that no chain visits are missed. The normaliser is unknown, so `log_prob` refuses.
    """

    potential: Potential
    lam: Array = eqx.field(converter=as_float)
    beta: Scalar = eqx.field(converter=as_scalar)
    start: Float[Array, " dim"] = eqx.field(converter=as_float)
    """Where the chains start, each from its own place one unit away."""
    chains: int = eqx.field(static=True, default=32)
    warmup: int = eqx.field(static=True, default=500)
    """Steps that adapt step size and mass matrix, discarded."""
    thinning: int = eqx.field(static=True, default=4)
    """Steps between two draws of a chain."""

    def sample(self, n, *, key):
        # BlackJAX starts a JAX backend when imported, which `import thermojax` must not.
        import blackjax

        def log_weight(x):
            return -self.beta * energy(self.potential, x, self.lam)

        def chain(chain_key, rounds):
            place_key, warm_key, run_key = jr.split(chain_key, 3)
            place = self.start + jr.normal(place_key, self.start.shape, self.start.dtype)
            warm = blackjax.window_adaptation(blackjax.nuts, log_weight)
            (state, parameters), _ = warm.run(warm_key, place, num_steps=self.warmup)  # pyright: ignore[reportCallIssue]
            kernel = blackjax.nuts(log_weight, **parameters).step

            def draw(state, draw_key):
                state, _ = jax.lax.scan(lambda s, k: (kernel(k, s)[0], None), state, jr.split(draw_key, self.thinning))
                return state, state.position  # pyright: ignore[reportAttributeAccessIssue]

            return jax.lax.scan(draw, state, jr.split(run_key, rounds))[1]

        rounds = -(-n // self.chains)
        # BlackJAX is not written for strict dtype promotion.
        with jax.numpy_dtype_promotion("standard"):
            draws = eqx.filter_jit(jax.vmap(lambda k: chain(k, rounds)))(jr.split(key, self.chains))
        return jnp.swapaxes(draws, 0, 1).reshape(-1, *self.start.shape)[:n]

    def log_prob(self, x):
        raise ValueError(
            "`log_prob` must have a normaliser, got a Boltzmann density in "
            f"{x.shape[0]} dimensions whose Z is unknown; estimate free energies with `thermojax.estimators`."
        )

    def score(self, x):
        return jax.grad(lambda y: -self.beta * energy(self.potential, y, self.lam))(x)


def equilibrium(
    potential: Potential, lam: ArrayLike, *, beta: ArrayLike = 1.0, dim: int = 1
) -> Gaussian | GridBoltzmann | SampledBoltzmann:
    r"""The Boltzmann density $e^{-\beta V(x, \lambda)}/Z$: Gaussian if $V$ is quadratic, on a grid for `dim` up to two, by MCMC otherwise.

    The choice looks at numbers, so it cannot be made inside `jax.jit` or `jax.grad`: call `gaussian_equilibrium` there, or build the
    density outside and differentiate with respect to its leaves.

    Raises:
        ValueError: if $e^{-\beta V}$ cannot be normalised, or parameters are traced.
    """
    lam, beta = as_float(lam), check_positive(as_scalar(beta), "beta")
    traced = [leaf for leaf in jax.tree.leaves((potential, lam, beta)) if isinstance(leaf, Tracer)]
    require(not traced, "potential", "have known parameters here; call `gaussian_equilibrium` under `jit`", "a traced value")
    if _is_quadratic(potential, lam, dim):
        return gaussian_equilibrium(potential, lam, beta=beta, dim=dim)
    if dim <= 2:
        return grid_equilibrium(potential, lam, beta=beta, dim=dim)
    # A potential that does not even grow along the axes is refused before a chain runs away.
    _confining_box(potential, lam, beta, dim)
    return SampledBoltzmann(potential, lam, beta, jnp.zeros(dim))


def gaussian_equilibrium(potential: Potential, lam: ArrayLike, *, beta: ArrayLike = 1.0, dim: int = 1) -> Gaussian:
    r"""The Boltzmann density of a quadratic potential, differentiable in all its parameters.

    With gradient $g$ and Hessian $H$ at the origin it is $N(-H^{-1}g, (\beta H)^{-1})$.

    Raises:
        ValueError: if the Hessian is not positive definite (`eqx.EquinoxRuntimeError` under `jit`).
    """
    mean, covariance, smallest = _quadratic_fit(potential, as_float(lam), as_scalar(beta), dim)
    rule = "be normalisable as a Boltzmann weight (every eigenvalue of its Hessian positive)"
    return Gaussian(mean, ensure(covariance, library_of(smallest).asarray(smallest) > 0, "potential", rule, f"an eigenvalue {smallest}"))


def grid_equilibrium(
    potential: Potential, lam: ArrayLike, *, beta: ArrayLike = 1.0, dim: int = 1, cells: int | None = None
) -> GridBoltzmann:
    r"""The Boltzmann density on a grid that reaches to where it has fallen to $e^{-50}$ of its maximum.

    Args:
        potential: $V(x, \lambda)$ in one or two dimensions.
        lam: The control.
        beta: Inverse temperature.
        dim: One or two.
        cells: Cells in each coordinate; 4096 in one dimension and 512 in two if omitted.

    Raises:
        ValueError: if the potential does not confine, its wells are too narrow for the cells, or `dim` is above two.
    """
    require(dim in (1, 2), "dim", "be 1 or 2 for a grid", dim)
    lam, beta = as_float(lam), check_positive(as_scalar(beta), "beta")
    low, high = _confining_box(potential, lam, beta, dim)
    cells = cells or (4096 if dim == 1 else 512)
    density = GridBoltzmann(potential, lam, beta, *_cells(low, high, cells))
    # A third of the cells must see the normaliser to a tenth: that of all cells is then right to 1e-9 for smooth wells.
    coarse = density._log_weights().reshape((cells,) * dim)[(slice(None, None, 3),) * dim]
    change = density.log_z - logsumexp(coarse) - jnp.sum(jnp.log(3 * density.spacing))
    require(bool(jnp.abs(change) < 0.1), "cells", "resolve the wells of `potential`", f"{cells} in each coordinate")
    return density


def free_energy(potential: Potential, lam: ArrayLike, *, beta: ArrayLike = 1.0, dim: int = 1) -> Scalar:
    r"""The free energy $F = -\beta^{-1}\ln\int e^{-\beta V}dx$, exact for quadratic potentials and by quadrature up to two dimensions.

    Raises:
        ValueError: if the potential cannot be normalised, or is anharmonic in more than two dimensions.
    """
    density = equilibrium(potential, lam, beta=beta, dim=dim)
    if isinstance(density, GridBoltzmann):
        return -density.log_z / density.beta
    if not isinstance(density, Gaussian):
        raise ValueError(f"`dim` must be 1 or 2 for an anharmonic potential; use `estimators.bar` otherwise, got {dim}.")
    # At the mean, where no large energies cancel.
    return energy(potential, density.mean, as_float(lam)) + density.log_prob(density.mean) / as_scalar(beta)


@eqx.filter_jit
def _quadratic_fit(potential, lam, beta, dim):
    """Mean and covariance of the Boltzmann density of a quadratic potential, and the smallest eigenvalue of its Hessian."""
    value = lambda x: energy(potential, x, lam)
    hessian = jax.hessian(value)(jnp.zeros(dim))
    inverse = jnp.linalg.inv(hessian)
    mean = -inverse @ jax.grad(value)(jnp.zeros(dim))
    return mean, 0.5 * (inverse + inverse.T) / beta, jnp.linalg.eigvalsh(hessian)[0]


@eqx.filter_jit
def _hessians(potential, lam, places):
    return jax.vmap(jax.hessian(lambda x: energy(potential, x, lam)))(places)


def _is_quadratic(potential, lam, dim):
    """Whether the Hessian is the same at a few places near and far, to rounding."""
    places = np.random.default_rng(0).normal(size=(6, dim)) * np.array([[0.0], [0.3], [1.0], [3.0], [30.0], [1000.0]])
    found = np.asarray(_hessians(potential, lam, jnp.asarray(places, dtype=float)))
    scale = np.max(np.abs(found))
    return bool(np.isfinite(scale) and np.all(np.abs(found - found[0]) <= 100 * np.finfo(found.dtype).eps * scale))


def _confining_box(potential, lam, beta, dim) -> tuple[np.ndarray, np.ndarray]:
    """The box outside which the Boltzmann weight is below exp(-50) of its maximum."""
    logs_at: Callable = jax.jit(jax.vmap(lambda x: beta * energy(potential, x, lam)))
    reach, gap = 1.0, 0.0
    # Above two dimensions only the axes are searched: the box then merely tells whether the potential grows.
    for reach in 2.0 ** np.arange(0, 16):
        places, spacing = _probe(reach, dim)
        u = np.asarray(logs_at(jnp.asarray(places, dtype=float)), dtype=float)
        require(not np.isnan(u).any(), "potential", f"be a number for |x| <= {reach:g}", "nan")
        edge = np.max(np.abs(places), axis=1) >= reach - 1.5 * spacing
        # Another look eight times as far: a deeper well may lie beyond a barrier.
        beyond = np.asarray(logs_at(jnp.asarray(8 * places, dtype=float)), dtype=float)
        beyond = beyond[np.max(np.abs(8 * places), axis=1) > reach]
        gap = min(u[edge].min(), beyond.min()) - u.min()
        if gap > 1.2 * _CUTOFF:
            low, high = _occupied(places, u, spacing)
            return (low, high) if dim > 2 else _shrunk(logs_at, low, high)
    got = f"a Boltzmann weight at |x| = {reach:g} that is exp({-gap:.3g}) of its maximum"
    raise ValueError(f"`potential` must be normalisable as a Boltzmann weight (it must confine), got {got}.")


def _occupied(places, u, spacing):
    inside = places[u - u.min() < 1.1 * _CUTOFF]
    return inside.min(axis=0) - spacing, inside.max(axis=0) + spacing


def _shrunk(logs_at, low, high):
    """The box of a landscape too narrow for the first look at it: look again inside until it stops shrinking."""
    dim = len(low)
    points = 4097 if dim == 1 else 257
    for _ in range(60):
        places = _mesh([np.linspace(a, b, points) for a, b in zip(low, high, strict=True)])
        u = np.asarray(logs_at(jnp.asarray(places, dtype=float)), dtype=float)
        before = high - low
        lower, upper = _occupied(places, u, before / (points - 1))
        low, high = np.maximum(low, lower), np.minimum(high, upper)
        if np.all(high - low > 0.5 * before):
            break
    return low, high


def _probe(reach, dim):
    line = np.linspace(-reach, reach, 4097 if dim != 2 else 257)
    places = _mesh([line] * dim) if dim <= 2 else (line[:, None, None] * np.eye(dim)).reshape(-1, dim)
    return places, line[1] - line[0]


def _mesh(lines):
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, len(lines))


def _cells(low, high, cells):
    spacing = (high - low) / cells
    lines = [a + h * (np.arange(cells) + 0.5) for a, h in zip(low, spacing, strict=True)]
    return jnp.asarray(_mesh(lines), dtype=float), jnp.asarray(spacing, dtype=float)
