"""An ensemble cut into blocks, run on all devices, block after block, and seen by statistics only."""

import functools as ft
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray as Key, PyTree

from thermojax._array import as_float, Scalar
from thermojax._check import require
from thermojax.distributions import AbstractDistribution, sample_in_pairs
from thermojax.ensemble import accumulate_prepared, Functional, prepare
from thermojax.phase import Phase, State
from thermojax.steppers import AbstractStepper
from thermojax.streaming._statistics import AbstractStatistic, shown_of, widened

BLOCK = 4096
"""Trajectories in a block, unless told otherwise."""
# Blocks that a device works on at once. A step of too few costs more in overhead than in arithmetic: on one core of a CPU 4 blocks of a
# quartic trap reach 0.8 and 13 reach 0.95 of the rate of very many. An accelerator needs some 1e5 trajectories to be busy.
_AT_ONCE = {"cpu": 16}
_AT_ONCE_ELSEWHERE = 64
# Units of work that a device is given ahead of what the host has merged.
_AHEAD = 2


class Walk(NamedTuple):
    """One path of `dynamics` from `t0` to `t1`: its ends, and the sums of the functionals along it."""

    dynamics: Any
    t0: Scalar
    t1: Scalar
    x0: State
    x1: State
    sums: Any


def sums_of(walk: Walk) -> Any:
    """What statistics see unless told otherwise: the sums."""
    return walk.sums


def stream(
    statistics: PyTree[AbstractStatistic],
    functionals: PyTree[Functional],
    dynamics: Any,
    initial: AbstractDistribution | Float[ArrayLike, " dim"] | Phase,
    ts: ArrayLike,
    *,
    samples: int,
    read: Callable[[Walk], Any] = sums_of,
    stepper: AbstractStepper | None = None,
    noise: str = "independent",
    block: int = BLOCK,
    devices: Sequence[Any] | None = None,
    part: range | None = None,
    progress: Callable[[int], None] = lambda done: None,
    key: Key,
) -> PyTree[AbstractStatistic]:
    """Statistics of an ensemble of any size, in memory that does not depend on it.

    Args:
        statistics: One statistic, or a tuple, dictionary, … of them; see `thermojax.streaming`. What they have seen already stays in
            them.
        functionals: What is summed along each path, as for `accumulate`.
        dynamics: What moves.
        initial: Where the paths start: a density, or one state for all.
        ts: Strictly increasing times, shape ``(time,)``; every interval is one step.
        samples: Number of trajectories.
        read: What the statistics see of a `Walk`: numbers in the structure of `statistics`, or in that of its upper part (one number for
            several statistics). The sums if omitted.
        stepper: As for `accumulate`.
        noise: "independent" or "antithetic", as for `accumulate`; the second half of each block mirrors the first, its start too if
            `initial` is Gaussian. Error bars then need statistics that are `paired`; those of a `Histogram`
            take the trajectories as independent.
        block: Trajectories in a block; part of what the random numbers depend on.
        devices: Where to run; all devices of all processes if omitted. The result does not depend on it.
        part: Numbers of the blocks that are run, all if omitted; the parts of a run that is interrupted and resumed.
        progress: Called with the number of blocks done.
        key: Random key; block number b draws from ``fold_in(key, b)``.

    Returns:
        The statistics, of these trajectories.

    Raises:
        TypeError, ValueError: if shapes, times or temperatures have no meaning, or a statistic does not fit what it is to see.
    """
    each = _run(
        [statistics], functionals, [(dynamics, initial, ts)], samples, read, stepper, noise, block, devices, part, progress, key=key
    )
    return each[0]


