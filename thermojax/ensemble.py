r"""Ensembles: many independent trajectories of one dynamics, as one compiled scan over the time grid.

Noise. Step k of an ensemble draws all its normals at once from ``fold_in(key, k)``: a trajectory is a function of the key, its place in the
ensemble and the grid alone, so that the same call gives the same numbers and two models can share their noise. Precision is that of `x0s`:
models and times are cast to it.

With ``noise="antithetic"`` the second half of an ensemble sees minus the normals of the first: means of functions that are nearly linear
in the noise vary less, and the two halves are no longer independent. Other noise is an `AbstractNoise`, for instance the quasi-random
bridges of `thermojax.variance`: however it is made, every single path must see independent standard normals.

Memory. `accumulate` keeps the current configurations and the running sums, whatever the number of steps. Reverse-mode differentiation
stores configurations, sums and normals of every step and recomputes the rest; `segments` cuts the storage from ``len(ts)`` to about
``len(ts) / segments + segments`` steps for one more forward pass. Forward mode (`jax.jvp`, `jax.jacfwd`) stores nothing.

Devices. Give `x0s` sharded along their first axis, ``jax.device_put(x0s, NamedSharding(mesh, PartitionSpec("sample")))`` with a
`jax.sharding.Mesh`, whose axes are automatic: each device moves its own trajectories and draws their normals, results stay sharded, and
JAX sums the gradient of a mean over the devices. Numbers are the same to rounding; `thermojax.streaming` keeps them to the bit.
"""

import abc
import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key, PyTree

from thermojax._array import cast, Scalar
from thermojax._check import check_times, ensure, library_of, require
from thermojax._noise import normals
from thermojax.dynamics import AbstractDynamics, Underdamped
from thermojax.phase import check_states, first_of, Phase, position_of, State, States
from thermojax.steppers import AbstractStepper, advance, EulerMaruyama, Splitting


class Step(NamedTuple):
    """One step of one particle, as made by `stepper` on `dynamics`: all that a functional may look at."""

    stepper: AbstractStepper
    dynamics: Any
    t0: Scalar
    t1: Scalar
    x0: State
    x1: State
    zs: Float[Array, "normal dim"] | None = None
    """The normals that drove the step; none for a stored path."""

    @property
    def t(self) -> Scalar:
        """The time at which the stepper read the coefficients."""
        return self.stepper.clock_at(self.t0, self.t1)


class AbstractNoise(eqx.Module):
    """The normals of an ensemble, made step by step, where they are not simply drawn.

    Every single path must see independent standard normals; the paths may depend on each other.
    """

    @abc.abstractmethod
    def start(self, shape: tuple[int, int, int], steps: int, dtype: Any) -> PyTree:
        """What is carried from step to step, before the first of `steps`; `shape` is ``(sample, normal, dim)``.

        Raises:
            ValueError: if this noise is not meant for such an ensemble.
        """

    @abc.abstractmethod
    def draw(self, held: PyTree, k: Array, shape: tuple[int, int, int], steps: int, dtype: Any, *, key: Key) -> tuple[Array, PyTree]:
        """The normals of step `k`, shape `shape`, and what is carried on; `key` is that of the whole ensemble."""


Functional = Callable[[Step], Array]
NOISES = ("independent", "antithetic")


def simulate(
    dynamics: AbstractDynamics,
    x0s: ArrayLike | Phase,
    ts: ArrayLike,
    *,
    substeps: int = 1,
    stepper: AbstractStepper | None = None,
    noise: str | AbstractNoise = "independent",
    key: Key,
) -> Float[Array, "time sample dim"] | Phase:
    """Trajectories of independent particles at the times `ts`.

    Args:
        dynamics: What moves; see `thermojax.dynamics`.
        x0s: Initial configurations, shape ``(sample, dim)``, at ``ts[0]``; a `Phase` of such arrays for underdamped dynamics.
        ts: Strictly increasing times at which the configurations are returned, shape ``(time,)``.
        substeps: Equal steps between two of these times.
        stepper: One-step kernel; if omitted, `EulerMaruyama`, or for underdamped dynamics the `Splitting` "BAOAB".
        noise: "independent", or "antithetic" for an even number of particles whose second half sees minus the noise of the first;
            or an `AbstractNoise`.
        key: Random key of the whole ensemble; step k draws from ``fold_in(key, k)``.

    Returns:
        Configurations at every time of `ts`: memory grows as ``len(ts)``; use `accumulate` for sums.

    Raises:
        TypeError, ValueError: if shapes, times or temperatures have no meaning.
    """
    require(substeps >= 1, "substeps", "be at least 1", substeps)
    stepper, dynamics, x0s, ts = _prepare(stepper, dynamics, x0s, ts, noise)
    return _simulate(stepper, dynamics, x0s, ts, substeps, noise, key)


