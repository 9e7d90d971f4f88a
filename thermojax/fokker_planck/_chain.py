r"""The chain that a stepper makes of a dynamics, in one dimension and without noise: means at a finite step, to many digits.

Where the rest of this package solves the equation of continuous time, `expected_sum` follows the very chain of a simulation, kernel by
kernel: $u_k(x) = \langle f(x, x') + u_{k+1}(x')\rangle$, where $x'$ is one step from $x$. The average over the normals of a step is
Gauss-Hermite quadrature, and $u_{k+1}$ between the middles of cells is a polynomial through eight of them. So what a simulation scatters
around can be compared with the exact result of its own step (is it unbiased?), and that with continuous time (what is its order?).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import cast, Scalar
from thermojax._check import check_times, require
from thermojax.dynamics import AbstractDynamics
from thermojax.ensemble import Functional, Step, stepper_for
from thermojax.fokker_planck._grid import Grid
from thermojax.steppers import AbstractStepper, advance

# Middles of cells that one polynomial goes through.
_WIDTH = 8


def expected_sum(
    functional: Functional,
    dynamics: AbstractDynamics,
    grid: Grid,
    ts: ArrayLike,
    *,
    stepper: AbstractStepper | None = None,
    terminal: ArrayLike | None = None,
    nodes: int = 16,
) -> Float[Array, "cells ..."]:
    r"""The mean of a functional summed by `ensemble.accumulate`, for a particle that starts in each cell.

    Exact for the chain at its own step size, but for quadrature and interpolation, whose error falls with the eighth power of the spacing
    (for functionals that are smooth in the state), and for the box: a step that leaves it is taken to end at its edge, so let the box reach
    where no path of weight goes.

    Args:
        functional: A functional of a `Step`; several at once if it returns an array.
        dynamics: What moves, in one dimension.
        grid: Where; its boundaries are of no consequence.
        ts: Strictly increasing times, shape ``(time,)``; every interval is one step.
        stepper: One-step kernel; `EulerMaruyama` if omitted.
        terminal: A function of the last state at the middles of the cells, added to the sum, shape ``(cells, ...)``; none if omitted.
        nodes: Quadrature nodes for each normal of a step.

    Returns:
        The means at the middles of the cells, shape ``(cells, ...)``: ``grid.integrate(density * means)`` is that of an ensemble.

    Raises:
        ValueError: if the dynamics is not one-dimensional, or shapes and times have no meaning.
    """
    require(grid.dim == 1, "grid", "have one dimension", grid.dim)
    require(grid.cells[0] >= _WIDTH, "grid", f"have at least {_WIDTH} cells", grid.cells[0])
    require(nodes >= 1, "nodes", "be at least 1", nodes)
    ts = check_times(ts, grid.low.dtype)
    kernel, dynamics = cast((stepper_for(dynamics) if stepper is None else stepper, dynamics), ts.dtype)
    kernel.check(dynamics, ts, grid.centres)
    zs = jax.ShapeDtypeStruct((kernel.normals, 1), ts.dtype)
    one = lambda x, z: functional(Step(kernel, dynamics, ts[0], ts[1], x, x, z))
    shape = (*grid.cells, *jax.eval_shape(one, grid.centres[0], zs).shape)
    last = jnp.zeros(shape, ts.dtype) if terminal is None else jnp.asarray(terminal, ts.dtype)
    require(last.shape == shape, "terminal", f"have the shape {shape}, of the cells and the functional", f"shape {last.shape}")
    return _expected_sum(functional, kernel, dynamics, grid, ts, last, *_quadrature(nodes, kernel.normals, ts.dtype))


def _quadrature(nodes, normals, dtype):
    """Places and weights for the standard normals of a step, a product rule."""
    place, weight = np.polynomial.hermite_e.hermegauss(nodes)
    places = np.stack(np.meshgrid(*[place] * normals, indexing="ij"), -1).reshape(-1, normals, 1)
    weights = np.prod(np.stack(np.meshgrid(*[weight / weight.sum()] * normals, indexing="ij"), -1), -1).reshape(-1)
    return jnp.asarray(places, dtype), jnp.asarray(weights, dtype)


@eqx.filter_jit
def _expected_sum(functional, stepper, dynamics, grid, ts, last, places, weights):
    def gain(u, t0, t1, x0, z):
        x1 = advance(stepper, dynamics, t0, t1, x0, z)
        return functional(Step(stepper, dynamics, t0, t1, x0, x1, z)) + _at(grid, u, x1[0])

    def step(u, times):
        t0, t1 = times
        mean = lambda x0: jnp.tensordot(weights, jax.vmap(lambda z: gain(u, t0, t1, x0, z))(places), 1)
        return jax.vmap(mean)(grid.centres), None

    return lax.scan(step, last, (ts[:-1], ts[1:]), reverse=True)[0]


def _at(grid: Grid, u: Float[Array, "cells ..."], x: Scalar) -> Float[Array, "..."]:
    """The function `u` at one place, from the nearest eight cells."""
    cells = grid.cells[0]
    place = jnp.clip((x - grid.low[0]) / grid.spacing[0] - 0.5, 0.0, cells - 1.0)
    first = jnp.clip(jnp.floor(place).astype(int) - (_WIDTH // 2 - 1), 0, cells - _WIDTH)
    distance = place - first.astype(place.dtype) - jnp.arange(_WIDTH, dtype=place.dtype)
    scales = [np.prod([i - j for j in range(_WIDTH) if j != i]) for i in range(_WIDTH)]
    values = lax.dynamic_slice_in_dim(u, first, _WIDTH)
    # Lagrange's form, as products of the distances to the left and to the right of each node.
    left = jnp.cumprod(jnp.concatenate([jnp.ones(1, place.dtype), distance[:-1]]))
    right = jnp.cumprod(jnp.concatenate([jnp.ones(1, place.dtype), distance[:0:-1]]))[::-1]
    return jnp.tensordot(left * right / jnp.asarray(scales, place.dtype), values, 1)