def stream_each(
    statistics: Sequence[PyTree[AbstractStatistic]],
    functionals: PyTree[Functional],
    models: Sequence[tuple[Any, AbstractDistribution | ArrayLike | Phase, ArrayLike]],
    *,
    samples: int,
    read: Callable[[Walk], Any] = sums_of,
    stepper: AbstractStepper | None = None,
    noise: str = "independent",
    block: int = BLOCK,
    devices: Sequence[Any] | None = None,
    part: range | None = None,
    at_once: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    key: Key,
) -> list[PyTree[AbstractStatistic]]:
    """`stream` for several models that differ in numbers only, with the same noise: one compiled function, points side by side.

    Args:
        statistics: As for `stream`, for each model; they too differ in numbers only.
        functionals: As for `stream`, the same for all.
        models: Dynamics, start and times of each point.
        samples: Number of trajectories of each point.
        read: As for `stream`.
        stepper: As for `stream`.
        noise: As for `stream`.
        block: As for `stream`.
        devices: As for `stream`.
        part: As for `stream`.
        at_once: Points that run side by side; as many as keep a device busy if omitted. The others wait.
        progress: Called with the number of blocks done, of all points.
        key: As for `stream`; the same for every point.

    Returns:
        The statistics of each point: to rounding those of `stream` with the same key.

    Raises:
        TypeError, ValueError: as for `stream`, or if the models differ in more than numbers.
    """
    require(len(models) >= 1, "models", "be at least one", len(models))
    require(len(statistics) == len(models), "statistics", f"be a sequence of one for each of the {len(models)} models", len(statistics))
    at_once = _points_at_once(len(models), devices) if at_once is None else at_once
    require(at_once >= 1, "at_once", "be at least 1", at_once)
    found = []
    number = -(-samples // block) if part is None else len(part)
    for first in range(0, len(models), at_once):
        group, seen = (list(a[first : first + at_once]) for a in (models, statistics))
        done = ft.partial(_report, progress, first * number, len(group))
        found += _run(seen, functionals, group, samples, read, stepper, noise, block, devices, part, done, key=key)
    return found


def _report(progress, before, times, done):
    progress(before + times * done)


def _run(statistics, functionals, models, samples, read, stepper, noise, block, devices, part, progress, *, key):
    require(samples >= 2, "samples", "be at least 2", samples)
    require(noise != "antithetic" or samples % 2 == 0, "samples", "be even for antithetic noise", samples)
    require(block >= 2 and block % 2 == 0, "block", "be an even number", block)
    devices = tuple(jax.devices() if devices is None else devices)
    require(len(devices) >= 1, "devices", "name at least one", "none")
    blocks = -(-samples // block)
    chosen = range(blocks) if part is None else part
    require(len(chosen) >= 1 and chosen.step == 1, "part", "be consecutive numbers of blocks", part)
    require(chosen[0] >= 0 and chosen[-1] < blocks, "part", f"lie in the {blocks} blocks of the ensemble", part)
    checked = []
    for dynamics, initial, ts in models:
        initial = _as_arrays(initial)
        kernel, dynamics, _, ts = prepare(dynamics, _start(initial, 2, noise, jr.key(0)), ts, stepper=stepper, noise=noise)
        checked.append((kernel, dynamics, initial, ts))
    # The last block may be smaller; blocks of a small ensemble are.
    size, points = min(block, samples + samples % 2), len(models)
    unit = _Unit(functionals, read, noise, size, shown_of(blocks, size), points > 1)
    leaves, structure = jax.tree.flatten(statistics, is_leaf=_is_statistic)
    require(all(map(_is_statistic, leaves)), "statistics", "be statistics, or a tuple or dictionary of such", statistics)
    entries = [(_unseen(tree), *model) for tree, model in zip(statistics, checked, strict=True)]
    entry = _stacked(entries) if points > 1 else entries[0]
    at_once = _blocks_at_once(blocks, devices[0].platform, points)
    done, totals = 0, [leaf.data for leaf in leaves]
    # Plain functions: a method of a module is itself a module, which takes longer to make than to call.
    merges = [ft.partial(type(leaf).merge, leaf) for leaf in leaves]
    for _, counts, found in _units(unit, entry, chosen, samples, at_once, devices, key):
        wide = [widened(data) for data in found]
        for k in np.flatnonzero(counts):
            for place, (merge, data) in enumerate(zip(merges, wide, strict=True)):
                one = {name: a[k] for name, a in data.items()}
                totals[place] = one if totals[place] is None else merge(totals[place], one)
        done += np.count_nonzero(counts)
        progress(int(done))
    return jax.tree.unflatten(structure, [leaf.seen(total) for leaf, total in zip(leaves, totals, strict=True)])


class _Unit(NamedTuple):
    """What does not change between blocks."""

    functionals: Any
    read: Callable
    noise: str
    size: int
    shown: int
    stacked: bool


def _units(unit, entry, chosen, samples, at_once, devices, key) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
    """The data of the chosen blocks, in their order, some blocks at a time: their numbers, their sizes and what each statistic has of them.

    Work goes round the devices; each is some units ahead of what is read here.
    """
    mine, shares = jax.process_index(), Counter(device.process_index for device in devices)
    own = [(place, device) for place, device in enumerate(devices) if device.process_index == mine]
    alone = set(shares) == {mine}
    equal = len(shares) == jax.process_count() and len(set(shares.values())) == 1
    require(alone or equal, "devices", "be those of this process, or as many of each process", dict(shares))
    owners = [place for process in sorted(shares) for place, device in enumerate(devices) if device.process_index == process]
    arrays, rest = eqx.partition((unit, entry, key), eqx.is_array)
    ready = {place: jax.device_put(arrays, device) for place, device in own}
    leaves, structure = jax.tree.flatten(rest)
    blocks = ft.partial(_blocks, tuple(leaves), structure)
    rounds = -(-len(chosen) // (at_once * len(devices)))
    waiting: deque = deque()

    def numbers(turn, place):
        ids = chosen.start + (turn * len(devices) + place) * at_once + np.arange(at_once)
        return ids, np.where(ids < chosen.stop, np.clip(samples - ids.astype(np.int64) * unit.size, 0, unit.size), 0)

    def start(turn, place, device):
        ids, counts = numbers(turn, place)
        if alone and not counts.any():
            return None
        return blocks(ready[place], *jax.device_put((ids.astype(np.uint32), counts.astype(np.int32)), device))

    def found(turn, row):
        """What each device has found in one round, in the order of the blocks."""
        row = [jax.device_get(data) for data in row]
        data = dict(zip(owners, row if alone else _of_everyone(row), strict=True))
        return [(*numbers(turn, place), data[place]) for place in sorted(data) if numbers(turn, place)[1].any()]

    for turn in range(rounds):
        if turn == 0:
            # Each device compiles for itself: what the first has traced the others compile side by side.
            first = start(turn, *own[0])
            with ThreadPoolExecutor(len(own)) as pool:
                row = [first, *pool.map(lambda where: start(0, *where), own[1:])]
        else:
            row = [start(turn, place, device) for place, device in own]
        waiting.append((turn, row))
        if len(waiting) > _AHEAD or turn == rounds - 1:
            while len(waiting) > (_AHEAD if turn < rounds - 1 else 0):
                yield from found(*waiting.popleft())


def _of_everyone(row):
    """What the devices of all processes have, process after process: sent as bytes, so that no type is changed on the way."""
    from jax.experimental import multihost_utils

    leaves, structure = jax.tree.flatten(row)
    leaves = [np.asarray(leaf) for leaf in leaves]
    sent = np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8)
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    everyone = []
    for received in np.asarray(multihost_utils.process_allgather(sent)):
        parts = np.split(received, ends[:-1])
        arrays = [np.frombuffer(part.tobytes(), leaf.dtype).reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        everyone += jax.tree.unflatten(structure, arrays)
    return everyone


# Not `eqx.filter_jit`, which waits for the result: devices would take turns.
@ft.partial(jax.jit, static_argnums=(0, 1))
def _blocks(leaves, structure, known, ids, counts):
    """The data of some blocks, side by side: for each point and statistic a dictionary of arrays with a first axis ``block``."""
    unit, entry, key = eqx.combine(known, jax.tree.unflatten(structure, leaves))

    def one(entry, i, count):
        statistics, stepper, dynamics, initial, ts = entry
        start_key, noise_key = jr.split(jr.fold_in(key, i))
        x0s = _start(initial, unit.size, unit.noise, start_key)
        x1s, sums = accumulate_prepared(unit.functionals, stepper, dynamics, x0s, ts, noise=unit.noise, key=noise_key)
        values = jax.vmap(lambda *found: unit.read(Walk(dynamics, ts[0], ts[-1], *found)))(x0s, x1s, sums)
        places = jnp.arange(unit.size, dtype=count.dtype)
        # Of mirror images both or none.
        valid = places % (unit.size // 2) < count // 2 if unit.noise == "antithetic" else places < count
        return _seen(statistics, values, valid, unit.shown)

    side_by_side = jax.vmap(one, in_axes=(None, 0, 0))
    if not unit.stacked:
        return side_by_side(entry, ids, counts)
    arrays, static = eqx.partition(entry, eqx.is_array)
    found = jax.vmap(lambda a: side_by_side(eqx.combine(a, static), ids, counts))(arrays)
    points = jax.tree.leaves(arrays)[0].shape[0]
    return [jax.tree.map(lambda a, p=p: a[p], data) for p in range(points) for data in found]


def _seen(statistics, values, valid, shown):
    """What each statistic has of one block."""
    return [statistic.of(value, valid, shown) for statistic, value in _pairs(statistics, values)]


def _pairs(statistics, values):
    """Each statistic with what it sees; a number is seen by all the statistics that are below its place in the structure."""
    if _is_statistic(statistics):
        return [(statistics, values)]
    below, structure = jax.tree.flatten(statistics, is_leaf=lambda node: node is not statistics)
    rule = "be statistics in the structure of what they see, or in one that continues it"
    require(len(below) >= 1 and below != [statistics], "statistics", rule, f"{statistics!r}")
    if isinstance(values, jax.Array):
        return [pair for node in below for pair in _pairs(node, values)]
    parts, found = jax.tree.flatten(values, is_leaf=lambda node: node is not values)
    require(structure == found, "statistics", rule, f"{structure} where they see {found}")
    return [pair for node, part in zip(below, parts, strict=True) for pair in _pairs(node, part)]


def _is_statistic(node):
    return isinstance(node, AbstractStatistic)


def _start(initial, count, noise, key):
    if not isinstance(initial, AbstractDistribution):
        return jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(a), (count, *jnp.shape(a))), initial)
    return sample_in_pairs(initial, count, key=key) if noise == "antithetic" else initial.sample(count, key=key)


def _unseen(statistics):
    """The statistics without what they have seen, which no device needs to know."""
    forget = lambda s: eqx.tree_at(lambda t: t.data, s, None, is_leaf=lambda d: d is s.data)
    return jax.tree.map(forget, statistics, is_leaf=_is_statistic)


def _as_arrays(initial):
    if isinstance(initial, AbstractDistribution):
        return initial
    return jax.tree.map(as_float, initial) if isinstance(initial, Phase) else as_float(initial)


def _stacked(entries):
    """Statistics and models of all points as one, with a first axis ``point`` in every array."""
    structures = {jax.tree.structure(entry) for entry in entries}
    require(len(structures) == 1, "models", "differ in numbers only", " and ".join(map(str, structures)))
    return jax.tree.map(lambda *leaves: _stack(leaves), *entries)


def _stack(leaves):
    first = leaves[0]
    if not eqx.is_array(first):
        same = all(leaf is first or leaf == first for leaf in leaves)
        require(same, "models", "differ in numbers only", f"{first} and others")
        return first
    require(all(jnp.shape(leaf) == first.shape for leaf in leaves), "models", "have arrays of the same shapes", "others")
    return jnp.stack(leaves)


def _blocks_at_once(blocks, platform, points):
    """As many as keep a device busy, with the last unit as full as can be; of the size of the job alone, since bits may depend on it."""
    most = max(1, _AT_ONCE.get(platform, _AT_ONCE_ELSEWHERE) // points)
    few = range(min(blocks, max(1, most // 4)), min(blocks, most) + 1)
    return min(few, key=lambda at_once: -(-blocks // at_once) * (at_once + 1))


def _points_at_once(points, devices):
    platform = (jax.devices() if devices is None else devices)[0].platform
    return min(points, _AT_ONCE.get(platform, _AT_ONCE_ELSEWHERE))
