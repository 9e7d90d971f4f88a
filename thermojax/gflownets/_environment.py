"""What an environment is: a graph of states without cycles, with a reward at its ends."""

import abc
import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from thermojax._array import Scalar
from thermojax._check import require

State = Int[Array, " entry"]


class AbstractEnvironment(eqx.Module):
    r"""States that are built by moves, from the source to a terminal state $x$ of reward $R(x) > 0$.

    A state is a vector of integers; the source is the vector of zeros. Moves are numbered, with the same number forward and backward:
    ``unstep(step(s, a), a)`` is ``s``. Two moves may join the same two states; they are then two edges. No path comes back to where it was.
    A move that is not legal is never made, but `step` and `unstep` are evaluated for it and must return integers.
    """

    @property
    @abc.abstractmethod
    def radices(self) -> tuple[int, ...]:
        """Number of values of each entry of a state: entry i is one of 0, ..., ``radices[i] - 1``."""

    @property
    @abc.abstractmethod
    def actions(self) -> int:
        """Number of moves, legal or not."""

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Moves on the longest path."""

    @abc.abstractmethod
    def legal(self, state: State) -> Bool[Array, " action"]:
        """Which moves lead on from a state; none from a terminal one."""

    @abc.abstractmethod
    def legal_back(self, state: State) -> Bool[Array, " action"]:
        """Which moves may have led to a state; none to the source."""

    @abc.abstractmethod
    def step(self, state: State, action: Int[Array, ""]) -> State:
        """The state after a move."""

    @abc.abstractmethod
    def unstep(self, state: State, action: Int[Array, ""]) -> State:
        """The state before a move that led here."""

    @abc.abstractmethod
    def is_terminal(self, state: State) -> Bool[Array, ""]:
        """Whether a state is an end."""

    @abc.abstractmethod
    def log_reward(self, state: State) -> Scalar:
        r"""$\ln R$, read at terminal states only."""

    def source(self) -> State:
        """Where every path begins."""
        return jnp.zeros(len(self.radices), jnp.int32)

    def code(self, state: State) -> Int[Array, ""]:
        """A number for each vector of integers, less than `codes`, which must be below 2^31."""
        return jnp.sum(state * jnp.asarray(places(self.radices), jnp.int32), dtype=jnp.int32)

    @property
    def codes(self) -> int:
        """Number of vectors of integers, whether they can be reached or not."""
        return math.prod(self.radices)


def places(radices: tuple[int, ...]) -> list[int]:
    """What one unit of each entry adds to the code of a state."""
    return [math.prod(radices[i + 1 :]) for i in range(len(radices))]


def one_hot(radices: tuple[int, ...], state: State) -> Float[Array, " feature"]:
    """The entries of a state as ones among zeros."""
    offsets = jnp.asarray([sum(radices[:i]) for i in range(len(radices))], jnp.int32)
    return jnp.zeros(sum(radices)).at[state + offsets].set(1.0)


def check_count(value: int, least: int, name: str) -> None:
    """Refuse what is not a whole number of at least `least`."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= least, name, f"be a whole number of at least {least}", value)
