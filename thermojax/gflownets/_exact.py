r"""What a generative flow network does, exactly: dynamic programming over all states of a small environment."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_scalar, Scalar
from thermojax.gflownets._environment import AbstractEnvironment
from thermojax.gflownets._graph import Graph
from thermojax.gflownets._network import GFlowNet
from thermojax.gflownets._policies import Tabular, Uniform


class Exactly(NamedTuple):
    """What `measures.assess` estimates, without an error."""

    log_z: Scalar
    r"""$\ln Z$ of the environment."""
    elbo: Scalar
    r"""$-\langle W\rangle_F = \langle\ln w\rangle_F$."""
    eubo: Scalar
    r"""$-\langle W\rangle_B$; infinite if P never makes a move of Q."""
    divergence: Scalar
    r"""$KL(P\|Q) = \langle W\rangle_F - \Delta F$, the mean dissipation."""
    reverse_divergence: Scalar
    r"""$KL(Q\|P)$."""
    efficiency: Scalar
    r"""$Z^2/\langle w^2\rangle_F$, the effective share of paths of P as importance samples."""
    l1: Scalar
    r"""$\sum_x|p(x) - R(x)/Z|$ with the probability $p$ at which paths of P end in $x$."""


@eqx.filter_jit
def exactly(model: GFlowNet, graph: Graph) -> Exactly:
    """Bounds, divergences and the law of the ends of a network, by sums over all paths.

    Args:
        model: The network.
        graph: Its environment, explored.
    """
    forward, backward = _tables(model, graph)
    # What a move of the forward policy adds to the work; nothing where it cannot be.
    onward = _onto(backward, graph)
    visits = jnp.exp(_reach(forward, graph))
    ends = jnp.where(graph.terminal, visits, 0.0)
    work = _mean(visits[:, None] * jnp.exp(forward), forward - onward, graph.legal) - _mean(ends, graph.log_rewards, graph.terminal)
    traffic = jnp.exp(_reach_back(backward, graph))
    work_back = _mean(traffic[graph.children] * jnp.exp(onward), forward - onward, graph.legal)
    work_back = work_back - _mean(graph.target, graph.log_rewards, graph.terminal)
    log_z = graph.log_z
    square = _log_moment(forward, onward, graph, as_scalar(2.0))
    return Exactly(
        log_z=log_z,
        elbo=-work,
        eubo=-work_back,
        divergence=work + log_z,
        reverse_divergence=-work_back - log_z,
        efficiency=jnp.exp(2 * log_z - square),
        l1=jnp.sum(jnp.abs(ends - graph.target)),
    )


@eqx.filter_jit
def terminal_probabilities(model: GFlowNet, graph: Graph) -> Float[Array, " state"]:
    """The probability at which paths of the forward policy end in each state, zero for states that are not terminal."""
    forward, _ = _tables(model, graph)
    return jnp.where(graph.terminal, jnp.exp(_reach(forward, graph)), 0.0)


@eqx.filter_jit
def log_moment(model: GFlowNet, graph: Graph, order: ArrayLike) -> Scalar:
    r"""$\ln\langle w^n\rangle_F = \ln\langle e^{-nW}\rangle_F$: zero for $n = 0$, $\ln Z$ for $n = 1$, whatever the policies."""
    forward, backward = _tables(model, graph)
    return _log_moment(forward, _onto(backward, graph), graph, as_scalar(order))


def balanced(environment: AbstractEnvironment, graph: Graph, *, policy: Callable | None = None) -> GFlowNet:
    r"""The network that is at the optimum of every balance loss, as a table: $P_F(s'|s) = F(s')P_B(s|s')/F(s)$.

    Args:
        environment: Where the paths run.
        graph: The same, explored.
        policy: Whose backward policy it has; uniform if omitted.

    Raises:
        ValueError: if the table is too large.
    """
    model = GFlowNet(environment, Uniform(environment.actions) if policy is None else policy, graph.log_z, graph)
    return eqx.tree_at(lambda m: m.policy, model, _balanced(model, graph, Tabular.zeros(environment)))


@eqx.filter_jit
def _balanced(model, graph, table):
    forward, backward = _tables(model, graph)
    onward = _onto(backward, graph)
    flows = _values(forward, onward, graph, as_scalar(1.0))
    rows = jax.vmap(model.environment.code)(graph.states)
    # Zero instead of minus infinity for moves that are not legal, which are masked anyway: a table that can be trained on.
    fill = lambda whole, part: whole.at[rows].set(jnp.where(jnp.isfinite(part), part, 0.0).astype(whole.dtype))
    ahead = onward + flows[graph.children] - flows[:, None]
    return Tabular(fill(table.forward, ahead), fill(table.backward, backward), fill(table.log_flow, flows), table.radices)


def _tables(model, graph):
    """Logarithms of both policies, a row for each state."""
    kernels = jax.vmap(model.kernels)(graph.states)
    return kernels.forward, kernels.backward


def _onto(backward, graph):
    """For each forward move, the logarithm of the probability of its undoing."""
    moves = jnp.arange(graph.legal.shape[1])
    return jnp.where(graph.legal, backward[graph.children, moves[None]], -jnp.inf)


def _reach(forward, graph):
    """Logarithm of the probability to visit each state; all paths are complete after as many sweeps as they have moves."""
    moves = jnp.arange(graph.legal.shape[1])
    start = jnp.where(jnp.arange(graph.states.shape[0]) == 0, 0.0, -jnp.inf).astype(forward.dtype)
    inward = jnp.where(graph.legal_back, forward[graph.parents, moves[None]], -jnp.inf)
    sweep = lambda _, logs: jnp.logaddexp(start, logsumexp(inward + logs[graph.parents], axis=1))
    return lax.fori_loop(0, graph.longest, sweep, start)


def _reach_back(backward, graph):
    """The same for paths of the backward policy from terminal states of the target."""
    start = jnp.where(graph.terminal, graph.log_rewards - graph.log_z, -jnp.inf).astype(backward.dtype)
    onward = _onto(backward, graph)
    sweep = lambda _, logs: jnp.logaddexp(start, logsumexp(onward + logs[graph.children], axis=1))
    return lax.fori_loop(0, graph.longest, sweep, start)


def _values(forward, onward, graph, order):
    r"""$\ln\langle w^n\rangle$ over the paths that go on from each state."""
    order = order.astype(forward.dtype)
    ends = jnp.where(graph.terminal, order * jnp.where(graph.terminal, graph.log_rewards, 0.0), -jnp.inf).astype(forward.dtype)
    # Moves that P never makes count for nothing, whatever the order.
    made = graph.legal & jnp.isfinite(forward)
    factors = jnp.where(made, (1 - order) * jnp.where(made, forward, 0.0) + order * jnp.where(made, onward, 0.0), -jnp.inf)
    sweep = lambda _, logs: jnp.where(graph.terminal, ends, logsumexp(factors + logs[graph.children], axis=1))
    return lax.fori_loop(0, graph.longest, sweep, ends)


def _log_moment(forward, onward, graph, order):
    return _values(forward, onward, graph, order)[0]


def _mean(weights, values, possible):
    """A sum in which what has no weight counts for nothing."""
    return jnp.sum(jnp.where(possible & (weights > 0), weights * values, 0.0))