def accumulate(
    functionals: PyTree[Functional],
    dynamics: AbstractDynamics,
    x0s: ArrayLike | Phase,
    ts: ArrayLike,
    *,
    stepper: AbstractStepper | None = None,
    segments: int = 1,
    noise: str | AbstractNoise = "independent",
    key: Key,
) -> tuple[States, PyTree[Float[Array, "sample ..."]]]:
    """Final states, and the sum of each functional along each path, in memory independent of ``len(ts)``.

    Args:
        functionals: One functional of a `Step`, or a tuple, dictionary, … of them; see `thermojax.functionals`.
        dynamics: What moves.
        x0s: Initial configurations, shape ``(sample, dim)``, at ``ts[0]``.
        ts: Strictly increasing times, shape ``(time,)``; every interval is one step.
        stepper: One-step kernel; if omitted, `EulerMaruyama`, or for underdamped dynamics the `Splitting` "BAOAB".
        segments: Number of stretches that reverse-mode differentiation recomputes one by one, to save memory.
        noise: As for `simulate`.
        key: Random key; the paths are those of `simulate` with the same key and grid.

    Returns:
        The final states, and the sums in the structure of `functionals`.

    Raises:
        TypeError, ValueError: if shapes, times or temperatures have no meaning, or a functional does not fit the dynamics.
    """
    require(segments >= 1, "segments", "be at least 1", segments)
    stepper, dynamics, x0s, ts = _prepare(stepper, dynamics, x0s, ts, noise)
    return _accumulate(functionals, stepper, dynamics, x0s, ts, segments, noise, key)


def prepare(
    dynamics: Any, x0s: Any, ts: Any, *, stepper: AbstractStepper | None = None, noise: str | AbstractNoise = "independent"
) -> tuple[AbstractStepper, Any, States, Float[Array, " time"]]:
    """Stepper, dynamics, states and times as `accumulate` uses them: checked, and in the precision of the states.

    Raises:
        TypeError, ValueError: what `accumulate` raises.
    """
    return _prepare(stepper, dynamics, x0s, ts, noise)


def accumulate_prepared(
    functionals: PyTree[Functional],
    stepper: AbstractStepper,
    dynamics: Any,
    x0s: States,
    ts: Float[Array, " time"],
    *,
    noise: str = "independent",
    key: Key,
) -> tuple[States, PyTree[Float[Array, "sample ..."]]]:
    """`accumulate` of what `prepare` has returned, without looking at it again: for many calls in compiled code, since a check there makes
    a device wait for the host.
    """
    return _accumulate(functionals, stepper, dynamics, x0s, ts, 1, noise, key)


def along(
    functional: Functional,
    dynamics: AbstractDynamics,
    ts: Float[Array, " time"],
    xs: Float[Array, "time dim"] | Phase,
    *,
    stepper: AbstractStepper | None = None,
) -> Array:
    """Sum of `functional` along one stored path, shape ``(time, dim)``, as made by `stepper`."""
    stepper = stepper_for(dynamics) if stepper is None else stepper
    increments = jax.vmap(lambda t0, t1, x0, x1: functional(Step(stepper, dynamics, t0, t1, x0, x1)))
    earlier, later = jax.tree.map(lambda a: a[:-1], xs), jax.tree.map(lambda a: a[1:], xs)
    return jnp.sum(increments(ts[:-1], ts[1:], earlier, later), axis=0)


def refine(ts: Float[Array, " time"], substeps: int) -> Float[Array, " finer"]:
    """The grid that `simulate` steps on: every interval of `ts` cut into `substeps` equal parts."""
    inner = jnp.arange(substeps, dtype=ts.dtype) / substeps
    fine = ts[:-1, None] + jnp.outer(ts[1:] - ts[:-1], inner)
    return jnp.append(fine.ravel(), ts[-1])


def stepper_for(dynamics: Any) -> AbstractStepper:
    """The stepper that is used if none is given."""
    return Splitting() if isinstance(dynamics, Underdamped) else EulerMaruyama()


def _normals(stepper, xs, key, noise):
    """The noise of one step of a block of particles, drawn at once."""
    count, dim = position_of(xs).shape
    drawn = count if noise == "independent" else count // 2
    shape, dtype = (drawn, stepper.normals, dim), position_of(xs).dtype
    zs = normals(key, shape, dtype)
    if noise == "antithetic":
        # A product with both signs, which compiles to one fast loop; two arrays joined took five times as long.
        zs = (jnp.asarray([1.0, -1.0], dtype)[:, None, None, None] * zs[None]).reshape(count, *shape[1:])
    return checkpoint_name(zs, "normals")


def _noise_of(noise, stepper, x0s, steps, key):
    """What `noise` carries at first, and the function that makes the normals of a step and what is carried on."""
    if not isinstance(noise, AbstractNoise):
        return None, lambda held, xs, k, step_key: (_normals(stepper, xs, step_key, noise), held)
    shape, dtype = (position_of(x0s).shape[0], stepper.normals, position_of(x0s).shape[1]), position_of(x0s).dtype

    def draw(held, xs, k, step_key):
        zs, held = noise.draw(held, k, shape, steps, dtype, key=key)
        return checkpoint_name(zs, "normals"), held

    return noise.start(shape, steps, dtype), draw


