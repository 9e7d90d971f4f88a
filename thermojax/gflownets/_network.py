"""A generative flow network: a pair of path measures on the paths of an environment."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray as Key

from thermojax._array import as_scalar, Scalar
from thermojax._check import ensure, library_of, require
from thermojax.gflownets._environment import AbstractEnvironment, State
from thermojax.gflownets._graph import explore
from thermojax.gflownets._policies import AbstractPolicy, Logits
from thermojax.measures import AbstractPair, Walks


class Trajectories(NamedTuple):
    """Paths from the source to terminal states, in the order of the forward moves."""

    states: Int[Array, "time sample entry"]
    """The states; a path that has ended stays where it is."""
    actions: Int[Array, "step sample"]
    """The moves; of no meaning after the end."""
    moves: Int[Array, " sample"]
    """Number of moves of each path."""

    @property
    def active(self) -> Bool[Array, "step sample"]:
        """Which of the moves were made."""
        return jnp.arange(self.actions.shape[0], dtype=self.moves.dtype)[:, None] < self.moves[None]


class Kernels(NamedTuple):
    """Normalised logarithms at one state."""

    forward: Float[Array, " action"]
    r"""$\ln P_F(a|s)$, $-\infty$ for moves that are not legal."""
    backward: Float[Array, " action"]
    r"""$\ln P_B(a|s)$, likewise."""
    log_flow: Scalar
    r"""$\ln F(s)$: $\ln Z$ at the source, $\ln R$ at terminal states."""


class GFlowNet(AbstractPair):
    r"""Paths by a forward policy, and paths by a backward policy from terminal states of probability $R(x)/Z$.

    $\ell = \ln P_F(\tau) - \ln R(x) - \ln P_B(\tau|x)$, so that the weights $w = e^{-\ell} = R\,P_B/P_F$ average to $Z$. In the words of
    thermodynamics, $\beta = 1$, $\ell$ is the work $W$ and $\ln Z = -\Delta F$: $\langle e^{-W}\rangle_F = e^{-\Delta F}$ is Jarzynski's
    equality, and paths of Q, along which the reversed process does the work $-W$, obey Crooks' relation,
    $P_F(W)/P_B(W) = e^{W - \Delta F}$. The residual of trajectory balance is the dissipation $W - \Delta F$ with the learned
    $\Delta F$: a network at its optimum is reversible, with $W = \Delta F$ on every path.
    """

    environment: AbstractEnvironment
    """Where the paths run."""
    policy: Callable[[State], Logits]
    """Both policies, and the flow; see `AbstractPolicy`."""
    log_z: Scalar = eqx.field(converter=as_scalar, default=0.0)
    r"""The learned $\ln Z$, which losses read; the log-ratios leave it out."""
    target: Any = None
    """Terminal states from $R/Z$, for paths of Q: anything with ``sample(n, key=key)``, such as a `Graph` or `Given` states. If omitted
    the environment is explored, at every call."""

    def __check_init__(self):
        logits, n = eqx.filter_eval_shape(self.policy, self.environment.source()), self.environment.actions
        good = logits.forward.shape == logits.backward.shape == (n,) and logits.log_flow.shape == ()
        got = [logits.forward.shape, logits.backward.shape, logits.log_flow.shape]
        require(good, "policy", f"return two vectors of {n} logits and one number, as the environment has moves", got)

    def forward(self, samples, *, key):
        paths = self.trajectories(samples, key=key)
        return Walks(paths.states[0], paths.states[-1], self.work(paths))

    def backward(self, samples, *, key):
        start_key, move_key = jr.split(key)
        target: Any = explore(self.environment) if self.target is None else self.target
        rule = "have a method sample(n, key=key) for paths that start from it"
        require(callable(getattr(target, "sample", None)), "target", rule, type(target).__name__)
        paths = self.trajectories_to(target.sample(samples, key=start_key), key=move_key)
        return Walks(paths.states[0], paths.states[-1], self.work(paths))

    def trajectories(self, samples: int, *, exploration: ArrayLike = 0.0, key: Key) -> Trajectories:
        """Independent paths by the forward policy; with probability `exploration`, each move is any legal one instead.

        Raises:
            ValueError: if `exploration` is not a probability.
        """
        share = as_scalar(exploration)
        xp = library_of(share)
        good = (xp.asarray(share) >= 0) & (xp.asarray(share) <= 1)
        return walk(self, samples, ensure(share, good, "exploration", "lie in [0, 1]", share), key)

    def trajectories_to(self, x1s: Int[Array, "sample entry"], *, key: Key) -> Trajectories:
        """Independent paths by the backward policy, one to each of some terminal states.

        Raises:
            ValueError: if these are not terminal states.
        """
        entries = len(self.environment.radices)
        require(x1s.ndim == 2 and x1s.shape[1] == entries, "x1s", f"have shape (sample, {entries})", f"shape {x1s.shape}")
        x1s = x1s.astype(jnp.int32)
        return _walk_back(self, ensure(x1s, _are_ends(self.environment, x1s), "x1s", "be terminal states", "others"), key)

    def kernels(self, state: State) -> Kernels:
        """Normalised policies and flow at one state."""
        env, logits = self.environment, self.policy(state)
        middle = jnp.where(jnp.any(state != 0), logits.log_flow, self.log_z.astype(logits.log_flow.dtype))
        terminal = env.is_terminal(state)
        reward = jnp.where(terminal, env.log_reward(state), 0.0)
        return Kernels(
            masked_log_softmax(logits.forward, env.legal(state)),
            masked_log_softmax(logits.backward, env.legal_back(state)),
            jnp.where(terminal, reward.astype(middle.dtype), middle),
        )

    def work(self, trajectories: Trajectories) -> Float[Array, " sample"]:
        r"""$W = \ell$ along each path, the learned $\ln Z$ left out."""
        return _work(self, trajectories)

    @property
    def delta_f(self) -> Scalar:
        r"""The learned free-energy difference, $\Delta F = -\ln Z$."""
        return -self.log_z

    def dissipation(self, trajectories: Trajectories) -> Float[Array, " sample"]:
        r"""$W - \Delta F$ along each path: the residual of trajectory balance.

        With the true $\Delta F$ its mean over paths of P is $KL(P\|Q)$.
        """
        return self.work(trajectories) - self.delta_f


class Given(eqx.Module):
    """Terminal states that are known to be independent draws from $R/Z$, each used once."""

    states: Int[Array, "sample entry"] = eqx.field(converter=lambda states: jnp.asarray(states, jnp.int32))
    """The states."""

    def sample(self, n: int, *, key: Key) -> Int[Array, "other entry"]:
        """Some of them, without replacement.

        Raises:
            ValueError: if there are fewer than `n`.
        """
        require(n <= self.states.shape[0], "samples", f"be at most the {self.states.shape[0]} states that are given", n)
        return self.states[jr.permutation(key, self.states.shape[0])[:n]]


class FlowReversal(AbstractPolicy):
    r"""The forward policy and the flow of a network, with the backward policy that reverses its flow,
    $P_B(s|s') \propto F(s)\,P_F(s'|s)$.

    A network that matches flows is reversible with it: $W = \Delta F$ on every path.
    """

    model: GFlowNet
    """The network."""

    def __call__(self, state):
        logits = self.model.policy(state)
        return Logits(logits.forward, log_inflows(self.model, state), logits.log_flow)


def log_inflows(model: GFlowNet, state: State) -> Float[Array, " action"]:
    r"""$\ln F(s)P_F(s'|s)$ of the moves that may have led to a state $s'$, $-\infty$ for the others."""
    env = model.environment
    legal = env.legal_back(state)

    def inflow(action, good):
        # What is not a parent is replaced by the source, where nothing that is read is infinite.
        kernels = model.kernels(jnp.where(good, env.unstep(state, action), 0))
        return jnp.where(good, jnp.where(good, kernels.forward[action], 0.0) + kernels.log_flow, -jnp.inf)

    return jax.vmap(inflow)(jnp.arange(env.actions, dtype=jnp.int32), legal)


def masked_log_softmax(logits: Float[Array, " action"], legal: Bool[Array, " action"]) -> Float[Array, " action"]:
    r"""Normalised logarithms over legal moves; $-\infty$, exactly, for the others, and for all if none is legal."""
    # Where nothing is legal the softmax is taken over all: its gradient stays finite, its value is not used.
    allowed = legal | ~jnp.any(legal)
    return jnp.where(legal, jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf)), -jnp.inf)


def chosen(logs: Float[Array, "sample action"], actions: Int[Array, " sample"], made: Bool[Array, " sample"]) -> Float[Array, " sample"]:
    """The entries of the moves, zero where none was made."""
    return jnp.where(made, jnp.take_along_axis(logs, actions[:, None], axis=1)[:, 0], 0.0)


@eqx.filter_jit
def walk(model: GFlowNet, samples: int, exploration: Scalar, key: Key) -> Trajectories:
    """Paths by the forward policy; see `GFlowNet.trajectories`, which also checks."""
    env = model.environment

    def move(states, k):
        done = jax.vmap(env.is_terminal)(states)
        legal = jax.vmap(env.legal)(states)
        logs = jax.vmap(masked_log_softmax)(jax.vmap(model.policy)(states).forward, legal)
        flat = jax.vmap(masked_log_softmax)(jnp.zeros_like(logs), legal)
        share = exploration.astype(logs.dtype)
        logs = jnp.where(done[:, None], 0.0, jnp.logaddexp(jnp.log1p(-share) + logs, jnp.log(share) + flat))
        actions = jr.categorical(jr.fold_in(key, k), logs).astype(jnp.int32)
        states = jnp.where(done[:, None], states, jax.vmap(env.step)(states, actions))
        return states, (states, actions, ~done)

    start = jnp.broadcast_to(env.source(), (samples, len(env.radices)))
    _, (later, actions, active) = lax.scan(move, start, jnp.arange(env.length))
    return Trajectories(jnp.concatenate([start[None], later]), actions, jnp.sum(active, axis=0, dtype=jnp.int32))


@eqx.filter_jit
def _are_ends(environment, states):
    return jnp.all(jax.vmap(environment.is_terminal)(states))


@eqx.filter_jit
def _walk_back(model, x1s, key):
    env = model.environment

    def move(states, k):
        done = jnp.all(states == 0, axis=1)
        legal = jax.vmap(env.legal_back)(states)
        logs = jax.vmap(masked_log_softmax)(jax.vmap(model.policy)(states).backward, legal)
        actions = jr.categorical(jr.fold_in(key, k), jnp.where(done[:, None], 0.0, logs)).astype(jnp.int32)
        states = jnp.where(done[:, None], states, jax.vmap(env.unstep)(states, actions))
        return states, (states, actions, ~done)

    _, (earlier, actions, active) = lax.scan(move, x1s, jnp.arange(env.length))
    moves = jnp.sum(active, axis=0, dtype=jnp.int32)
    # Turned round: state k of a path of m moves was reached after m - k backward ones, and its move was made next to last.
    ks = jnp.arange(env.length + 1, dtype=jnp.int32)
    places = jnp.maximum(moves[None] - ks[:, None], 0)
    states = jnp.take_along_axis(jnp.concatenate([x1s[None], earlier]), places[:, :, None], axis=0)
    return Trajectories(states, jnp.take_along_axis(actions, jnp.maximum(places[:-1] - 1, 0), axis=0), moves)


@eqx.filter_jit
def _work(model, trajectories):
    # One time after the other, so that memory does not grow with the length of the paths.
    states, actions, moves = trajectories
    nothing = jnp.zeros((1, moves.shape[0]), bool)
    none = jnp.zeros((1, moves.shape[0]), actions.dtype)
    after, before = jnp.concatenate([trajectories.active, nothing]), jnp.concatenate([nothing, trajectories.active])
    onward, past = jnp.concatenate([actions, none]), jnp.concatenate([none, actions])

    def at(inputs):
        states, onward, after, past, before = inputs
        logs = jax.vmap(model.kernels)(states)
        return chosen(logs.forward, onward, after) - chosen(logs.backward, past, before)

    parts = lax.map(at, (states, onward, after, past, before))
    rewards = jax.vmap(model.environment.log_reward)(states[-1])
    return jnp.sum(parts, axis=0) - rewards.astype(parts.dtype)
