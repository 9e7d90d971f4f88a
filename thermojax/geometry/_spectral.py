"""The friction tensor from the Fokker-Planck generator on a grid, in one and two dimensions."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, cast
from thermojax._check import check_positive, ensure, library_of, require
from thermojax.baths import Isothermal
from thermojax.dynamics import Overdamped
from thermojax.fokker_planck import allowed, check_dynamics, check_edge, edge_probability, energies, generator, Grid
from thermojax.geometry._friction import check_control, check_scale
from thermojax.potentials import energy, Potential
from thermojax.protocols import Constant


def friction_spectral(
    potential: Potential,
    lam: ArrayLike | Sequence[float],
    grid: Grid,
    *,
    beta: ArrayLike = 1.0,
    mobility: ArrayLike | tuple[float, ...] | list[float] = 1.0,
) -> Float[Array, "..."]:
    r"""The friction tensor from the generator $L$ on a grid, $\zeta_{ij} = \beta\,\langle\delta X_i\,\phi_j\rangle$ with
    $-L^\dagger\phi = \delta X$ and $\langle\phi\rangle = 0$.

    In one dimension a tridiagonal solve in which the most likely cell is held (high barriers need float64); in two, or on a ring,
    conjugate gradients on the operator that detailed balance makes symmetric. It is of second order in the spacing. Where `friction`
    applies it is the better choice; this one also covers two dimensions, rings, and one mobility per axis.

    Args:
        potential: $V(x, \lambda)$ in the dimension of the grid.
        lam: The control, a number or of shape ``(control,)``.
        grid: The cells, as from `fokker_planck.propose_grid`; no end may be open.
        beta: Inverse temperature.
        mobility: $\mu$, a number or one per axis.

    Returns:
        $\zeta$, energy times time over control squared, of shape ``()`` or ``(control, control)``.

    Raises:
        ValueError: if the control has another shape, an end is open, or the grid does not hold the density.
    """
    lam = check_control(lam).astype(grid.low.dtype)
    beta, mobility = check_scale(beta, "beta"), check_positive(as_float(mobility), "mobility")
    require(mobility.shape in ((), (grid.dim,)), "mobility", "be one number, or one for each axis", f"shape {mobility.shape}")
    require("open" not in grid.boundary, "grid", "have no open end for an equilibrium", grid.boundary)
    dynamics = cast(Overdamped(potential, Constant(lam), Isothermal(beta), mobility), grid.low.dtype)
    check_dynamics(dynamics, grid, jnp.zeros(1, lam.dtype))
    zeta, solved, edge = _spectral(dynamics, grid)
    zeta = check_edge(zeta, edge, allowed(None, lam.dtype))
    zeta = ensure(zeta, solved, "grid", "be coarser, or its barriers lower, for conjugate gradients to converge", "no convergence")
    return ensure(zeta, library_of(zeta).isfinite(zeta), "potential", "have a finite derivative by the control on the grid", zeta)


@eqx.filter_jit
def _spectral(dynamics, grid):
    lam, beta, now = dynamics.protocol.value, dynamics.bath(0.0), jnp.zeros((), grid.low.dtype)
    # Detailed balance: the equilibrium on the cells is the Boltzmann weight of their middles.
    halves = -0.5 * beta * energies(dynamics, grid, now)
    root = jnp.exp(halves - jnp.max(halves))
    root = root / jnp.sqrt(jnp.sum(root**2))
    probabilities = root.ravel() ** 2
    slope = lambda x: -jax.grad(lambda l: energy(dynamics.potential, x, l))(lam)
    observed = jax.vmap(slope)(grid.centres.reshape(-1, grid.dim)).reshape(-1, lam.size).T
    observed = observed - (observed @ probabilities)[:, None]
    hops = generator(dynamics, grid, now)
    tridiagonal = grid.dim == 1 and grid.boundary[0] != "periodic"
    solve = _line(hops[0], probabilities) if tridiagonal else _symmetric(hops, grid, root.ravel())
    responses, solved = jax.vmap(solve)(observed)
    zeta = beta * observed @ responses.T
    edge = edge_probability(root**2, grid) / grid.volume
    return (0.5 * (zeta + zeta.T)).reshape(lam.shape + lam.shape), jnp.all(solved), edge


def _line(hops, probabilities):
    """The response on a line of cells, times the probability. Only its differences count, so the most likely cell is held at zero."""
    up, down = hops.up, jnp.roll(hops.down, 1)
    held = jnp.arange(up.shape[0]) == jnp.argmax(probabilities)
    diagonal = jnp.where(held, 1.0, up + down)
    upper, lower = (jnp.where(held, 0.0, -rate) for rate in (up, down))
    operator = lx.TridiagonalLinearOperator(diagonal, lower[1:], upper[:-1])

    def solve(observed):
        response = lx.linear_solve(operator, jnp.where(held, 0.0, observed), lx.Tridiagonal()).value
        return probabilities * (response - jnp.sum(probabilities * response)), jnp.array(True)

    return solve


def _symmetric(hops, grid, root):
    r"""The response times the probability, by conjugate gradients on $-\pi^{1/2}L^\dagger\pi^{-1/2}$."""
    leaving = jnp.zeros(grid.cells, root.dtype)
    couplings = []
    for axis, hop in enumerate(hops):
        leaving = leaving + jnp.moveaxis(hop.up + jnp.roll(hop.down, 1, axis=-1), -1, axis)
        # Nothing passes the last face of an axis with ends, and the root of zero has no derivative.
        passed = hop.up * hop.down
        coupling = jnp.where(passed > 0, jnp.sqrt(jnp.where(passed > 0, passed, 1.0)), 0.0)
        couplings.append(jnp.moveaxis(coupling, -1, axis))
    # The null vector is lifted to a rate in the middle of the spectrum; the right-hand sides have no part in it.
    lift = jnp.sum(root**2 * leaving.ravel())

    def apply(v):
        shaped = v.reshape(grid.cells)
        result = leaving * shaped
        for axis, coupling in enumerate(couplings):
            result = result - coupling * jnp.roll(shaped, -1, axis) - jnp.roll(coupling * shaped, 1, axis)
        return result.ravel() + lift * root * jnp.sum(root * v)

    like = jax.ShapeDtypeStruct(root.shape, root.dtype)
    operator = lx.FunctionLinearOperator(apply, like, lx.positive_semidefinite_tag)
    tolerance = 10 * float(jnp.finfo(root.dtype).eps) ** 0.75
    solver = lx.CG(rtol=tolerance, atol=tolerance, max_steps=20 * sum(grid.cells))

    def solve(observed):
        # lineax is not written for strict dtype promotion.
        with jax.numpy_dtype_promotion("standard"):
            found = lx.linear_solve(operator, root * observed, solver, throw=False)
        return root * found.value, found.result == lx.RESULTS.successful

    return solve
