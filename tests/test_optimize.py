import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from assertions import assert_estimate, needs_x64, rounding

from thermojax import exact
from thermojax.distributions import equilibrium
from thermojax.dynamics import Overdamped
from thermojax.ensemble import accumulate
from thermojax.estimators import mean
from thermojax.functionals import work, work_ito
from thermojax.optimize import fit, MeanLogRatio, MeanWork
from thermojax.potentials import Harmonic
from thermojax.protocols import Ramp, ramp_with_jumps
from thermojax.steppers import EulerMaruyama, ExactLinear


def trap(*, distance=2.0, knots=8, steps=40, samples=500, loss=MeanWork, stepper=None):
    """The moving trap of unit stiffness in unit time, as a loss of its protocol, and the ramp to start from."""
    ramp = ramp_with_jumps(0.0, distance, 1.0, knots=knots)
    dynamics = Overdamped(Harmonic(1.0), ramp)
    ends = [equilibrium(Harmonic(1.0), lam) for lam in (0.0, distance)]
    ends = ends[:1] if loss is MeanWork else ends
    return loss(dynamics, *ends, jnp.linspace(0.0, 1.0, steps + 1), samples, stepper), ramp


def descend(loss, ramp, key, *, steps=150, rate=0.1, **options):
    schedule = optax.cosine_decay_schedule(rate, steps)
    return fit(loss, ramp, optimizer=optax.adam(schedule), steps=steps, where=lambda p: p.knots, key=key, **options)


def test_closed_forms_are_the_tabulated_numbers():
    # Reference values: closed forms evaluated to twelve digits. A short ramp loses two digits to cancellation.
    rel = 1e-10 if jax.config.jax_enable_x64 else 2e-5
    for row, ramp, least in (
        ((5, 1, 1, 1), 9.19698602929, 8.33333333333),
        ((1, 0.1, 1, 1), 0.483741803596, 0.476190476190),
        ((2, 5, 1, 1), 0.641078071520, 0.571428571429),
        ((1, 2, 3, 1), 0.416873229348, 0.375),
    ):
        distance, duration, stiffness, mobility = row
        scales = {"stiffness": stiffness, "mobility": mobility}
        assert exact.moving_trap_work(distance, duration, **scales) == pytest.approx(ramp, rel=rel)
        assert exact.moving_trap_optimal_work(distance, duration, **scales) == pytest.approx(least, rel=rel)
    for row, least in (((1, 2, 1), 0.402918361125), ((1, 5, 1), 1.056537941924), ((2, 1, 1), -0.302575395069)):
        assert exact.breathing_trap_optimal_work(*row) == pytest.approx(least, rel=rel)
    for steps, expected in ((1, 0.5), (10, 0.369239139502), (100, 0.367893042136)):
        assert exact.annealed_trap_work(steps, 1, 1) == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("steps", [1, 10])
def test_discrete_annealing_with_exact_kernels_costs_the_tabulated_work(key, steps):
    # Switch first, then relax: the clock reads the end of each step.
    _, works = accumulate(
        work,
        Overdamped(Harmonic(1.0), Ramp(0.0, 1.0)),
        equilibrium(Harmonic(1.0), 0.0).sample(20_000, key=key),
        jnp.linspace(0.0, 1.0, steps + 1),
        stepper=ExactLinear(1.0),
        key=jr.fold_in(key, 1),
    )
    assert_estimate(mean(works), exact.annealed_trap_work(steps, 1.0, 1.0))


@pytest.mark.parametrize("protocol", ["ramp", "optimum"])
def test_simulated_work_is_the_closed_form(key, protocol):
    loss, ramp = trap(steps=200)
    chosen = ramp if protocol == "ramp" else exact.moving_trap_optimal_protocol(2.0, 1.0)
    expected = (exact.moving_trap_work if protocol == "ramp" else exact.moving_trap_optimal_work)(2.0, 1.0)
    driven = eqx.tree_at(lambda d: d.protocol, loss.dynamics, chosen)
    start_key, noise_key = jr.split(key)
    x0s = loss.initial.sample(10_000, key=start_key)
    _, works = accumulate(work, driven, x0s, loss.ts, stepper=ExactLinear(), key=noise_key)
    assert_estimate(mean(works), expected)
    assert_estimate(mean((works - expected) ** 2), 2 * expected)


@pytest.mark.parametrize("loss", [MeanWork, MeanLogRatio])
def test_descent_from_the_ramp_finds_the_jumps(key, loss):
    found = descend(*trap(loss=loss, samples=2000), key)
    assert jnp.max(jnp.abs(jnp.stack(found.model.jumps) - 2 / 3)) < 0.05
    assert jnp.all(found.model.start == 0)
    assert jnp.all(found.model.stop == 2)
    assert found.stopped == "steps"


@pytest.mark.slow
def test_no_optimiser_pushes_a_loss_below_its_bound_by_exploiting_the_step(key):
    # Driven hard: few and large steps, a large rate, the same noise in every step of the descent.
    hard = {"rate": 0.5, "steps": 300, "noise": "common"}
    coarse = {"steps": 5, "knots": 6, "samples": 500}
    for loss, bound in ((MeanLogRatio, 0.0), (MeanWork, 0.0)):
        problem, ramp = trap(loss=loss, **coarse)
        found = descend(problem, ramp, key, **hard).model
        fresh = mean(jnp.stack([problem(found, k) for k in jr.split(jr.fold_in(key, 1), 40)]))
        assert fresh.value > bound - 4 * fresh.stderr
        assert fresh.value > 0.9 * exact.moving_trap_optimal_work(2.0, 1.0)
    # The left-point sum has no bound, and the same optimiser finds that out.
    problem, ramp = trap(**coarse)

    def left_point_work(protocol, key):
        driven = eqx.tree_at(lambda d: d.protocol, problem.dynamics, protocol)
        x0s = problem.initial.sample(500, key=key)
        return jnp.mean(accumulate(work_ito, driven, x0s, problem.ts, stepper=EulerMaruyama(0.0), key=jr.fold_in(key, 1))[1])

    assert descend(left_point_work, ramp, key, **hard).history[-1] < -10


