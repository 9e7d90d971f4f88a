"""The finite-volume generator of one axis, and one implicit step along it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax.linalg import tridiagonal_solve
from jaxtyping import Array

from thermojax._check import require
from thermojax.dynamics import Overdamped
from thermojax.fokker_planck._grid import Grid
from thermojax.potentials import energy

# The double pole of the second-order, L-stable rational approximation of the exponential.
_GAMMA = 1.0 - 1.0 / math.sqrt(2.0)


class Hops(NamedTuple):
    """Hopping rates along one axis, moved to the end: entry i belongs to the upper face of cell i.

    The last face is the first one of a periodic axis. On an open axis `up` has there the rate out of the last cell, `down` that out of
    the first; on others both are zero.
    """

    up: Array
    """Rate from cell i to cell i + 1."""
    down: Array
    """Rate from cell i + 1 to cell i."""
    affinity: Array
    r"""$\ln(\text{up}/\text{down})$: what the hop adds to the entropy of the medium; zero at the last face unless periodic."""
    push: Array | None
    """Work of the nonconservative force on the hop upwards; None if there is none."""
    diffusion: Array
    """The diffusion constant along the axis."""


def energies(dynamics: Any, grid: Grid, t: Array) -> Array:
    """The internal energy in every cell."""
    return _over(_landscape(dynamics, t), grid.centres)


def betas(dynamics: Any, grid: Grid, t: Array) -> Array:
    """The inverse temperature along each axis."""
    return _per_axis(dynamics.bath(t), grid, "bath", "return one beta, or one for each axis")


def generator(dynamics: Any, grid: Grid, t: Array) -> tuple[Hops, ...]:
    """The hopping rates of every axis with the coefficients of time `t`."""
    diffusion = 0.5 * _per_axis(dynamics.noise(t), grid, "noise", "be one number, or one for each axis") ** 2
    if isinstance(dynamics, Overdamped):
        landscape, scales, lam = _landscape(dynamics, t), betas(dynamics, grid, t), dynamics.protocol(t)
        force = dynamics.nonconservative
        field = None if force is None else lambda x: force(x, lam)
    else:
        # No energies: the whole drift, in units of the diffusion constant, drives the hops.
        landscape, scales, field = None, 1.0 / diffusion, lambda x: dynamics.drift(t, x)
    return tuple(_hops(landscape, field, grid, axis, scales[axis], diffusion[axis]) for axis in range(grid.dim))


def splitting(dim: int) -> tuple[tuple[int, float], ...]:
    """Axes and fractions of a step: all of it, or Strang's palindrome."""
    return ((0, 1.0),) if dim == 1 else ((0, 0.5), (1, 1.0), (0, 0.5))


def propagate(hops: tuple[Hops, ...], grid: Grid, p: Array, h: Array, tilt: Array | None = None) -> Array:
    """The density after a step `h` under fixed rates; `tilt` weighs each hop by the exponential of that multiple of its push."""
    for axis, fraction in splitting(grid.dim):
        p, _ = relax(hops[axis], grid, axis, p, fraction * h, tilt)
    return p


def relax(hops: Hops, grid: Grid, axis: int, p: Array, h: Array, tilt: Array | None = None) -> tuple[Array, Array]:
    """The density after a step along one axis, and its mean during the step (that one with the axis moved to the end)."""
    moved = jnp.moveaxis(p, axis, -1)
    tilted = tilt is not None and hops.push is not None
    # Complex weights of real hops are two right-hand sides.
    pair = jnp.iscomplexobj(moved) and not (tilted and jnp.iscomplexobj(tilt))
    q = jnp.stack([moved.real, moved.imag], axis=-1) if pair else moved[..., None]
    matrix = _matrix(hops, grid.boundary[axis], tilt if tilted else None, q.dtype)
    h = jnp.asarray(h, q.dtype)
    solve = _solver(matrix, _GAMMA * h)
    first = solve(q)
    second = solve(q + (1.0 - _GAMMA) * h * _change(matrix, first))
    # A mean of the two stages' densities, through the fluxes: what leaves a cell enters its neighbour, to the last bit.
    stage = (1.0 - _GAMMA) * first + _GAMMA * second
    q = q + h * _change(matrix, stage)
    join = (lambda a: lax.complex(a[..., 0], a[..., 1])) if pair else (lambda a: a[..., 0])
    return jnp.moveaxis(join(q), -1, axis), join(stage)


def fluxes(hops: Hops, p: Array) -> Array:
    """What passes each upper face in unit time, for a density whose last axis is that of the hops."""
    return hops.up * p - hops.down * jnp.roll(p, -1, axis=-1)


def face_shape(grid: Grid, axis: int) -> tuple[int, ...]:
    """The shape of the cells with one axis moved to the end."""
    return tuple(n for i, n in enumerate(grid.cells) if i != axis) + (grid.cells[axis],)


class _Matrix(NamedTuple):
    """A generator in the precision of what it is applied to, with what a tilt adds to the gains."""

    up: Array
    down: Array
    gain_up: Array | None
    gain_down: Array | None
    kind: str


def _matrix(hops, kind, tilt, dtype):
    up, down = hops.up.astype(dtype), hops.down.astype(dtype)
    if tilt is None:
        return _Matrix(up, down, None, None, kind)
    push, tilt = hops.push.astype(dtype), jnp.asarray(tilt, dtype)
    return _Matrix(up, down, up * jnp.expm1(tilt * push), down * jnp.expm1(-tilt * push), kind)


