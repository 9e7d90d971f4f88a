import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from assertions import assert_estimate, rounding

from thermojax.dynamics import Overdamped
from thermojax.estimators import mean
from thermojax.optimize import checkpoint_steps, fit, gradient_statistics, pareto
from thermojax.potentials import Harmonic
from thermojax.protocols import ramp_with_jumps


def bowl(model, key):
    return jnp.sum((model - 1.0) ** 2)


class Bowl(eqx.Module):
    """A quadratic about a noisy centre: the gradient has the mean 2(x - 1), and a variance of 4 spread^2 in each coordinate."""

    spread: jax.Array = eqx.field(converter=jnp.asarray, default=1.0)

    def __call__(self, model, key):
        centre = 1.0 + self.spread * jr.uniform(key, jnp.shape(model), minval=-(3**0.5), maxval=3**0.5)
        return jnp.sum((model - centre) ** 2)


# One of each, so that most tests share what is compiled.
NOISY = Bowl()
SLOW, STILL = optax.sgd(0.1), optax.sgd(0.0)


def descend(loss, start, key, **options):
    return fit(loss, start, **({"optimizer": SLOW, "steps": 20, "every": 5, "key": key} | options))


def same_bits(one, other):
    pairs = zip(*(jax.tree.leaves(eqx.filter(found, eqx.is_array)) for found in (one, other)), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.parametrize("noise", ["fresh", "common"])
def test_rounds_change_nothing(key, noise):
    runs = [descend(NOISY, jnp.zeros(2), key, steps=10, every=n, noise=noise) for n in (5, 10)]
    assert np.array_equal(runs[0].history, runs[1].history)
    assert np.array_equal(runs[0].model, runs[1].model)


def test_forward_and_reverse_mode_take_the_same_path(key):
    reverse, forward = (descend(NOISY, jnp.zeros(2), key, mode=mode) for mode in ("reverse", "forward"))
    assert np.max(np.abs(reverse.model - forward.model)) < rounding(10)
    assert np.max(np.abs(reverse.history - forward.history)) < rounding(100)


def test_common_noise_makes_the_problem_deterministic(key):
    still, moving = (descend(NOISY, jnp.zeros(2), key, optimizer=STILL, noise=noise) for noise in ("common", "fresh"))
    assert len(set(np.asarray(still.history).tolist())) == 1
    assert len(set(np.asarray(moving.history).tolist())) == 20


def test_the_best_validated_model_is_returned_and_patience_stops(key):
    # The loss pulls to one, the validation wants a half: the best is on the way.
    found = descend(
        bowl,
        jnp.zeros(1),
        key,
        optimizer=optax.sgd(0.02),
        steps=1000,
        patience=4,
        validate=lambda model: jnp.sum((model - 0.5) ** 2),
    )
    assert found.stopped == "converged"
    assert abs(float(found.model[0]) - 0.5) < 0.1
    assert found.history.shape[0] == found.steps + 4 * 5
    assert float(np.min(found.validation)) == float(found.validation[found.steps // 5 - 1])
    assert found.message == f"The validation had stopped improving after {found.steps + 20} steps: the model is that of step {found.steps}."


@pytest.mark.parametrize("validate", ["fresh", lambda model: jnp.sum((model - 1.0) ** 2)])
def test_a_quadratic_has_converged_where_its_decay_falls_below_the_tolerance(key, validate):
    # Gradient descent by 0.1: the loss after k steps is 0.64^k. A round of one step improves by 0.36 * 0.64^k.
    found = descend(bowl, jnp.zeros(1), key, steps=100, every=1, validate=validate, patience=1, tolerance=1e-3)
    last = next(k for k in range(100) if 0.36 * 0.64**k < 1e-3) + 1
    assert found.stopped == "converged"
    assert found.history.shape[0] == last
    assert found.steps == last


def test_slow_progress_adds_up_to_what_counts(key):
    # Each round improves by less than the tolerance, four of them by more.
    loss = lambda model, key: 1.0 * model
    slow = {"optimizer": optax.sgd(1.0), "steps": 40, "every": 1, "validate": "fresh", "tolerance": 3.5}
    assert descend(loss, jnp.zeros(()), key, patience=5, **slow).stopped == "steps"
    assert descend(loss, jnp.zeros(()), key, patience=3, **slow).stopped == "converged"


def test_fresh_noise_finds_the_best_where_the_loss_of_the_descent_keeps_falling(key):
    # Few data of many coordinates, the same at every step: the loss falls to zero, and what was learnt is their noise.
    def loss(model, key):
        zs = jr.uniform(key, (20, 41), minval=-(3**0.5), maxval=3**0.5)
        xs, ys = zs[:, :40], zs[:, 0] + zs[:, 40]
        return jnp.mean((xs @ model - ys) ** 2)

    # On fresh data of infinite number.
    risk = lambda model: 1 + np.sum((np.asarray(model) - np.eye(40)[0]) ** 2)
    found = [descend(loss, jnp.zeros(40), key, steps=100, every=2, noise="common", validate=v) for v in ("fresh", None)]
    assert found[1].steps == 100
    assert found[0].steps < 50
    assert np.max(np.diff(found[0].history)) < 0
    assert float(found[0].validation[-1]) > float(np.min(found[0].validation))
    assert risk(found[0].model) < risk(found[1].model)


@pytest.mark.slow
def test_averaging_steadies_a_noisy_descent(key):
    plain, averaged = (descend(NOISY, jnp.ones(50), key, optimizer=optax.sgd(0.2), steps=400, average=a).model for a in (0.0, 0.99))
    assert np.sum((np.asarray(averaged) - 1) ** 2) < 0.3 * np.sum((np.asarray(plain) - 1) ** 2)


def test_a_diverging_descent_stops_and_keeps_what_it_had(key):
    found = descend(bowl, jnp.zeros(1), key, optimizer=optax.sgd(1e3), steps=1000)
    assert found.stopped == "diverged"
    assert np.all(np.isfinite(found.model))
    assert found.message.startswith("The loss was not finite at step ")


def test_parameters_that_are_not_finite_stop_it_even_if_the_loss_is(key):
    # The loss of the last step is finite; its gradient is not.
    loss = lambda model, key: jnp.sum(jnp.where(model > 0.45, jnp.sqrt(0.5 - model), 1.0 - model))
    found = descend(loss, jnp.zeros(1), key, steps=6, every=3, validate="fresh")
    assert np.all(np.isfinite(found.history))
    assert found.stopped == "diverged"
    assert found.steps == 3
    assert abs(float(found.model[0]) - 0.3) < rounding()
    assert found.message == "A parameter was not finite after step 6: the model is that of step 3."


def test_a_validation_that_is_never_finite_is_said(key):
    found = descend(bowl, jnp.zeros(1), key, validate=lambda model: model[0] / 0.0)
    assert found.steps == 0
    assert found.message == "No validation in 20 steps was finite: the model is that of step 0."


def test_progress_is_told_after_each_round(key):
    told = []
    found = descend(bowl, jnp.zeros(1), key, steps=7, every=3, progress=lambda k, loss: told.append((k, loss)))
    assert [k for k, _ in told] == [3, 6, 7]
    assert told[2][1] == pytest.approx(float(found.history[6]))
    assert told[1][1] == pytest.approx(float(np.mean(found.history[3:6])))


class Rattle(eqx.Module):
    """A model with what a gradient has no use for."""

    knots: jax.Array
    count: jax.Array
    act: object
    rate: float = 0.5
    name: str = eqx.field(static=True, default="rattle")
    none: None = None


def rattle():
    return Rattle(jnp.zeros(2), jnp.arange(3), jnp.tanh)


@pytest.mark.parametrize("where", [None, lambda m: m, lambda m: m.knots, lambda m: (m.knots,), lambda m: [m.knots]])
def test_every_way_to_pick_the_only_array_picks_it(key, where):
    found = descend(lambda model, key: bowl(model.knots, key), rattle(), key, where=where)
    assert np.all(np.asarray(found.model.knots) > 0.9)
    assert np.array_equal(found.model.count, np.arange(3))
    assert found.model.act is jnp.tanh


def test_leaves_deep_in_a_dynamics_are_picked_and_the_others_stay(key):
    dynamics = Overdamped(Harmonic(3.0), ramp_with_jumps(0.0, 2.0, knots=4))
    loss = lambda d, key: jnp.sum((d.protocol.knots - 5.0) ** 2) + (d.potential.stiffness - 1.0) ** 2
    found = descend(loss, dynamics, key, steps=60, where=lambda d: (d.protocol.knots, d.potential)).model
    assert np.max(np.abs(np.asarray(found.protocol.knots) - 5)) < 0.01
    assert abs(float(found.potential.stiffness) - 1) < 0.01
    assert float(found.protocol.stop) == 2
    one = descend(loss, dynamics, key, where=lambda d: d.protocol.knots).model
    assert float(one.potential.stiffness) == 3


def test_what_has_no_gradient_is_refused_by_name(key):
    for where, message in (
        (lambda m: m.count, r"got an array of int(32|64) \(…\.count\)\."),
        (lambda m: (m.knots, m.count), r"got an array of int(32|64) \(…\.count\)\."),
        (lambda m: m.act, r"got a function \(…\.act\)\."),
        (lambda m: m.rate, r"got a float \(…\.rate\)\."),
        (lambda m: m.none, r"got nothing\."),
        (lambda m: (), r"got nothing\."),
        (lambda m: m.name, "`where` must pick leaves of the model, got 'rattle', which is none."),
        (lambda m: m.knots + 1.0, "`where` must pick leaves of the model as they are, got a computation with them."),
        (lambda m: m.knots[0], "`where` must pick leaves of the model as they are, got a computation with them."),
    ):
        with pytest.raises(ValueError, match=message):
            descend(lambda model, key: bowl(model.knots, key), rattle(), key, where=where)
    with pytest.raises(ValueError, match="`model` must have floating-point arrays as leaves, got none."):
        descend(lambda model, key: jnp.ones(()), jnp.arange(3), key)


def test_a_loss_that_does_not_depend_on_what_is_picked_is_refused(key):
    loss = lambda model, key: jnp.mean(jnp.where(model + jr.normal(key, (3,)) > 0.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="`loss` must depend on the leaves that are picked, got a gradient of zero in each of "):
        descend(loss, jnp.zeros(3), key)
    # One member of a front is enough: nothing is asked of it.
    with pytest.raises(ValueError, match=r"`loss` must depend .* in each of the 2 steps for the weights \[0. 0.\]."):
        pareto(two_bowls(), jnp.zeros(3), [[1.0, 1.0], [0.0, 0.0]], optimizer=SLOW, steps=2, key=key)


def test_bad_choices_are_refused(key, tmp_path):
    for bad, message in (
        ({"mode": "sideways"}, "`mode` must be 'reverse' or 'forward', got 'sideways'."),
        ({"noise": "some"}, "`noise` must be 'fresh' or 'common', got 'some'."),
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"average": 1.0}, r"`average` must lie in \[0, 1\), got 1.0."),
        ({"patience": 3}, "`patience` must come with `validate`, got 3."),
        ({"patience": 0, "validate": "fresh"}, "`patience` must be at least 1, got 0."),
        ({"validate": "stale"}, "`validate` must be 'fresh' or a function of the model, got 'stale'."),
        ({"tolerance": 0.1, "validate": "fresh"}, "`tolerance` must come with `patience`, got 0.1."),
        ({"tolerance": -1.0, "validate": "fresh", "patience": 1}, "`tolerance` must be finite and not negative, got -1.0."),
        ({"checkpoint": tmp_path / "no" / "file"}, "`checkpoint` must be in a folder that exists, got "),
    ):
        with pytest.raises(ValueError, match=message):
            descend(bowl, jnp.zeros(2), key, **bad)
    with pytest.raises(ValueError, match=r"`loss` must return one number, got shape \(2,\)."):
        descend(lambda model, key: model, jnp.zeros(2), key)
    with pytest.raises(ValueError, match=r"`loss` must return a floating-point number, got int"):
        descend(lambda model, key: jnp.sum(model > 0.0), jnp.zeros(2), key)


class InterruptionError(Exception):
    pass


def interrupted_at(stop):
    def progress(k, *loss):
        if k == stop:
            raise InterruptionError

    return progress


# Noise in the optimiser, averages, validation: everything that a descent carries along.
FULL = {
    "optimizer": optax.chain(optax.add_noise(0.01, 0.55, jr.key(7)), optax.adam(0.1)),
    "average": 0.9,
    "validate": "fresh",
    "patience": 6,
    "steps": 20,
}


@pytest.mark.parametrize("stops", [(5,), (10, 15)])
def test_an_interrupted_descent_goes_on_to_the_same_bits(key, tmp_path, stops):
    run = lambda **options: descend(NOISY, rattle().knots, key, **(FULL | options))
    path = tmp_path / "descent"
    for stop in stops:
        with pytest.raises(InterruptionError):
            run(checkpoint=path, progress=interrupted_at(stop))
    told = []
    resumed = run(checkpoint=path, progress=lambda k, loss: told.append(k))
    assert told[0] == stops[-1] + 5
    whole = run()
    assert same_bits(resumed, whole)
    assert resumed[3:] == whole[3:]
    # What has come to its end is read, not made again.
    again = run(checkpoint=path, progress=interrupted_at(20))
    assert same_bits(again, whole)
    assert again.stopped == "steps"
    with pytest.raises(AssertionError):
        assert same_bits(run(average=0.5), whole)
    assert os.listdir(tmp_path) == ["descent"]


def test_checkpoints_of_another_problem_are_refused(key, tmp_path):
    path = tmp_path / "descent"
    run = lambda loss=NOISY, start=(0.0, 0.0), key=key, **options: descend(loss, jnp.asarray(start), key, checkpoint=path, **options)
    run()
    for bad, message in (
        ({"steps": 30}, "with `steps` = 20 instead of 30."),
        ({"noise": "common"}, "with `noise` = 'fresh' instead of 'common'."),
        ({"validate": "fresh"}, "with `validate` = None instead of 'fresh'."),
        ({"start": (0.0, 0.0, 0.0)}, "with other leaves to optimise, or another optimiser."),
        ({"optimizer": optax.adam(0.1)}, "with other leaves to optimise, or another optimiser."),
        ({"start": (0.0, 1.0)}, "with other numbers in the loss or in the model."),
        ({"loss": Bowl(2.0)}, "with other numbers in the loss or in the model."),
        ({"key": jr.fold_in(key, 1)}, "with another `key`."),
    ):
        with pytest.raises(ValueError, match=f"`checkpoint` must be that of the same problem, got .*{message}"):
            run(**bad)
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-8], "`checkpoint` must be a whole file"),
        (b"", "`checkpoint` must be a file that `fit` or `pareto` wrote"),
        (b"\x00\xff", "`checkpoint` must be a file that `fit` or `pareto` wrote"),
        (b"[1]\n", "`checkpoint` must be a file that `fit` or `pareto` wrote"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            run()


def test_a_write_that_fails_leaves_the_checkpoint_before(key, tmp_path, monkeypatch):
    path = tmp_path / "descent"
    run = lambda **options: descend(NOISY, jnp.zeros(2), key, checkpoint=path, **options)
    with pytest.raises(InterruptionError):
        run(progress=interrupted_at(5))
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            run()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["descent"]
    assert same_bits(run(), descend(NOISY, jnp.zeros(2), key))


def check_gradient(found, *, spread):
    assert np.max(np.abs(np.asarray(found.mean.knots) - [-2.0, 4.0]) / found.stderr.knots) < 4
    assert_estimate(found.variance, 2 * 4 * spread**2)


@pytest.mark.parametrize("mode", ["reverse", pytest.param("forward", marks=pytest.mark.slow)])
def test_gradient_statistics_know_mean_and_variance_of_a_noisy_quadratic(key, mode):
    model = Rattle(jnp.asarray([0.0, 3.0]), jnp.arange(3), jnp.tanh)
    loss = lambda model, key: Bowl(0.5)(model.knots, key)
    found = gradient_statistics(loss, model, where=lambda m: m.knots, mode=mode, repeats=1000, key=key)
    check_gradient(found, spread=0.5)
    assert_estimate(found.loss, 1.0 + 4.0 + 2 * 0.25)
    assert found.mean.count is None
    assert bool(found.trustworthy)
    assert not bool(gradient_statistics(loss, model, where=lambda m: m.knots, mode=mode, repeats=5, key=key).trustworthy)
    with pytest.raises(AssertionError):
        check_gradient(found, spread=0.6)


@pytest.mark.slow
def test_gradients_that_are_not_finite_are_not_trusted(key):
    loss = lambda model, key: jnp.sqrt(jnp.abs(jnp.sum(model) + jnp.where(jr.uniform(key) < 0.3, 0.0, 1.0)))
    found = gradient_statistics(loss, jnp.zeros(1), repeats=100, key=key)
    assert not bool(found.trustworthy)
    assert float(found.variance.excluded) > 0
    assert float(found.mean[0]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="`loss` must be finite, like its gradient, in at least two calls, got 0 of 3."):
        gradient_statistics(lambda model, key: jnp.sum(model) / 0.0, jnp.zeros(1), repeats=3, key=key)


def test_gradient_statistics_refuse_bad_choices(key):
    for bad, message in (
        ({"repeats": 1}, "`repeats` must be at least 2, got 1."),
        ({"mode": "sideways"}, "`mode` must be 'reverse' or 'forward', got 'sideways'."),
    ):
        with pytest.raises(ValueError, match=message):
            gradient_statistics(bowl, jnp.zeros(1), key=key, **bad)


class Sum(eqx.Module):
    weights: jax.Array


class TwoBowls(eqx.Module):
    """Two quadratics with their least at either end of a segment, each with noise in its value or in its centre."""

    ends: jax.Array
    objective: Sum
    shake: jax.Array
    wobble: jax.Array

    def terms(self, model, key):
        value_key, centre_key = jr.split(key)
        centre = self.ends + self.wobble * jr.normal(centre_key, self.ends.shape)
        return jnp.sum((model[None] - centre) ** 2, axis=1) + self.shake * jr.normal(value_key, (2,))

    def __call__(self, model, key):
        return jnp.sum(self.objective.weights * self.terms(model, key))


def two_bowls(shake=0.0, wobble=0.0):
    ends = jnp.asarray([[0.0, 1.0, 2.0], [3.0, 1.0, -1.0]])
    return TwoBowls(ends, Sum(jnp.ones(2)), jnp.asarray(shake), jnp.asarray(wobble))


WEIGHTS = np.array([[1.0, 0.0], [1.5, 0.5], [1.0, 1.0], [0.1, 0.9], [0.0, 2.0]])


def check_segment(front, ends, weights, close):
    shares = weights / weights.sum(axis=1, keepdims=True)
    assert np.max(np.abs(np.stack(front.models) - shares @ ends)) < close
    terms = np.sum((ends[1] - ends[0]) ** 2) * shares[:, ::-1] ** 2
    assert np.max(np.abs(front.values - terms)) < 10 * close


def test_the_front_of_two_quadratics_is_the_segment_between_them(key):
    loss = two_bowls()
    front = pareto(loss, jnp.zeros(3), WEIGHTS, optimizer=SLOW, steps=60, key=key)
    # Descent by 0.1 leaves (1 - 0.2)^60 of the way where the weights sum to one.
    check_segment(front, np.asarray(loss.ends), WEIGHTS, 1e-4)
    assert not np.any(front.dominated)
    with pytest.raises(AssertionError):
        check_segment(front, np.asarray(loss.ends), WEIGHTS[::-1], 1e-4)


def test_a_member_that_another_beats_in_every_term_is_dominated(key):
    # One descent is too slow for its weights: it stays far from the segment. The noise of the terms is common and hides nothing.
    weights = np.array([[1.0, 1.0], [1e-4, 1e-4], [2.0, 1.0], [1.0, 2.0], [1.0, 0.5]])
    front = pareto(two_bowls(shake=10.0), 9.0 * jnp.ones(3), weights, optimizer=SLOW, steps=60, key=key)
    assert front.dominated.tolist() == [False, True, False, False, False]
    assert np.min(front.stderrs) > 1


@pytest.mark.slow
def test_terms_of_a_front_are_judged_with_standard_errors(key):
    front = pareto(two_bowls(wobble=0.1), jnp.zeros(3), WEIGHTS, optimizer=STILL, steps=1, repeats=200, key=key)
    exact = np.asarray([5.0, 11.0]) + 3 * 0.1**2
    assert np.max(np.abs((np.asarray(front.values) - exact) / front.stderrs)) < 4
    # The same model and the same noise for all.
    assert np.max(np.ptp(front.values, axis=0)) == 0


def test_a_member_that_diverges_is_dominated(key):
    weights = np.array([[1.0, 1.0], [1e9, 1e9], [2.0, 1.0], [1.0, 2.0], [1.0, 0.5]])
    front = pareto(two_bowls(), 9.0 * jnp.ones(3), weights, optimizer=SLOW, steps=60, key=key)
    assert front.dominated.tolist() == [False, True, False, False, False]


def test_an_interrupted_front_goes_on_to_the_same_bits(key, tmp_path):
    path = tmp_path / "front"
    options = {"optimizer": FULL["optimizer"], "steps": 12, "every": 5, "average": 0.9, "repeats": 2}
    run = lambda weights=WEIGHTS, key=key, **more: pareto(two_bowls(shake=1.0), jnp.zeros(3), weights, key=key, **options, **more)
    with pytest.raises(InterruptionError):
        run(checkpoint=path, progress=interrupted_at(5))
    told = []
    resumed = run(checkpoint=path, progress=told.append)
    assert told == [10, 12]
    whole = run()
    assert same_bits(resumed, whole)
    assert same_bits(run(checkpoint=path, progress=interrupted_at(12)), whole)
    assert checkpoint_steps(path) == (12, 12)
    for other, message in (
        ({"weights": WEIGHTS[::-1]}, "with other numbers in the loss or in the model."),
        ({"weights": WEIGHTS[1:]}, "with other leaves to optimise, or another optimiser."),
        ({"key": jr.fold_in(key, 1)}, "with another `key`."),
    ):
        with pytest.raises(ValueError, match=f"`checkpoint` must be that of the same problem, got .*{message}"):
            run(checkpoint=path, **other)
    with pytest.raises(ValueError, match="`checkpoint` must be that of the same problem"):
        descend(NOISY, jnp.zeros(2), key, checkpoint=path)


def test_fronts_refuse_bad_choices(key):
    run = lambda loss=None, weights=WEIGHTS, **bad: pareto(
        two_bowls() if loss is None else loss, jnp.zeros(3), weights, **({"optimizer": SLOW, "steps": 2, "key": key} | bad)
    )
    for bad, message in (
        ({"loss": bowl}, "`loss` must have `objective.weights` and `terms`, as of a weighted sum of objectives, got function."),
        ({"weights": [1.0, 1.0]}, r"`weights` must have shape \(member, 2\), one column for each term, got shape \(2,\)."),
        ({"weights": np.ones((2, 3))}, r"`weights` must have shape \(member, 2\), one column for each term, got shape \(2, 3\)."),
        ({"weights": [[1.0, -1.0]]}, r"`weights` must be finite and not negative, got "),
        ({"weights": [[1.0, np.nan]]}, r"`weights` must be finite and not negative, got "),
        ({"steps": 0}, r"`steps` must be at least 1, like `every`, got \(0, 50\)."),
        ({"repeats": 1}, "`repeats` must be at least 2, got 1."),
        ({"average": -0.1}, r"`average` must lie in \[0, 1\), got -0.1."),
    ):
        with pytest.raises(ValueError, match=message):
            run(**bad)


def test_new_numbers_compile_nothing_anew(key):
    traces = []

    class Counted(Bowl):
        def __call__(self, model, key):
            traces.append(1)
            return super().__call__(model, key)

    optimizer = SLOW
    counts = []
    for spread, average in ((1.0, 0.5), (2.0, 0.6)):
        before = len(traces)
        descend(Counted(spread), jnp.zeros(2), key, optimizer=optimizer, average=average, validate="fresh")
        counts.append(len(traces) - before)
    # What is left looks at the shape of the loss.
    assert counts[1] < counts[0]
    assert counts[1] <= 3


@pytest.mark.slow
def test_means_of_losses_are_as_good_as_their_error_bars(key):
    # The fresh noise of a validation is not that of the descent.
    found = descend(NOISY, jnp.ones(2), key, optimizer=STILL, steps=400, every=1, validate="fresh")
    assert len(set(np.asarray(found.validation).tolist())) == 1
    assert float(found.validation[0]) not in np.asarray(found.history).tolist()
    assert_estimate(mean(found.history), 2.0)
