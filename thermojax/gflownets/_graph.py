"""All states of a small environment, and whether an environment, small or large, is sound."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray as Key

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.gflownets._environment import AbstractEnvironment, places

# States surveyed in one compiled call: one size, so that one compilation serves all levels.
_CHUNK = 512


class Graph(eqx.Module):
    """All states that can be reached, each after all those that lead to it; the first is the source."""

    states: Int[Array, "state entry"]
    """The states."""
    legal: Bool[Array, "state action"]
    """Which moves lead on."""
    children: Int[Array, "state action"]
    """Where they lead to: places in `states`; of no meaning for moves that are not legal."""
    legal_back: Bool[Array, "state action"]
    """Which moves may have led here."""
    parents: Int[Array, "state action"]
    """Where from."""
    log_rewards: Float[Array, " state"]
    r"""$\ln R$ of terminal states, $-\infty$ for the others."""
    longest: int = eqx.field(static=True)
    """Moves on the longest path."""

    @property
    def terminal(self) -> Bool[Array, " state"]:
        """Which states are ends."""
        return jnp.isfinite(self.log_rewards)

    @property
    def log_z(self) -> Scalar:
        r"""$\ln Z = \ln\sum_x R(x)$."""
        return logsumexp(self.log_rewards)

    @property
    def target(self) -> Float[Array, " state"]:
        """$R/Z$ at terminal states, zero at the others."""
        return jax.nn.softmax(self.log_rewards)

    def sample(self, n: int, *, key: Key) -> Int[Array, "sample entry"]:
        """Terminal states from $R/Z$."""
        return self.states[jr.categorical(key, self.log_rewards, shape=(n,))]


def explore(environment: AbstractEnvironment, *, limit: int = 100_000) -> Graph:
    """Find all states that can be reached from the source.

    Args:
        environment: What to explore.
        limit: States at most.

    Raises:
        ValueError: if there are more than `limit` states, or the environment is not sound; see `check_environment`.
    """
    rule = "have fewer than 2^62 vectors of states to be explored; `check_environment` samples"
    require(environment.codes < 2**62, "environment", rule, environment.codes)
    scale, size = np.asarray(places(environment.radices), np.int64), len(environment.radices)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    front, total = np.zeros((1, size), np.int32), 0
    while len(front):
        total += len(front)
        require(total <= limit, "environment", f"have at most {limit} states to be explored; raise `limit`, or sample", f"{total} or more")
        rule = "have no path of more than `length` moves, and no cycle"
        require(len(found) <= environment.length, "environment", rule, f"one of {len(found)} moves to {front[0].tolist()}")
        view = _survey_all(environment, front)
        _refuse(view, front)
        found.append((front @ scale, front))
        below = view.children[view.legal]
        front = below[np.unique(below @ scale, return_index=True)[1]]
    # A state that several levels hold comes after all that lead to it if it is put into the last one.
    levels = np.concatenate([np.full(len(codes), k) for k, (codes, _) in enumerate(found)])
    codes, states = (np.concatenate(parts) for parts in zip(*found, strict=True))
    _, last = np.unique(codes[::-1], return_index=True)
    keep = len(codes) - 1 - last
    keep = keep[np.lexsort((codes[keep], levels[keep]))]
    codes, states = codes[keep], states[keep]
    view = _survey_all(environment, states)
    order = np.argsort(codes)

    def place(neighbours, legal):
        """Where neighbours are among the states."""
        wanted = neighbours @ scale
        at = order[np.searchsorted(codes, wanted, sorter=order).clip(max=len(codes) - 1)]
        lost = legal & (codes[at] != wanted)
        rule = "come back to the source from every state by any legal backward moves"
        require(not lost.any(), "environment", rule, f"a way out at {states[lost.any(axis=1)][:1].tolist()}")
        return jnp.asarray(np.where(legal, at, 0), jnp.int32)

    return Graph(
        jnp.asarray(states),
        jnp.asarray(view.legal),
        place(view.children, view.legal),
        jnp.asarray(view.legal_back),
        place(view.parents, view.legal_back),
        jnp.asarray(np.where(view.terminal, view.log_rewards, -np.inf)),
        len(found) - 1,
    )


def check_environment(environment: AbstractEnvironment, *, limit: int = 100_000, samples: int = 1000, key: Key) -> None:
    r"""Refuse an environment that is not sound, in one sentence that names a state.

    It must have no dead end (a state that is not terminal and has no legal move) and no move from a terminal state, backward moves that
    undo the forward ones and lead to the source, paths of at most `length` moves, and finite $\ln R$ at its ends. With
    at most `limit` vectors of states all that can be reached are looked at, otherwise those on random paths.

    Args:
        environment: What to check.
        limit: Vectors of states up to which it is explored.
        samples: Random paths otherwise.
        key: Random key of these.

    Raises:
        ValueError: if it is not sound.
    """
    if environment.codes <= limit:
        explore(environment, limit=limit)
        return
    paths = np.asarray(_wander(environment, samples, key))
    states = np.unique(paths.reshape(-1, paths.shape[-1]), axis=0)
    _refuse(_survey_all(environment, states), states)
    ends = paths[-1]
    open_end = ~np.asarray(jax.vmap(environment.is_terminal)(jnp.asarray(ends)))
    rule = "have no path of more than `length` moves, and no cycle"
    require(not open_end.any(), "environment", rule, f"one that goes on at {ends[open_end][:1].tolist()}")


class _View(eqx.Module):
    """What an environment says of some states."""

    legal: Any
    children: Any
    legal_back: Any
    parents: Any
    terminal: Any
    log_rewards: Any
    undone: Any
    """Whether all legal moves can be undone, and redone."""


@eqx.filter_jit
def _survey(environment, states):
    moves = jnp.arange(environment.actions, dtype=jnp.int32)

    def survey(state):
        legal, legal_back = environment.legal(state), environment.legal_back(state)
        children = jax.vmap(lambda a: environment.step(state, a))(moves)
        parents = jax.vmap(lambda a: environment.unstep(state, a))(moves)
        back = jax.vmap(lambda s, a: jnp.all(environment.unstep(s, a) == state) & environment.legal_back(s)[a])(children, moves)
        forth = jax.vmap(lambda s, a: jnp.all(environment.step(s, a) == state) & environment.legal(s)[a])(parents, moves)
        undone = jnp.all(back | ~legal) & jnp.all(forth | ~legal_back)
        return _View(legal, children, legal_back, parents, environment.is_terminal(state), environment.log_reward(state), undone)

    return jax.vmap(survey)(states)


def _survey_all(environment, states):
    views = []
    for start in range(0, len(states), _CHUNK):
        part = states[start : start + _CHUNK]
        padded = np.concatenate([part, np.zeros((_CHUNK - len(part), part.shape[1]), part.dtype)])
        views.append(jax.tree.map(np.asarray, _survey(environment, jnp.asarray(padded))))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(states)], *views)


def _refuse(view, states):
    """Name the first state at which an environment breaks a rule."""
    leads, led, source = view.legal.any(axis=1), view.legal_back.any(axis=1), ~states.any(axis=1)
    # That every other state has a legal backward move follows from the last but one.
    for bad, rule, fault in (
        (~view.terminal & ~leads, "let every state that is not terminal move on", "a dead end"),
        (view.terminal & leads, "have no legal move from a terminal state", "one"),
        (source & led, "have no legal backward move from its source", "one"),
        (~view.undone, "have backward moves that undo the forward ones, each legal where the other was made", "others"),
        (view.terminal & ~np.isfinite(view.log_rewards), "have a finite `log_reward` at every terminal state", "another"),
    ):
        require(not bad.any(), "environment", rule, f"{fault} at {states[bad][:1].tolist()}")


@eqx.filter_jit
def _wander(environment, samples, key):
    """States along random paths, shape ``(time, sample, entry)``; a path stays where it has no legal move."""

    def move(states, k):
        legal = jax.vmap(environment.legal)(states)
        stuck = ~jnp.any(legal, axis=1)
        actions = jr.categorical(jr.fold_in(key, k), jnp.where(legal | stuck[:, None], 0.0, -jnp.inf)).astype(jnp.int32)
        states = jnp.where(stuck[:, None], states, jax.vmap(environment.step)(states, actions))
        return states, states

    start = jnp.broadcast_to(environment.source(), (samples, len(environment.radices)))
    _, later = lax.scan(move, start, jnp.arange(environment.length))
    return jnp.concatenate([start[None], later])
