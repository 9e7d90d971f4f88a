"""Splittings of underdamped Langevin dynamics."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from thermojax._array import Scalar
from thermojax._check import require
from thermojax.dynamics import Underdamped
from thermojax.phase import Phase
from thermojax.steppers._abstract import AbstractStepper, check_clock, check_shapes


class Splitting(AbstractStepper):
    r"""A composition of exact flows, spelled by letters: "OBABO", "BAOAB", "ABOBA", "OABAO", ….

    A moves the position at constant velocity, B changes the velocity by the force at fixed position, O relaxes the velocity in the bath,
    $v \to cv + \sqrt{(1 - c^2)/(\beta m)}\,z$ with $c = e^{-h/(\mu m)}$. Each letter acts for the time step divided by the number of
    its kind, with coefficients frozen at the clock.

    A and B preserve phase-space volume and undo themselves when the velocity is turned round; O obeys detailed balance. So the log-ratio
    of a step to its momentum-reversed reversal is $\beta$ times the energy that the O parts gave to the bath, exactly, at any
    step size. The reversal of a word that is no palindrome is the word read backwards.

    References:
        B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34 (BAOAB). G. Bussi, M. Parrinello, Phys. Rev. E 75, 056707 (2007)
        (OBABO). D. A. Sivak, J. D. Chodera, G. E. Crooks, J. Phys. Chem. B 118, 6466 (2014) (reversal and shadow work).
    """

    word: str = eqx.field(static=True)
    """The letters, in the order of their action."""
    clock: float = eqx.field(static=True)
    """Where in the step the coefficients are read, from 0 (left) to 1 (right)."""
    normals: int = eqx.field(static=True)
    """One for each O."""

    def __init__(self, word: str = "BAOAB", clock: float = 0.5):
        require(set(word) == set("ABO"), "word", "be made of the letters A, B and O, each at least once", repr(word))
        check_clock(clock)
        self.word, self.clock, self.normals = word, clock, word.count("O")

    def reversal(self):
        return Splitting(self.word[::-1], 1.0 - self.clock)

    def check(self, dynamics, ts, x0s):
        require(isinstance(dynamics, Underdamped), "dynamics", "be `Underdamped` for `Splitting`", type(dynamics).__name__)
        return check_shapes(dynamics, ts, x0s)

    def __call__(self, dynamics, t0, t1, x0, zs):
        return self._run(dynamics, t0, t1, x0, zs)[0]

    def released(
        self, dynamics: Underdamped, t0: Scalar, t1: Scalar, x0: Phase, x1: Phase, zs: Float[Array, "normal dim"] | None = None
    ) -> Scalar:
        r"""$\beta$ times the energy that the step gave to the bath: its log-ratio to its reversal.

        Args:
            dynamics: What moved.
            t0: Beginning of the step.
            t1: Its end.
            x0: State after the protocol's kick at the beginning.
            x1: State before the kick at the end.
            zs: The normals of the step. Without them the velocities between the letters are found from both ends.

        Raises:
            TypeError: if `zs` are missing and the ends do not tell the velocities.
        """
        if zs is not None:
            return self._run(dynamics, t0, t1, x0, zs)[1]
        between = self._between()
        ahead, _ = self._run(dynamics, t0, t1, x0, None, word=self.word[: self.word.index("O")])
        back = self._undo(dynamics, t0, t1, x1, self.word[self.word.rindex("O") + 1 :])
        if between == "":
            return _energy_released(dynamics, self.clock_at(t0, t1), ahead.velocity, back.velocity)
        # One A between the two O: its velocity is the distance over the time.
        t, first = self.clock_at(t0, t1), between.index("A")
        speed = (back.position - ahead.position) / self._duration("A", t0, t1)
        kick = lambda position, count: count * self._duration("B", t0, t1) * dynamics.acceleration(t, position)
        after = speed - kick(ahead.position, first) if first else speed
        before = speed + kick(back.position, len(between) - first - 1) if len(between) > first + 1 else speed
        return _energy_released(dynamics, t, ahead.velocity, after) + _energy_released(dynamics, t, before, back.velocity)

    def _between(self):
        """The letters between two O, or none if there is one O."""
        first, last = self.word.index("O"), self.word.rindex("O")
        between = self.word[first + 1 : last]
        if first != last and (self.normals > 2 or between.count("A") != 1):
            raise TypeError(
                f"`stepper` must be a splitting whose ends tell its velocities, like BAOAB and OBABO, for stored paths, got {self.word}."
            )
        return between

    def _duration(self, letter, t0, t1):
        return (t1 - t0) / self.word.count(letter)

    def _run(self, dynamics, t0, t1, x0, zs, word=None):
        """The state after the letters of `word`, and beta times the energy released."""
        t, (x, v) = self.clock_at(t0, t1), x0
        released, drawn = jnp.zeros((), v.dtype), 0
        for letter in self.word if word is None else word:
            h = self._duration(letter, t0, t1)
            if letter == "A":
                x = x + v * h
            elif letter == "B":
                v = v + dynamics.acceleration(t, x) * h
            else:
                kept = jnp.exp(-dynamics.friction(t) * h)
                spread = jnp.sqrt(-jnp.expm1(-2.0 * dynamics.friction(t) * h) / (dynamics.bath(t) * dynamics.mass))
                before, v = v, kept * v + spread * zs[drawn]
                released, drawn = released + _energy_released(dynamics, t, before, v), drawn + 1
        return Phase(x, v), released

    def _undo(self, dynamics, t0, t1, x1, word):
        """The state before the letters A and B of `word`."""
        flipped, _ = self._run(dynamics, t0, t1, x1.flipped(), None, word=word[::-1])
        return flipped.flipped()


def _energy_released(dynamics, t, before, after):
    return 0.5 * jnp.sum(dynamics.bath(t) * dynamics.mass * (before - after) * (before + after))
