import jax.numpy as jnp
import pytest
from assertions import rounding

from thermojax.protocols import Constant, PiecewiseLinear, Ramp, ramp_with_jumps, Reverse

PROTOCOLS = {
    "constant": Constant(0.3),
    "ramp": Ramp(0.0, 2.0, 0.5),
    "jumps": PiecewiseLinear(0.0, [0.4, 0.1, 1.7], 2.0, 0.5),
    "vector": PiecewiseLinear([0.0, 1.0], [[0.1, 1.0], [0.2, 3.0]], [0.0, 0.0], 0.5),
    "any callable": lambda t: t**2,
}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_reversal_runs_the_same_controls_backwards(protocol):
    backward = Reverse(protocol, 0.5)
    for share in (0.0, 0.25, 0.5, 1.0):
        ahead, back = protocol(jnp.asarray(0.5 * share)), backward(jnp.asarray(0.5 - 0.5 * share))
        assert jnp.max(jnp.abs(ahead - back)) < rounding(5)


def test_a_ramp_is_straight_inside_and_constant_outside():
    at = lambda t: float(Ramp(1.0, 3.0, 2.0)(jnp.asarray(t)))
    assert [at(t) for t in (-1.0, 0.0, 0.5, 2.0, 5.0)] == [1.0, 1.0, 1.5, 3.0, 3.0]


def test_piecewise_linear_jumps_at_the_ends_and_passes_through_its_knots():
    at = lambda t: float(PROTOCOLS["jumps"](jnp.asarray(t)))
    assert at(0.0) == 0.0
    assert at(0.5) == 2.0
    for t, expected in ((1e-4, 0.4), (0.25, 0.1), (0.125, 0.25), (0.375, 0.9), (0.4999, 1.7)):
        assert abs(at(t) - expected) < 2e-3
    assert [float(jump) for jump in PROTOCOLS["jumps"].jumps] == pytest.approx([0.4, 0.3])


def test_a_grid_that_ends_a_rounding_error_early_has_come_to_the_end():
    protocol = PiecewiseLinear(0.0, [1.0, 1.0], 2.0, 0.1)
    end = jnp.asarray(0.1)
    assert float(protocol(end * (1 - jnp.finfo(end.dtype).eps))) == 2.0


def test_a_ramp_with_jumps_starts_as_the_ramp():
    straight, piecewise = Ramp(-1.0, 2.0, 3.0), ramp_with_jumps(-1.0, 2.0, 3.0, knots=7)
    for t in (0.0, 0.3, 1.234, 3.0):
        assert abs(straight(jnp.asarray(t)) - piecewise(jnp.asarray(t))) < rounding(3)
    assert all(float(jump) == 0 for jump in piecewise.jumps)


def test_bad_protocols_are_refused():
    with pytest.raises(ValueError, match="`duration` must be positive, got 0.0."):
        Ramp(0.0, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"`stop` must have the shape of `start`, \(\), got shape \(2,\)."):
        Ramp(0.0, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"`knots` must have shape \(knot >= 2, \), got shape \(1,\)."):
        PiecewiseLinear(0.0, [1.0], 2.0)
    with pytest.raises(ValueError, match="`knots` must be at least 2, got 1."):
        ramp_with_jumps(0.0, 1.0, knots=1)
