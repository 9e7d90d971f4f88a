"""Policies: from a state to logits of moves, forward and backward, and to the flow through the state."""

import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray as Key

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.gflownets._environment import AbstractEnvironment, check_count, one_hot, places, State


class Logits(NamedTuple):
    """What a policy says of one state. Moves that are not legal are masked by the `GFlowNet`, whatever is said of them."""

    forward: Float[Array, " action"]
    """Logits of moves that lead on."""
    backward: Float[Array, " action"]
    """Logits of moves that may have led here."""
    log_flow: Scalar
    r"""$\ln F(s)$; replaced by $\ln Z$ at the source and by $\ln R$ at terminal states."""


class AbstractPolicy(eqx.Module):
    """Logits and flow of any state. Any callable of that signature will do."""

    @abc.abstractmethod
    def __call__(self, state: State) -> Logits:
        """What the policy says of a state."""


class Uniform(AbstractPolicy):
    """All legal moves alike, forward and backward."""

    actions: int = eqx.field(static=True)
    """Number of moves."""

    def __call__(self, state):
        return Logits(jnp.zeros(self.actions), jnp.zeros(self.actions), jnp.zeros(()))


class Tabular(AbstractPolicy):
    """One number for each move from each vector of integers: for small environments."""

    forward: Float[Array, "code action"]
    """Forward logits."""
    backward: Float[Array, "code action"]
    """Backward logits."""
    log_flow: Float[Array, " code"]
    """Logarithms of flows."""
    radices: tuple[int, ...] = eqx.field(static=True)
    """Those of the environment."""

    @staticmethod
    def zeros(environment: AbstractEnvironment, *, limit: int = 1_000_000) -> "Tabular":
        """The uniform policy as a table.

        Raises:
            ValueError: if the table has more than `limit` rows.
        """
        rule = f"have at most {limit} vectors of states for a table"
        require(environment.codes <= limit, "environment", rule, environment.codes)
        logits = jnp.zeros((environment.codes, environment.actions))
        return Tabular(logits, logits, jnp.zeros(environment.codes), environment.radices)

    def __call__(self, state):
        code = jnp.sum(state * jnp.asarray(places(self.radices), jnp.int32), dtype=jnp.int32)
        return Logits(self.forward[code], self.backward[code], self.log_flow[code])


class Network(AbstractPolicy):
    """A multilayer perceptron on features of the state, with one head for each of the logits and one for the flow.

    Its last layer starts at zero: an untrained network is the uniform policy, exactly.
    """

    mlp: eqx.nn.MLP
    """The perceptron."""
    observe: Callable[[State], Array] | None
    """Features of a state; its entries as ones among zeros if omitted."""
    radices: tuple[int, ...] = eqx.field(static=True)
    actions: int = eqx.field(static=True)
    backward: bool = eqx.field(static=True)
    """Whether backward logits are learned; they are uniform otherwise."""

    def __init__(
        self,
        environment: AbstractEnvironment,
        *,
        width: int = 128,
        depth: int = 2,
        backward: bool = False,
        observe: Callable[[State], Array] | None = None,
        key: Key,
    ):
        """A network for an environment.

        Args:
            environment: Its states are the inputs, its moves the outputs.
            width: Units of each hidden layer.
            depth: Hidden layers.
            backward: Whether the backward policy is learned too.
            observe: From a state to a vector of features.
            key: Random key of the initial weights.
        """
        check_count(width, 1, "width")
        check_count(depth, 1, "depth")
        self.radices, self.actions, self.backward, self.observe = environment.radices, environment.actions, backward, observe
        features = sum(self.radices) if observe is None else jax.eval_shape(observe, environment.source()).shape[0]
        outputs = self.actions * (2 if backward else 1) + 1
        mlp = eqx.nn.MLP(features, outputs, width, depth, jax.nn.gelu, key=key)
        last = lambda m: (m.layers[-1].weight, m.layers[-1].bias)
        self.mlp = eqx.tree_at(last, mlp, tuple(jnp.zeros_like(a) for a in last(mlp)))

    def __call__(self, state):
        features = one_hot(self.radices, state) if self.observe is None else self.observe(state)
        out = self.mlp(features)
        backward = out[self.actions : 2 * self.actions] if self.backward else jnp.zeros_like(out[: self.actions])
        return Logits(out[: self.actions], backward, out[-1])
