r"""Protocols: schedules $t \mapsto \lambda(t)$ of the control parameter, or $\beta(t)$ of a bath.

A protocol is any callable of one time. Optimal protocols of finite duration jump at both ends, so the classes here
distinguish the value *at* an end from the value just inside: a protocol with jumps returns its first value at
$t \le 0$ and its last at $t \ge \tau$, and in between what the jumps lead to. A stepper reads the clock inside its
step (`thermojax.steppers`), so a jump at an end costs exactly the work of one sudden switch. Those of underdamped
dynamics also kick the velocity at both ends (`Kicked`).

Parameterisations, for controls of any shape:

- `PiecewiseLinear` and `Spline` go through knots, `Fourier` and `Chebyshev` are series, `Neural` adds a network to another protocol. All
  are free to jump at both ends.
- `Monotone` never turns round. `Bounded` keeps another protocol between hard bounds, `SlewLimited` keeps the speed of the control below
  a limit, and `Symmetric` makes a protocol its own time reversal.

Each is a function of the share $s = t/\tau$ of the duration alone, so the duration can be optimised with the rest. Each starts from a
known protocol: ``Spline.like(Ramp(0.0, 1.0), knots=8)`` is the straight line as a spline. Its `free` leaves are what an optimisation
moves; start, stop and duration belong to the problem.
"""

from thermojax.protocols._constrained import Bounded as Bounded, SlewLimited as SlewLimited, Symmetric as Symmetric
from thermojax.protocols._knots import (
    Monotone as Monotone,
    PiecewiseLinear as PiecewiseLinear,
    ramp_with_jumps as ramp_with_jumps,
    Spline as Spline,
)
from thermojax.protocols._protocol import (
    AbstractFiniteTime as AbstractFiniteTime,
    AbstractModified as AbstractModified,
    AbstractProtocol as AbstractProtocol,
    Constant as Constant,
    finite_time as finite_time,
    Kicked as Kicked,
    kicks as kicks,
    Protocol as Protocol,
    Ramp as Ramp,
    Reverse as Reverse,
    sampled as sampled,
)
from thermojax.protocols._series import Chebyshev as Chebyshev, Fourier as Fourier, Neural as Neural
