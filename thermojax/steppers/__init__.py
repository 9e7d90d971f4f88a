r"""Steppers: one-step Markov kernels, and their transition densities where these are known.

A stepper takes one particle from `t0` to `t1` by standard normals that it is given. `EulerMaruyama` and `ExactLinear` are Gaussian
kernels, so that the log-ratio of a path to its reversal, and of two processes on one path, is exact at any step (`functionals.log_ratio`);
so it is for every `Splitting` of underdamped dynamics. `Diffrax` takes any fixed-step solver of diffrax, whose density is in general
unknown.

Weak orders, of the means of work in Crooks' order (at the middle clock) and of the state. `EulerMaruyama`: 1. A `Splitting` that is
a palindrome: 2. ``Diffrax(diffrax.Heun())``: 2 for additive noise, with one normal and two forces, and so the cheapest way to longer
steps where no density is needed; ``ShARK`` and ``SRA1`` (2 as well, strong order 3/2) take two normals. What is of second order for
ordinary equations need not be with noise: ``Midpoint`` and ``Ralston`` have order 1. The price of these solvers is the density: no
`functionals.log_ratio`, and $\langle e^{-\ell}\rangle = 1$ at every step is given up. Among the work sums only the one in Crooks' order
keeps the second order: the one at the midpoint of the chord has Jensen's gap, of order 1. `variance.extrapolated` raises the order of a
mean for half as many steps more, and keeps the stepper. The scheme of Leimkuhler and Matthews, of second order in equilibrium at one
force a step, is not offered: its places are no Markov chain, and at finite times it has order 1 (B. Leimkuhler, C. Matthews,
M. V. Tretyakov, Proc. R. Soc. A 470, 20140120 (2014)).

The clock. Within its step a kernel freezes the coefficients at ``t0 + clock * (t1 - t0)``. At a protocol's jumps and for
the reversal of a path the middle (``clock=0.5``) is the natural choice: forward and reversed protocols then use the same kernels on
the same grid, and a jump at either end is one sudden switch. ``clock=0`` is the textbook's left point: move under $\lambda_k$, then
switch; ``clock=1`` is the order of annealed importance sampling: switch, then move. For coefficients that do not depend on time the
three agree.
"""

from thermojax.steppers._abstract import AbstractStepper as AbstractStepper, advance as advance, StepNoise as StepNoise
from thermojax.steppers._densities import (
    knows_reversal as knows_reversal,
    log_density as log_density,
    log_reversal_ratio as log_reversal_ratio,
    with_density as with_density,
)
from thermojax.steppers._diffrax import Diffrax as Diffrax
from thermojax.steppers._gaussian import (
    AbstractGaussianStepper as AbstractGaussianStepper,
    EulerMaruyama as EulerMaruyama,
    ExactLinear as ExactLinear,
    log_volume as log_volume,
    whiten as whiten,
)
from thermojax.steppers._splitting import Splitting as Splitting
