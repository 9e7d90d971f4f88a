import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from assertions import needs_x64, rounding
from protocol_kinds import KINDS

from thermojax import exact
from thermojax.protocols import PiecewiseLinear, Ramp, SlewLimited

JUMPING = [name for name in KINDS if name != "slew limited"]


def trap_work(protocol):
    return exact.moving_trap_work_of(PiecewiseLinear.like(protocol, knots=121))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_contains_the_optimum_of_the_moving_trap_or_comes_near(kind):
    best = exact.moving_trap_optimal_protocol(2.0, 1.0)
    found = SlewLimited.like(best, 160.0, knots=119) if kind == "slew limited" else KINDS[kind](best)
    least = float(exact.moving_trap_optimal_work(2.0, 1.0))
    # Without jumps, two quick strokes: an eightieth of the duration each.
    assert least - rounding(20) < float(trap_work(found)) < least * (1.02 if kind == "slew limited" else 1 + rounding(20))


@eqx.filter_jit
def descended(protocol, steps=400, rate=0.1):
    free, rest = eqx.partition(protocol.free, eqx.is_inexact_array)
    shaped = lambda free: eqx.tree_at(lambda p: p.free, protocol, eqx.combine(free, rest))
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, _):
        free, state = carry
        gradient = jax.grad(lambda free: trap_work(shaped(free)))(free)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, free)
            return (optax.apply_updates(free, updates), state), None

    (free, _), _ = jax.lax.scan(step, (free, optimizer.init(free)), length=steps)
    return shaped(free)


@pytest.mark.slow
@pytest.mark.parametrize("kind", JUMPING)
def test_descent_from_the_ramp_comes_to_the_least_work(kind):
    found = descended(KINDS[kind](Ramp(0.0, 2.0)))
    excess = float(trap_work(found) / exact.moving_trap_optimal_work(2.0, 1.0)) - 1
    assert -rounding(10) < excess < 1e-3
    assert jnp.max(jnp.abs(jnp.stack(found.jumps) - 2 / 3)) < 0.03


@needs_x64
@pytest.mark.slow
def test_descent_under_a_rate_and_bounds_comes_to_the_constrained_optimum():
    from scipy.optimize import minimize

    count, rate, high = 14, 1.5, 1.0
    at_knots = lambda inner: exact.moving_trap_work_of(PiecewiseLinear(0.0, jnp.pad(inner, (1, 1), constant_values=(0.0, 1.0)), 1.0))
    both = jax.jit(jax.value_and_grad(at_knots))
    signed = lambda x: np.concatenate([slopes_of(x, 1.0), slopes_of(x, -1.0)])
    slopes_of = lambda x, sign: rate / (count + 1) - sign * np.diff(np.pad(x, (1, 1), constant_values=(0.0, 1.0)))
    straight = np.linspace(0, 1, count + 2)[1:-1]
    evaluate = lambda x: tuple(np.asarray(a) for a in both(jnp.asarray(x)))
    constraint = {"type": "ineq", "fun": signed}
    best = minimize(evaluate, straight, jac=True, bounds=[(None, high)] * count, constraints=[constraint], method="SLSQP", tol=1e-12)
    found = descended(SlewLimited.like(Ramp(0.0, 1.0), rate, high=high, knots=count), steps=1000)
    cost = float(at_knots(found.controls[1:-1]))
    assert float(np.min(signed(best.x))) == pytest.approx(0.0, abs=1e-9)
    assert best.fun - 1e-9 < cost < best.fun * (1 + 1e-3)
