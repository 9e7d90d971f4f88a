"""Steady states: the null vector of the generator, without a splitting error."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.lax.linalg import tridiagonal_solve
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float, cast
from thermojax._check import ensure, library_of, require
from thermojax.dynamics import AbstractDynamics
from thermojax.fokker_planck._evolve import allowed, check_dynamics, check_edge, compare, edge_probability
from thermojax.fokker_planck._generator import generator
from thermojax.fokker_planck._grid import Grid


def steady_state(
    dynamics: AbstractDynamics, grid: Grid, *, t: ArrayLike = 0.0, tolerance: ArrayLike | None = None
) -> Float[Array, "*cells"]:
    r"""The density that does not change under the coefficients of time `t`.

    In one dimension a product along the axis, or one tridiagonal solve if it is periodic. In two dimensions the
    lines of cells are eliminated one after the other, at a cost of $n_x n_y^3$ with $n_y$ the shorter axis.

    Args:
        dynamics: What moves, with its coefficients frozen at `t`.
        grid: The cells; no end may be open.
        t: The time.
        tolerance: Probability that may sit in the outermost reflecting cells; as for `evolve`.

    Returns:
        The density at the middles of the cells. It is differentiable in the parameters of `dynamics`.

    Raises:
        ValueError: if an end is open, or the grid does not hold the steady state.
    """
    require("open" not in grid.boundary, "grid", "have no open end for a steady state", grid.boundary)
    dtype = grid.low.dtype
    dynamics, t = cast(dynamics, dtype), as_float(t).astype(dtype)
    require(t.ndim == 0, "t", "be one time", f"shape {t.shape}")
    check_dynamics(dynamics, grid, t[None])
    density, edge = _steady(dynamics, grid, t)
    good = compare(density, library_of(density).isfinite)
    density = ensure(density, good, "dynamics", "have a steady state on the grid", "one that is not finite")
    return check_edge(density, edge, allowed(tolerance, dtype))


@eqx.filter_jit
def _steady(dynamics, grid, t):
    hops = generator(dynamics, grid, t)
    if grid.dim == 2:
        found = _plane(hops, grid)
    else:
        found = _ring(hops[0].up, hops[0].down) if grid.boundary[0] == "periodic" else _line(hops[0].affinity)
    density = found / grid.integrate(found)
    return density, edge_probability(density, grid)


def _line(affinity):
    logs = jnp.concatenate([jnp.zeros(1, affinity.dtype), jnp.cumsum(affinity[:-1])])
    return jnp.exp(logs - jnp.max(logs))


def _ring(up, down):
    # The most likely cell is held at one, so that nothing overflows; without it the ring is a line that drains into it.
    start = jnp.argmin(jnp.cumsum(jnp.log(down) - jnp.log(up)))
    start = jnp.mod(start + 1, up.shape[0])
    up, down = jnp.roll(up, -start), jnp.roll(down, -start)
    diagonal = up + jnp.roll(down, 1)
    lower, upper = jnp.roll(-up, 1)[1:].at[0].set(0.0), (-down)[1:].at[-1].set(0.0)
    source = jnp.zeros_like(up[1:]).at[0].add(up[0]).at[-1].add(down[-1])
    rest = tridiagonal_solve(lower, diagonal[1:], upper, source[:, None])[:, 0]
    return jnp.roll(jnp.concatenate([jnp.ones(1, up.dtype), rest]), start)


def _plane(hops, grid):
    """Null vector of a generator in two dimensions, by elimination of one line of cells after the other."""
    inner = 1 if grid.cells[1] <= grid.cells[0] else 0
    outer = 1 - inner
    # Hops carry their own axis last; those between lines are wanted as (line, cell), like those within.
    ahead, back = hops[outer].up.T, hops[outer].down.T
    # The most likely line comes first and all others drain into it: from a line that is left uphill, rounding would let nothing out.
    # An axis with ends is a ring that cannot be passed at one place.
    climbed = lambda affinity: jnp.cumsum(affinity, axis=-1) - affinity
    logs = climbed(hops[outer].affinity[:1]).T + climbed(hops[inner].affinity)
    root = jnp.argmax(jnp.max(logs, axis=-1))
    turn = lambda lines: jnp.roll(lines, -root, axis=0)
    within = turn(jax.vmap(_block)(hops[inner].up, hops[inner].down))
    ahead, back = turn(ahead), turn(back)

    def eliminate(carry, inputs):
        # The last line that is left: rates within it, to and from line 0, and within line 0 through lines already gone.
        own, to_first, from_first, first = carry
        inside, forward, backward = inputs
        # The diagonal is what leaves, a sum of positive terms without a subtraction (Grassmann, Taksar and Heyman).
        leaving = jnp.sum(own, axis=0) + backward + jnp.sum(to_first, axis=0)
        reached = jnp.linalg.solve(jnp.diag(leaving) - own, jnp.concatenate([jnp.diag(forward), from_first], axis=1))
        by_before, by_first = reached[:, : len(forward)], reached[:, len(forward) :]
        own, first = _hollow(inside + backward[:, None] * by_before), first + to_first @ by_first
        return (own, to_first @ by_before, backward[:, None] * by_first, first), (by_before, by_first)

    carry = within[-1], jnp.diag(ahead[-1]), jnp.diag(back[-1]), jnp.zeros_like(within[0])
    inputs = jax.tree.map(lambda a: a[::-1], (within[:-1], ahead[:-1], back[:-1]))
    # The line before line 1 is line 0 itself, so at the end all four are rates within it.
    parts, reached = lax.scan(eliminate, carry, inputs)
    start = _null(_hollow(sum(parts[1:], parts[0])))

    def follow(line, inputs):
        by_before, by_first = inputs
        line = by_before @ line + by_first @ start
        return line, line

    _, others = lax.scan(follow, start, jax.tree.map(lambda a: a[::-1], reached))
    found = jnp.roll(jnp.concatenate([start[None], others]), root, axis=0)
    # Far out on the line that comes first, rounding can leave a little less than nothing.
    found = jnp.maximum(found, 0.0)
    return found if outer == 0 else found.T


def _block(up, down):
    """Rates within one line: the entry (i, j) is the rate from cell j to cell i."""
    m = up.shape[0]
    cells = jnp.arange(m)
    above = jnp.mod(cells + 1, m)
    return jnp.zeros((m, m), up.dtype).at[above, cells].add(up).at[cells, above].add(down)


def _hollow(rates):
    """Rates without those from a cell to itself, which change nothing."""
    return rates * (1.0 - jnp.eye(rates.shape[0], dtype=rates.dtype))


def _null(rates):
    """The stationary vector of a dense matrix of rates, with the sum one."""
    m = rates.shape[0]
    matrix = rates - jnp.diag(jnp.sum(rates, axis=0))
    # One equation says nothing new; the normalisation takes its place, scaled like the others.
    scale = jnp.mean(jnp.abs(jnp.diagonal(matrix)))
    matrix = matrix.at[-1].set(scale)
    vector = jnp.linalg.solve(matrix, jnp.zeros(m, rates.dtype).at[-1].set(scale))
    return vector / jnp.sum(vector)