def _change(matrix, q):
    """The generator applied to `q`, whose last axis counts right-hand sides: differences of fluxes, so that nothing is lost."""
    above = jnp.roll(q, -1, axis=-2)
    flux = matrix.up[..., None] * q - matrix.down[..., None] * above
    if matrix.kind == "open":
        flux = flux.at[..., -1, :].set(0.0)
    change = jnp.roll(flux, 1, axis=-2) - flux
    if matrix.kind == "open":
        change = change.at[..., -1, :].add(-matrix.up[..., -1:] * q[..., -1, :]).at[..., 0, :].add(-matrix.down[..., -1:] * q[..., 0, :])
    if matrix.gain_up is not None:
        change = change + jnp.roll(matrix.gain_up[..., None] * q, 1, axis=-2) + matrix.gain_down[..., None] * above
    return change


def _solver(matrix, h):
    r"""The solution of $(1 - hL)\,x = q$ along the second last axis of $q$, as a linear function of $q$."""
    diagonal = 1.0 + h * (matrix.up + jnp.roll(matrix.down, 1, axis=-1))
    up, down = matrix.up, matrix.down
    if matrix.gain_up is not None:
        up, down = up + matrix.gain_up, down + matrix.gain_down
    lower, upper = -h * jnp.roll(up, 1, axis=-1), -h * down
    first, last = lower[..., 0], upper[..., -1]
    lower, upper = lower.at[..., 0].set(0.0), upper.at[..., -1].set(0.0)
    if matrix.kind != "periodic":
        return lambda q: tridiagonal_solve(lower, diagonal, upper, q)
    # Sherman and Morrison: the two corners as a rank-one correction of a tridiagonal matrix.
    pivot = -diagonal[..., 0]
    column = jnp.zeros_like(diagonal).at[..., 0].set(pivot).at[..., -1].set(last)
    diagonal = diagonal.at[..., 0].add(-pivot).at[..., -1].add(-first * last / pivot)
    project = lambda a: a[..., 0, :] + (first / pivot)[..., None] * a[..., -1, :]
    y = tridiagonal_solve(lower, diagonal, upper, column[..., None])
    correction = y / (1.0 + project(y))[..., None, :]

    def solve(q):
        x = tridiagonal_solve(lower, diagonal, upper, q)
        return x - correction * project(x)[..., None, :]

    return solve


def _hops(landscape, field, grid, axis, scale, diffusion):
    dx, kind, shape = grid.spacing[axis], grid.boundary[axis], face_shape(grid, axis)
    centres = jnp.moveaxis(grid.centres, axis, -2)
    shifted = lambda places, part: places + jnp.broadcast_to(jnp.zeros(grid.dim, dx.dtype).at[axis].set(part * dx), places.shape)
    first, last = centres[..., 0, :], centres[..., -1, :]
    affinity, push = jnp.zeros(shape, dx.dtype), None
    out_first = out_last = jnp.zeros(shape[:-1], dx.dtype)
    if landscape is not None:
        values = _over(landscape, centres)
        affinity = scale * (values - jnp.roll(values, -1, axis=-1))
        if kind == "open":
            out_first = scale * (values[..., 0] - _over(landscape, shifted(first, -0.5)))
            out_last = scale * (values[..., -1] - _over(landscape, shifted(last, 0.5)))
    if field is not None:
        along = lambda places: _over(lambda x: field(x)[axis], places)
        at_cells = along(centres)
        # Simpson's rule over the way from one middle to the next.
        push = (at_cells + 4.0 * along(shifted(centres, 0.5)) + jnp.roll(at_cells, -1, axis=-1)) * dx / 6.0
        affinity = affinity + scale * push
        if kind == "open":
            out_first = out_first - scale * 0.5 * dx * along(shifted(first, -0.25))
            out_last = out_last + scale * 0.5 * dx * along(shifted(last, 0.25))
    inner = jnp.ones(shape[-1], bool) if kind == "periodic" else jnp.arange(shape[-1]) < shape[-1] - 1
    only_inner = lambda a: jnp.where(jnp.broadcast_to(inner, shape), a, 0.0)
    rate = diffusion / dx**2
    up, down = only_inner(rate * bernoulli(-affinity)), only_inner(rate * bernoulli(affinity))
    if kind == "open":
        # The density is zero on the wall, half a cell away.
        up, down = up.at[..., -1].set(2.0 * rate * bernoulli(-out_last)), down.at[..., -1].set(2.0 * rate * bernoulli(-out_first))
    return Hops(up, down, only_inner(affinity), None if push is None else only_inner(push), diffusion)


def bernoulli(z: Array) -> Array:
    r"""$z/(e^z - 1)$, with its series near zero and without overflow."""
    small = jnp.abs(z) < 1e-2
    size = jnp.where(small, 1.0, jnp.abs(z))
    series = 1.0 - z / 2.0 + z**2 / 12.0 - z**4 / 720.0
    return jnp.where(small, series, -size * jnp.exp(-size) / jnp.expm1(-size) + jnp.where(z < 0, size, 0.0))


def _over(function, places):
    """`function` of every place, in the shape of the places."""
    return jax.vmap(function)(places.reshape(-1, places.shape[-1])).reshape(places.shape[:-1])


def _landscape(dynamics, t):
    lam = dynamics.protocol(t)
    return lambda x: energy(dynamics.potential, x, lam)


def _per_axis(value, grid, name, rule):
    require(jnp.shape(value) in ((), (grid.dim,)), name, rule, f"shape {jnp.shape(value)}")
    return jnp.broadcast_to(jnp.asarray(value, grid.low.dtype), (grid.dim,))