def _prepare(stepper, dynamics, x0s, ts, noise):
    """Everything checked and in one precision."""
    x0s = check_states(x0s)
    known = isinstance(noise, AbstractNoise) or noise in NOISES
    require(known, "noise", "be 'independent' or 'antithetic'", repr(noise))
    count = position_of(x0s).shape[0]
    antithetic = isinstance(noise, str) and noise == "antithetic"
    require(not antithetic or count % 2 == 0, "x0s", "hold an even number of states for antithetic noise", count)
    dtype = position_of(x0s).dtype
    ts = check_times(ts, dtype)
    stepper, dynamics = cast((stepper_for(dynamics) if stepper is None else stepper, dynamics), dtype)
    bath = getattr(dynamics, "bath", None)
    if bath is not None:
        betas = jax.vmap(bath)(ts)
        # Infinity is a bath without noise; what is smaller than this has no finite temperature.
        good = library_of(betas).asarray(betas) >= float(jnp.finfo(dtype).tiny)
        ts = ensure(ts, good, "bath", "return a positive beta at every time", betas)
    mobility = getattr(dynamics, "mobility", None)
    if mobility is not None:
        mobilities = jax.vmap(mobility)(ts)
        known = library_of(mobilities).asarray(mobilities)
        ts = ensure(ts, (known > 0) & (known < float("inf")), "mobility", "be positive", mobilities)
    return stepper, dynamics, stepper.check(dynamics, ts, x0s), ts


@eqx.filter_jit
def _simulate(stepper, dynamics, x0s, ts, substeps, noise, key):
    fine = refine(ts, substeps)
    held, draw = _noise_of(noise, stepper, x0s, fine.shape[0] - 1, key)

    def move(carry, inputs):
        (xs, held), (t0, t1, step_key, k) = carry, inputs
        zs, held = draw(held, xs, k, step_key)
        return (jax.vmap(ft.partial(advance, stepper, dynamics, t0, t1))(xs, zs), held), None

    def interval(carry, inputs):
        carry, _ = lax.scan(_sparing(move), carry, inputs)
        return carry, carry[0]

    _, later = lax.scan(interval, (x0s, held), jax.tree.map(lambda a: a.reshape(-1, substeps), _steps(key, fine)))
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x0s, later)


@eqx.filter_jit
def _accumulate(functionals, stepper, dynamics, x0s, ts, segments, noise, key):
    def increments(t0, t1, x0, x1, zs):
        step = Step(stepper, dynamics, t0, t1, x0, x1, zs)
        return jax.tree.map(lambda functional: functional(step), functionals, is_leaf=callable)

    def move(carry, inputs):
        (xs, totals, held), (t0, t1, step_key, k) = carry, inputs
        zs, held = draw(held, xs, k, step_key)
        ys = jax.vmap(ft.partial(advance, stepper, dynamics, t0, t1))(xs, zs)
        gains = jax.vmap(ft.partial(increments, t0, t1))(xs, ys, zs)
        return (ys, jax.tree.map(jnp.add, totals, gains), held), None

    held, draw = _noise_of(noise, stepper, x0s, ts.shape[0] - 1, key)
    move = _sparing(move)
    normals = jax.ShapeDtypeStruct((stepper.normals, position_of(x0s).shape[1]), position_of(x0s).dtype)
    x0 = first_of(x0s)
    one = jax.eval_shape(ft.partial(increments, ts[0], ts[1]), x0, x0, normals)
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct((position_of(x0s).shape[0], *s.shape), s.dtype), one)
    carry = (x0s, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), held)
    return _scan_in_segments(move, carry, _steps(key, ts), segments)[:2]


def _sparing(move):
    """`move` with only its carry and its normals stored for the backward pass.

    Gradients of a quartic trap took 1.5 times as long with the normals drawn again, and 2.4 times with every intermediate stored.
    """
    policy = jax.checkpoint_policies.save_only_these_names("normals")
    return jax.checkpoint(move, prevent_cse=False, policy=policy)


def _steps(key, ts):
    """Both ends, key and number of every step."""
    ks = jnp.arange(ts.shape[0] - 1)
    return ts[:-1], ts[1:], jax.vmap(ft.partial(jr.fold_in, key))(ks), ks


def _scan_in_segments(move, carry, inputs, segments):
    """A scan whose backward pass recomputes one segment after the other; the last few steps form one of their own."""
    length = inputs[0].shape[0]
    if segments == 1:
        # One step in each turn of the loop: two would win 5 % and cost the gradient 40 %.
        return lax.scan(move, carry, inputs)[0]
    size = -(-length // segments)
    whole = length // size

    def segment(carry, inputs):
        return lax.scan(move, carry, inputs)[0], None

    head = jax.tree.map(lambda a: a[: whole * size].reshape(whole, size), inputs)
    carry, _ = lax.scan(jax.checkpoint(segment, prevent_cse=False), carry, head)
    return lax.scan(move, carry, jax.tree.map(lambda a: a[whole * size :], inputs))[0]
