"""Every parameterisation of a protocol, for tests that hold for all of them."""

import jax.random as jr

from thermojax.protocols import (
    Bounded,
    Chebyshev,
    Fourier,
    Monotone,
    Neural,
    PiecewiseLinear,
    SlewLimited,
    Spline,
    Symmetric,
)

# From any protocol, few parameters each: what is not said here holds for all of them.
KINDS = {
    "piecewise linear": lambda p: PiecewiseLinear.like(p, knots=6),
    "spline": lambda p: Spline.like(p, knots=6),
    "fourier": lambda p: Fourier.like(p, modes=4),
    "chebyshev": lambda p: Chebyshev.like(p, degree=4),
    "monotone": lambda p: Monotone.like(p, knots=6),
    "neural": lambda p: Neural.like(p, width=4, depth=1, key=jr.key(0)),
    "bounded": lambda p: Bounded.like(PiecewiseLinear.like(p, knots=6), -20.0, 20.0),
    "slew limited": lambda p: SlewLimited.like(p, 3.0, low=-20.0, knots=5),
    "symmetric": lambda p: Symmetric.like(Spline.like(p, knots=6)),
}
