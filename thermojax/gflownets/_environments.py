"""Three families of environments: grids, sequences of bits, lattices of spins."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, ensure, require
from thermojax.gflownets._environment import AbstractEnvironment, check_count, State


class Hypergrid(AbstractEnvironment):
    r"""Walks on a grid of $H^d$ points from a corner: one step up in one coordinate, or stop.

    The reward, with $a_i = |x_i/(H-1) - \tfrac12|$, is large near the corners and separated by a plateau that pays little:

        R = R₀ + R₁ ∏ᵢ 1[0.25 < aᵢ] + R₂ ∏ᵢ 1[0.3 < aᵢ < 0.4]

    A state is the point and whether the walk has stopped there; moves are the coordinates, then the stop.

    Reference:
        E. Bengio et al., arXiv:2106.04399 (2021), sec. 4.1.
    """

    side: int = eqx.field(static=True, default=8)
    """Points along each coordinate, $H$."""
    dim: int = eqx.field(static=True, default=2)
    """Coordinates, $d$."""
    floor: Scalar = eqx.field(converter=as_scalar, default=0.1)
    """$R_0$, positive."""
    corners: Scalar = eqx.field(converter=as_scalar, default=0.5)
    """$R_1$."""
    modes: Scalar = eqx.field(converter=as_scalar, default=2.0)
    """$R_2$."""

    def __check_init__(self):
        check_count(self.side, 2, "side")
        check_count(self.dim, 1, "dim")
        check_positive(self.floor, "floor")
        for name, value in (("corners", self.corners), ("modes", self.modes)):
            ensure(value, jnp.isfinite(value) & (value >= 0), name, "be finite and not negative", value)

    @property
    def radices(self):
        return (self.side,) * self.dim + (2,)

    @property
    def actions(self):
        return self.dim + 1

    @property
    def length(self):
        return self.dim * (self.side - 1) + 1

    def legal(self, state):
        return jnp.append(state[:-1] < self.side - 1, True) & (state[-1] == 0)  # noqa: FBT003

    def legal_back(self, state):
        stopped = state[-1] == 1
        return jnp.append((state[:-1] > 0) & ~stopped, stopped)

    def step(self, state, action):
        return state.at[action].add(1)

    def unstep(self, state, action):
        return state.at[action].add(-1)

    def is_terminal(self, state):
        return state[-1] == 1

    def log_reward(self, state):
        # a = u / 2(H - 1) in whole numbers, so that no point is on the wrong side of a bound by rounding.
        u, half = jnp.abs(2 * state[:-1] - (self.side - 1)), self.side - 1
        outer, ring = jnp.all(2 * u > half), jnp.all((5 * u > 3 * half) & (5 * u < 4 * half))
        return jnp.log(self.floor + jnp.where(outer, self.corners, 0.0) + jnp.where(ring, self.modes, 0.0))


class BitSequences(AbstractEnvironment):
    r"""Sequences of $n$ bits that grow by one word at a time, at their end or at either end.

    A state holds, from the left, each word plus one, and zeros where there is none yet. With `prepend` a sequence of k words is reached by
    $2^k$ paths at most, otherwise by one.
    """

    bits: int = eqx.field(static=True)
    """Length of a whole sequence, $n$."""
    log_density: Callable[[Array], Array]
    r"""$\ln R$ of a whole sequence, an array of $n$ zeros and ones; `Modes` for one."""
    word: int = eqx.field(static=True, default=1)
    """Bits in a word."""
    prepend: bool = eqx.field(static=True, default=True)
    """Whether words are also put in front."""

    def __check_init__(self):
        check_count(self.bits, 1, "bits")
        check_count(self.word, 1, "word")
        require(self.bits % self.word == 0, "word", f"divide `bits`, {self.bits}", self.word)

    @property
    def radices(self):
        return (2**self.word + 1,) * (self.bits // self.word)

    @property
    def actions(self):
        return 2**self.word * (2 if self.prepend else 1)

    @property
    def length(self):
        return self.bits // self.word

    def legal(self, state):
        return jnp.broadcast_to(state[-1] == 0, (self.actions,))

    def legal_back(self, state):
        words, size = jnp.arange(1, 2**self.word + 1, dtype=state.dtype), jnp.sum(state > 0)
        last = state[jnp.maximum(size - 1, 0)]
        ends = [words == last, words == state[0]] if self.prepend else [words == last]
        return jnp.concatenate(ends) & (size > 0)

    def step(self, state, action):
        word, size = (action % 2**self.word + 1).astype(state.dtype), jnp.sum(state > 0)
        appended = state.at[size].set(word)
        return jnp.where(action < 2**self.word, appended, jnp.roll(state, 1).at[0].set(word))

    def unstep(self, state, action):
        size = jnp.sum(state > 0)
        shortened = state.at[jnp.maximum(size - 1, 0)].set(0)
        return jnp.where(action < 2**self.word, shortened, jnp.roll(state, -1).at[-1].set(0))

    def is_terminal(self, state):
        return state[-1] > 0

    def log_reward(self, state):
        return self.log_density(self.sequence(state))

    def sequence(self, state: State) -> Float[Array, " bit"]:
        """The bits of a terminal state, the highest of each word first."""
        shifts = jnp.arange(self.word - 1, -1, -1, dtype=state.dtype)
        return (((state[:, None] - 1) >> shifts[None, :]) & 1).reshape(-1).astype(float)


class Modes(eqx.Module):
    r"""A reward for sequences near given ones, $\ln R = -\beta\,\min_m d(x, m)/n$ with the Hamming distance $d$.

    Reference:
        N. Malkin et al., arXiv:2201.13259 (2022), the bit sequences.
    """

    centres: Float[Array, "mode bit"] = eqx.field(converter=as_float)
    """The sequences that pay most, of zeros and ones."""
    beta: Scalar = eqx.field(converter=as_scalar, default=3.0)
    r"""$\beta$, how sharply the reward falls."""

    def __call__(self, x: Float[Array, " bit"]) -> Scalar:
        """The logarithm of the reward."""
        return -self.beta * jnp.min(jnp.mean(jnp.abs(self.centres - x[None]), axis=1))


class IsingLattice(AbstractEnvironment):
    r"""Spins $\pm1$ on a lattice that are set one by one, in any order; the reward is $e^{-\beta E}$, $E = -J\sum_{ij}s_is_j - h\sum_is_i$.

    There are $k!$ paths to a state of k spins. Entries of a state are 0 for a site that is not set, 1 for down, 2 for up; move $2i$
    sets site $i$ down, $2i + 1$ up. On a periodic lattice every site is joined to the next one along each axis, so that a side of two
    has each bond twice.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    """Sites along each axis."""
    beta: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """Inverse temperature."""
    coupling: Scalar = eqx.field(converter=as_scalar, default=1.0)
    """$J$, positive for a ferromagnet."""
    field: Scalar = eqx.field(converter=as_scalar, default=0.0)
    """$h$."""
    periodic: bool = eqx.field(static=True, default=True)
    """Whether the last site of an axis is joined to the first."""

    def __check_init__(self):
        require(len(self.shape) > 0, "shape", "have an axis", self.shape)
        for side in self.shape:
            check_count(side, 1, "shape")

    @property
    def radices(self):
        return (3,) * self.length

    @property
    def actions(self):
        return 2 * self.length

    @property
    def length(self):
        sites = 1
        for side in self.shape:
            sites *= side
        return sites

    def legal(self, state):
        return jnp.repeat(state == 0, 2, total_repeat_length=self.actions)

    def legal_back(self, state):
        return jnp.stack([state == 1, state == 2], axis=1).reshape(-1)

    def step(self, state, action):
        return state.at[action // 2].set((action % 2 + 1).astype(state.dtype))

    def unstep(self, state, action):
        return state.at[action // 2].set(0)

    def is_terminal(self, state):
        return jnp.all(state > 0)

    def log_reward(self, state):
        return -self.beta * self.energy(self.spins(state))

    def spins(self, state: State) -> Float[Array, "..."]:
        """The spins of a terminal state, on the lattice."""
        return (2 * state - 3).astype(float).reshape(self.shape)

    def energy(self, spins: Float[Array, "..."]) -> Scalar:
        """The energy of a configuration."""
        bonds = jnp.zeros(())
        for axis, side in enumerate(self.shape):
            pairs = spins * jnp.roll(spins, -1, axis)
            kept = pairs if self.periodic else pairs.take(jnp.arange(side - 1), axis=axis)
            bonds = bonds + jnp.sum(kept)
        return -self.coupling * bonds - self.field * jnp.sum(spins)