def test_forward_and_reverse_mode_take_the_same_path(key):
    reverse, forward = (descend(*trap(), key, steps=5, mode=mode) for mode in ("reverse", "forward"))
    assert jnp.max(jnp.abs(reverse.model.knots - forward.model.knots)) < rounding(1e3)
    assert jnp.max(jnp.abs(reverse.history - forward.history)) < rounding(1e3)


@pytest.mark.slow
def test_common_noise_makes_the_problem_deterministic(key):
    still = fit(*trap(), optimizer=optax.sgd(0.0), steps=4, noise="common", key=key)
    assert len(set(np.asarray(still.history).tolist())) == 1
    fresh = fit(*trap(), optimizer=optax.sgd(0.0), steps=4, key=key)
    assert len(set(np.asarray(fresh.history).tolist())) == 4


def bowl(model, key):
    return jnp.sum((model - 1.0) ** 2) + 0.0 * jr.normal(key)


def test_rounds_change_nothing(key):
    runs = [fit(bowl, jnp.zeros(3), optimizer=optax.adam(0.1), steps=7, every=n, noise="common", key=key) for n in (2, 7)]
    assert jnp.array_equal(runs[0].history, runs[1].history)
    assert jnp.array_equal(runs[0].model, runs[1].model)


def test_the_best_validated_model_is_returned_and_patience_stops(key):
    # The loss pulls to one, the validation wants a half: the best is on the way.
    found = fit(
        bowl,
        jnp.zeros(1),
        optimizer=optax.sgd(0.02),
        steps=1000,
        every=5,
        patience=4,
        validate=lambda model: jnp.sum((model - 0.5) ** 2),
        key=key,
    )
    assert found.stopped == "patience"
    assert abs(found.model[0] - 0.5) < 0.1
    assert found.history.shape[0] == found.steps + 4 * 5
    assert float(jnp.min(found.validation)) == float(found.validation[found.steps // 5 - 1])


def test_averaging_steadies_a_noisy_descent(key):
    noisy = lambda model, key: jnp.sum((model - 1.0 - jr.normal(key, (3,))) ** 2)
    plain, averaged = (fit(noisy, jnp.ones(3), optimizer=optax.sgd(0.2), steps=400, average=a, key=key).model for a in (0.0, 0.99))
    assert jnp.sum((averaged - 1) ** 2) < 0.3 * jnp.sum((plain - 1) ** 2)


def test_a_diverging_descent_stops_and_keeps_what_it_had(key):
    found = fit(bowl, jnp.zeros(1), optimizer=optax.sgd(1e3), steps=1000, every=5, key=key)
    assert found.stopped == "diverged"
    assert bool(jnp.all(jnp.isfinite(found.model)))


def test_progress_is_told_after_each_round(key):
    told = []
    fit(bowl, jnp.zeros(1), optimizer=optax.sgd(0.1), steps=7, every=3, progress=lambda k, loss: told.append(k), key=key)
    assert told == [3, 6, 7]


@needs_x64
def test_gradient_of_the_protocol_is_exact_for_a_trap_without_noise():
    # Two knots, no temperature: the work is a quadratic form whose gradient follows from finite differences to rounding.
    from thermojax.baths import Isothermal
    from thermojax.distributions import Gaussian

    ramp = ramp_with_jumps(0.0, 1.0, 1.0, knots=3)
    loss = MeanWork(Overdamped(Harmonic(1.0), ramp, Isothermal(1e30)), Gaussian([0.0], 1e-30), jnp.linspace(0.0, 1.0, 21), 2)
    value = lambda knots: loss(eqx.tree_at(lambda p: p.knots, ramp, knots), jr.key(0))
    gradient = eqx.filter_grad(value)(ramp.knots)
    for i in range(3):
        push = 1e-4 * jnp.eye(3)[i]
        assert gradient[i] == pytest.approx(float(value(ramp.knots + push) - value(ramp.knots - push)) / 2e-4, rel=1e-7)


def test_bad_choices_are_refused(key):
    run = lambda **bad: fit(bowl, jnp.zeros(2), **({"optimizer": optax.sgd(0.1), "steps": 2, "key": key} | bad))
    for bad, message in (
        ({"mode": "sideways"}, "`mode` must be 'reverse' or 'forward', got 'sideways'."),
        ({"noise": "some"}, "`noise` must be 'fresh' or 'common', got 'some'."),
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"average": 1.0}, r"`average` must lie in \[0, 1\), got 1.0."),
        ({"patience": 3}, "`patience` must come with `validate`, got 3."),
    ):
        with pytest.raises(ValueError, match=message):
            run(**bad)
    with pytest.raises(ValueError, match=r"`loss` must return one number, got shape \(2,\)."):
        fit(lambda model, key: model, jnp.zeros(2), optimizer=optax.sgd(0.1), steps=2, key=key)
