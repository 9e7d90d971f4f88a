"""Flows that carry a driven ensemble along: exact ones, learned ones, and any."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import optax
import pytest
from assertions import assert_estimate, assert_order, needs_x64, rounding

from thermojax.baths import LinearBeta
from thermojax.distributions import free_energy, gaussian_equilibrium
from thermojax.dynamics import Escorted, Overdamped
from thermojax.ensemble import accumulate
from thermojax.escorting import (
    AffineFlow,
    Counterdiabatic,
    counterdiabatic,
    counterdiabatic_line,
    CounterdiabaticLine,
    neural_flow,
    still_flow,
)
from thermojax.estimators import exponential_mean, jarzynski, mean
from thermojax.fokker_planck import Grid, propose_grid
from thermojax.functionals import escorted_work, reduced_work
from thermojax.optimize import fit, LogRatio, MonteCarlo
from thermojax.potentials import Breathing, Harmonic
from thermojax.protocols import PiecewiseLinear, Ramp
from thermojax.switching import both_ways, drive, equilibrium_at, free_energy_change


def tilting(x, lam):
    """A trap in two dimensions that moves, turns and stiffens."""
    stiffness = jnp.stack([jnp.stack([2.0 + lam[0], 0.5 * lam[1]]), jnp.stack([0.5 * lam[1], 1.0 + lam[0] ** 2])])
    away = x - jnp.stack([lam[1], -2.0 * lam[0]])
    return 0.5 * away @ stiffness @ away


TILTING = Overdamped(tilting, Ramp([0.0, 0.0], [1.0, 1.0]), LinearBeta(1.0, 1.5), lambda t: 1.0 + 0.3 * t)


def well(x, lam):
    """Two wells, and a spring that pulls over the barrier."""
    return jnp.sum(1.5 * (x**2 - 1.0) ** 2 + 2.0 * (x - lam) ** 2)


PULLED = Overdamped(well, Ramp(-1.5, 1.0))
PULLED_DELTA = lambda: free_energy(well, 1.0) - free_energy(well, -1.5)


class Shift(eqx.Module):
    """An escort that follows the mean alone."""

    exact: Counterdiabatic

    def __call__(self, t, x):
        mean = gaussian_equilibrium(self.exact.driven.potential, self.exact.driven.protocol(t), dim=x.shape[0]).mean
        return self.exact(t, mean)


def gained(dynamics, flow, t, x):
    """The rate at which the equilibrium density outruns its flow at `x`, relative to it: zero for a flow that carries it."""
    density = lambda s: gaussian_equilibrium(dynamics.potential, dynamics.protocol(s), beta=dynamics.bath(s), dim=2)
    rate = jax.jvp(lambda s: density(s).log_prob(x), (t,), (jnp.ones_like(t),))[1]
    return rate + jnp.trace(jax.jacfwd(lambda y: flow(t, y))(x)) + flow(t, x) @ density(t).score(x)


@pytest.mark.slow
def test_the_flow_of_a_quadratic_potential_carries_its_equilibrium():
    flow, t = counterdiabatic(TILTING, dim=2).flow, jnp.asarray(0.4, float)
    places = jnp.asarray([[0.3, -1.0], [2.0, 0.5], [-1.0, 1.0]], float)
    carried = eqx.filter_jit(lambda flow: jax.vmap(lambda x: gained(TILTING, flow, t, x))(places))
    assert jnp.max(jnp.abs(carried(flow))) < rounding(20)
    # Without the part of the covariance it does not.
    with pytest.raises(AssertionError):
        assert jnp.max(jnp.abs(carried(Shift(flow)))) < rounding(20)


@pytest.mark.slow
def test_the_stretching_flow_has_derivatives_where_eigenvalues_coincide():
    def flow(end):
        dynamics = Overdamped(Breathing(), Ramp(jnp.asarray(1.0, float), end))
        return Counterdiabatic(dynamics)(jnp.asarray(0.5, float), jnp.ones(2))[0]

    # u = -k'/(2k) x with k = 1 + (end - 1)/2 halfway.
    assert flow(jnp.asarray(3.0, float)) == pytest.approx(-0.5, rel=rounding(10))
    assert jax.grad(flow)(jnp.asarray(3.0, float)) == pytest.approx(-0.125, rel=rounding(10))


def stretched(x, lam):
    """Two wells that move and widen as one: the flow of their equilibrium is affine."""
    y = (x - lam[0]) / lam[1]
    return jnp.sum((y**2 - 1.0) ** 2 + 0.3 * y)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_the_flow_by_quadrature_is_that_of_a_stretched_landscape(share):
    start, stop = jnp.asarray([0.0, 1.0], float), jnp.asarray([0.5, 2.0], float)
    dynamics = Overdamped(stretched, Ramp(start, stop))
    t = jnp.asarray(0.1 + share, float)
    xs = jnp.linspace(-1.0, 2.0, 13)[:, None]
    lam = start + t * (stop - start)
    expected = 0.5 + (xs - lam[0]) / lam[1]
    cells, errors = (200, 400), []
    for n in cells:
        flow = CounterdiabaticLine(dynamics, Grid(-8.0, 9.0, n))
        errors.append(float(jnp.sqrt(jnp.mean((jax.jit(jax.vmap(flow, (None, 0)))(t, xs) - expected) ** 2))))
    assert_order(errors, [1 / n for n in cells], 2, band=0.3)
    assert errors[-1] < 0.02


@pytest.mark.slow
def test_the_flow_by_quadrature_is_finite_in_the_tails_and_zero_outside_the_grid():
    flow = jax.jit(counterdiabatic_line(PULLED, Grid(-40.0, 40.0, 2000)).flow.__call__)
    t = jnp.asarray(0.5, float)
    assert all(bool(jnp.isfinite(flow(t, jnp.asarray([x], float))[0])) for x in (-39.0, -8.0, 0.0, 8.0, 39.0))
    assert flow(t, jnp.asarray([41.0], float))[0] == 0


def rough_flow(key, size=0.5):
    """A neural flow with random weights in its last layer too."""
    flow = neural_flow(1, scale=1.5, width=8, key=key)
    return eqx.tree_at(lambda f: f.network.layers[-1].weight, flow, size * jr.normal(key, (1, 8)))


def test_any_flow_gives_the_ratio_of_the_partition_functions_at_a_large_step(key):
    start_key, noise_key = jr.split(key)
    flow = AffineFlow([[0.5], [0.0], [-1.0]], [[[-1.0]], [[0.5]], [[-0.5]]])
    x0s = jr.normal(start_key, (20_000, 1))
    dynamics = Escorted(Overdamped(Breathing(), Ramp(1.0, 4.0)), flow)
    _, works = accumulate((escorted_work, reduced_work), dynamics, x0s, jnp.linspace(0.0, 1.0, 11), key=noise_key)
    assert_estimate(exponential_mean(works[0]), 0.5)
    # The work of the protocol alone is not that of the escorted path.
    with pytest.raises(AssertionError):
        assert_estimate(exponential_mean(works[1]), 0.5)


class Unturned(Escorted):
    """Escorted dynamics whose reversal forgets to turn the escort round."""

    def conjugate(self):
        return self


@pytest.mark.slow
def test_the_reversal_turns_the_escort_round(key):
    # Without the turn the average still holds, for another reversed measure: neither is that of the reversed experiment, nor does the
    # best escort cost nothing.
    right = counterdiabatic(Overdamped(Breathing(), Ramp(1.0, 4.0)))
    wrong, ts, delta = Unturned(right.driven, right.flow), jnp.linspace(0.0, 1.0, 41), jnp.log(2.0)
    forward, backward = both_ways(right, ts, 20_000, key=key)
    unturned = drive(wrong, ts, 20_000, initial=equilibrium_at(right, 0.0), key=key)
    assert_estimate(free_energy_change(forward, backward), delta)
    assert_estimate(exponential_mean(unturned.total_work), 0.5)
    assert mean(unturned.total_work).value - delta > 5 * (mean(forward.total_work).value - delta)
    with pytest.raises(AssertionError):
        assert_estimate(free_energy_change(unturned, backward), delta)


@pytest.mark.nightly
@pytest.mark.parametrize(("dynamics", "dim", "order"), [(TILTING, 2, 1), (Overdamped(Harmonic(), Ramp(0.0, 2.0)), 1, 2)])
def test_the_spread_of_the_best_escort_falls_with_the_step(key, dynamics, dim, order):
    escorted = counterdiabatic(dynamics, dim=dim)
    steps, spreads = (20, 60), []
    delta = equilibrium_delta(dynamics, dim)
    for n in steps:
        works = drive(escorted, jnp.linspace(0.0, 1.0, n + 1), 20_000, dim=dim, key=key).total_work
        assert_estimate(jarzynski(works, beta=1.0), delta)
        # The work is nearly Gaussian: half of its variance is dissipated.
        spreads.append(float(jnp.var(works)))
        assert mean(works).value - delta < spreads[-1]
    assert_order(spreads, [1 / n for n in steps], order, band=0.3)
    # With the mean alone the covariance lags behind.
    if dim == 2:
        partial = Escorted(dynamics, Shift(escorted.flow))
        lagging = drive(partial, jnp.linspace(0.0, 1.0, steps[-1] + 1), 5000, dim=dim, key=key)
        assert mean(lagging.total_work).value - delta > 3 * spreads[-1]


def equilibrium_delta(dynamics, dim):
    """Change of beta F of a trap whose energy at its minimum is zero."""
    ends = [equilibrium_at(dynamics, t, dim=dim) for t in (0.0, 1.0)]
    log_z = [-float(end.log_prob(end.mean)) for end in ends]
    return log_z[0] - log_z[1]


@pytest.mark.slow
def test_a_jump_is_not_escorted(key):
    # Each of two jumps by d costs kd^2/2, and the second one kd times what is left of the lag after unit time.
    jumps = Overdamped(Harmonic(), PiecewiseLinear(0.0, [0.5, 1.5], 2.0))
    smooth = Overdamped(Harmonic(), PiecewiseLinear(0.0, [0.0, 2.0], 2.0))
    jumping, following = (drive(counterdiabatic(d), jnp.linspace(0.0, 1.0, 101), 20_000, key=key).total_work for d in (jumps, smooth))
    assert_estimate(mean(jumping), 0.25 + 0.25 * jnp.exp(-1.0))
    assert mean(following).value < 0.01


@pytest.mark.nightly
@needs_x64
def test_a_learned_flow_lowers_the_dissipation_and_the_errors_of_the_free_energy(key):
    ts, delta = jnp.linspace(0.0, 1.0, 41), float(PULLED_DELTA())
    ends = [equilibrium_at(PULLED, t) for t in (0.0, 1.0)]
    flow_key, fit_key, test_key = jr.split(key, 3)
    plain = Escorted(PULLED, neural_flow(1, scale=1.5, width=16, key=flow_key))
    loss = MonteCarlo(LogRatio(ends[1]), ends[0], ts, 256)
    rates = optax.cosine_decay_schedule(0.02, 150)
    learned = fit(loss, plain, optimizer=optax.adam(rates), steps=150, where=lambda e: e.flow, key=fit_key)
    assert jnp.all(learned.history > 0)
    models = {
        "plain": plain,
        "random": Escorted(PULLED, rough_flow(flow_key, 0.3)),
        "learned": learned.model,
        "exact": counterdiabatic_line(PULLED, propose_grid(well, [-1.5, 1.0], cells=400)),
    }
    dissipated, jarzynski_errors, bar_errors = {}, {}, {}
    for name, model in models.items():
        forward, backward = both_ways(model, ts, 5000, initial=ends[0], final=ends[1], key=test_key)
        assert_estimate(free_energy_change(forward, backward), delta, min_ess=50)
        dissipated[name] = mean(forward.total_work - delta)
        jarzynski_errors[name] = jarzynski(forward.total_work, beta=1.0)
        bar_errors[name] = free_energy_change(forward, backward).stderr
    assert dissipated["plain"].value > 5 * dissipated["learned"].value
    # On this grid the best flow of continuous time is not the best.
    gap = dissipated["exact"].value - dissipated["learned"].value
    assert gap > -4 * jnp.hypot(dissipated["exact"].stderr, dissipated["learned"].stderr)
    assert_estimate(jarzynski_errors["learned"], delta)
    assert (jarzynski_errors["plain"].stderr / jarzynski_errors["learned"].stderr) ** 2 > 10
    assert (bar_errors["plain"] / bar_errors["learned"]) ** 2 > 10


@pytest.mark.slow
def test_an_affine_flow_learns_the_best_escort_of_a_trap(key):
    # V = k(t)(x - 2t)^2/2 with k = 1 + t: u = 2 - (x - 2t)/(2(1 + t)).
    driven = Overdamped(lambda x, lam: 0.5 * (1.0 + lam) * jnp.sum((x - 2.0 * lam) ** 2), Ramp(0.0, 1.0))
    ends = [equilibrium_at(driven, t) for t in (0.0, 1.0)]
    loss = MonteCarlo(LogRatio(ends[1]), ends[0], jnp.linspace(0.0, 1.0, 41), 300)
    rates = optax.cosine_decay_schedule(0.1, 150)
    found = fit(loss, Escorted(driven, still_flow(1, knots=5)), optimizer=optax.adam(rates), steps=150, where=lambda e: e.flow, key=key)
    assert jnp.mean(found.history[-20:]) < 0.03
    ts = jnp.linspace(0.1, 0.9, 5)
    at = jax.vmap(lambda t: found.model.flow(t, jnp.stack([2.0 * t]))[0])(ts)
    assert jnp.max(jnp.abs(at - 2.0)) < 0.3
    slope = jax.vmap(lambda t: jax.jacfwd(lambda x: found.model.flow(t, x))(jnp.zeros(1))[0, 0])(ts)
    assert jnp.max(jnp.abs(slope + 0.5 / (1.0 + ts))) < 0.25


@pytest.mark.slow
def test_flows_start_still_and_affine_ones_are_straight_between_knots(key):
    x = jnp.asarray([0.3, -1.0])
    for flow in (still_flow(2), neural_flow(2, key=key)):
        assert jnp.all(flow(jnp.asarray(0.2), x) == 0)
    flow = AffineFlow([[0.0], [1.0], [0.0]], [[[1.0]], [[1.0]], [[3.0]]], 2.0)
    for t, expected in ((0.5, 2.5), (1.5, 4.5), (2.5, 6.0), (-1.0, 2.0)):
        assert flow(jnp.asarray(t), jnp.asarray([2.0]))[0] == pytest.approx(expected)


REFUSED = {
    "anharmonic": (
        lambda: counterdiabatic(PULLED),
        "`dynamics` must have a quadratic potential; in one dimension .*, got .*Boltzmann",
    ),
    "pushed": (
        lambda: counterdiabatic(Overdamped(Harmonic(), Ramp(0.0, 1.0), nonconservative=lambda x, lam: x)),
        "`dynamics` must have no force that is not a gradient",
    ),
    "plane": (lambda: counterdiabatic_line(PULLED, Grid([0.0, 0.0], [1.0, 1.0], 8)), "`grid` must have one dimension, got 2."),
    "no dimension": (lambda: still_flow(0), "`dim` must be at least 1, got 0."),
    "no network": (lambda: neural_flow(0, key=jr.key(0)), "`dim` must be at least 1, got 0."),
    "knots": (lambda: still_flow(1, knots=1), "`knots` must be at least 2, got 1."),
    "shifts": (lambda: AffineFlow(jnp.zeros((1, 2)), jnp.zeros((1, 2, 2))), r"`shifts` must have shape \(knot >= 2, dim\)"),
    "slopes": (
        lambda: AffineFlow(jnp.zeros((3, 2)), jnp.zeros((3, 1, 1))),
        r"`slopes` must have shape \(3, 2, 2\), got",
    ),
    "duration": (lambda: still_flow(1, 0.0), "`duration` must be positive, got 0.0."),
    "depth": (lambda: neural_flow(1, depth=0, key=jr.key(0)), "`depth` must be at least 1"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
