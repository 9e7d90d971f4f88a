"""Models that predict noise, data, v, flow or score: the scores they stand for, and the check of a score."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import needs_x64, rounding

from thermojax.distributions import GaussianMixture
from thermojax.dynamics import (
    Cosine,
    Elucidated,
    Interpolant,
    LogSnrLinear,
    OrnsteinUhlenbeck,
    ProbabilityFlow,
    Schedule,
    SubVariancePreserving,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
)
from thermojax.generative import (
    check_score,
    flow_log_prob,
    MixtureScore,
    Predicted,
    prediction_to_score,
    score_to_prediction,
)

KINDS = ("noise", "data", "v", "flow", "score")
DATA = GaussianMixture([1.0, 2.0], [[-1.0, 0.3], [0.8, 0.5]], [0.4, 0.2])
PROCESSES = {
    "variance preserving": VariancePreserving(0.2, 5.0),
    "sub-variance preserving": SubVariancePreserving(0.2, 5.0),
    "elucidated": Elucidated(),
    "interpolant": Interpolant(),
    "table": Tabulated([0.7, 0.2]),
    "own": Schedule(lambda t: -0.3 * t**2, lambda t: 3.0 - 5.0 * t),
}
# Of the same kinds.
MORE = {
    "Ornstein-Uhlenbeck": OrnsteinUhlenbeck(1.7, 0.6),
    "linear log-SNR": LogSnrLinear(4.0, -3.0),
    "variance exploding": VarianceExploding(0.1, 3.0),
    "cosine": Cosine(),
}
cases = [pytest.param(noising, id=name) for name, noising in PROCESSES.items()]
cases += [pytest.param(noising, id=name, marks=pytest.mark.slow) for name, noising in MORE.items()]
every_process = pytest.mark.parametrize("noising", cases)
T, X0, NOISE = 0.45, np.array([0.4, -1.1]), np.array([-0.7, 1.6])


def number(t):
    return jnp.asarray(t, float)


def close(found, expected, steps=10):
    return np.allclose(found, expected, rtol=rounding(steps=steps), atol=rounding(steps=steps))


@eqx.filter_jit
def scores_of(noising, t, predictions):
    """The score that each kind of prediction stands for at one noised datum, the predictions of these, and the scores of those."""
    x = noising.alpha(t) * jnp.asarray(X0) + jnp.sqrt(noising.variance(t)) * jnp.asarray(NOISE)
    scores = {kind: prediction_to_score(noising, kind, t, x, u) for kind, u in predictions.items()}
    turned = {kind: score_to_prediction(noising, kind, t, x, scores["score"]) for kind in predictions}
    return scores, turned, {kind: prediction_to_score(noising, kind, t, x, u) for kind, u in turned.items()}


@eqx.filter_jit
def ends_of(noising):
    """Factor and standard deviation at a time, and their slopes by central differences."""
    early, now, late = ((noising.alpha(t), jnp.sqrt(noising.variance(t))) for t in (number(T - 1e-5), number(T), number(T + 1e-5)))
    return *now, (late[0] - early[0]) / 2e-5, (late[1] - early[1]) / 2e-5


def true_predictions(noising):
    """What each kind predicts, by its definition."""
    scale, spread, first, second = (float(value) for value in ends_of(noising))
    return {
        "noise": NOISE,
        "data": X0,
        "v": scale * NOISE - spread * X0,
        "flow": first * X0 + second * NOISE,
        "score": -NOISE / spread,
    }


def check_scores(noising, predictions, tolerance):
    predictions = {kind: jnp.asarray(u, float) for kind, u in predictions.items()}
    scores, turned, again = scores_of(noising, number(T), predictions)
    for kind in KINDS:
        # Of finite differences nothing better can be asked than the tolerance; all else holds to rounding.
        bound = tolerance if kind == "flow" else rounding(steps=20)
        assert np.allclose(scores[kind], predictions["score"], rtol=bound, atol=bound), kind
        assert np.allclose(turned[kind], predictions[kind], rtol=bound, atol=bound), kind
        assert close(again[kind], predictions["score"], steps=20), kind


@needs_x64
@every_process
def test_every_kind_of_prediction_stands_for_its_score(noising):
    predictions = true_predictions(noising)
    check_scores(noising, predictions, 1e-8)
    wrong = {
        "noise": -predictions["noise"],
        "data": predictions["noise"],
        "v": -predictions["v"],
        "flow": -predictions["flow"],
    }
    for kind, u in wrong.items():
        with pytest.raises(AssertionError):
            check_scores(noising, predictions | {kind: u}, 1e-8)


@every_process
def test_scores_turned_into_predictions_turn_back(noising):
    zeros = {kind: jnp.zeros(2) for kind in KINDS[:-1]} | {"score": jnp.asarray([1.3, -0.2], float)}
    _, _, again = scores_of(noising, number(T), zeros)
    for kind in KINDS:
        assert close(again[kind], zeros["score"], steps=50)


def test_velocity_is_the_drift_of_the_probability_flow():
    # In its own time u = 1 - t the flow runs the other way.
    t, x, score = number(T), jnp.array([0.2, -0.5]), lambda t, x: t * x**2 - 1.0
    for noising in (PROCESSES["interpolant"], PROCESSES["sub-variance preserving"], PROCESSES["own"]):
        velocity = score_to_prediction(noising, "flow", t, x, score(t, x))
        assert close(velocity, -ProbabilityFlow(noising, score, 1.0).drift(1.0 - t, x), steps=20)


def test_predictions_are_read_at_the_noisy_end():
    # Nothing of the data is left: all of x is noise, and the data that are predicted do not matter.
    t, x, guess = number(1.0), jnp.array([0.4, -1.5]), jnp.array([3.0, 1.0])
    for noising in (Interpolant(), Cosine()):
        for kind, prediction in (("noise", x), ("data", guess), ("v", -guess), ("score", -x)):
            assert close(prediction_to_score(noising, kind, t, x, prediction), -x)
        # x' = alpha' x_0 + sigma' e.
        slopes = {Interpolant: (-1.0, 1.0), Cosine: (-0.5 * np.pi, 0.0)}[type(noising)]
        velocity = slopes[0] * guess + slopes[1] * x
        assert close(prediction_to_score(noising, "flow", t, x, velocity), -x)


# Models.


def as_model(noising, kind):
    """The exact model of this kind in our own time."""
    score = MixtureScore(noising, DATA)
    return lambda t, x: score_to_prediction(noising, kind, t, x, score(t, x))


def check_models(noising, scores):
    t, x = number(T), jnp.array([0.3, -0.8])
    found, expected = eqx.filter_jit(lambda t, x: ([score(t, x) for score in scores], MixtureScore(noising, DATA)(t, x)))(t, x)
    for score in found:
        assert close(score, expected, steps=50)


def test_an_exact_model_of_any_kind_is_the_exact_score():
    noising = VariancePreserving(0.2, 5.0)
    check_models(noising, [Predicted(noising, as_model(noising, kind), kind) for kind in KINDS])
    for kind, other in (("noise", "data"), ("v", "flow")):
        with pytest.raises(AssertionError):
            check_models(noising, [Predicted(noising, as_model(noising, kind), other)])


def check_clock(noising, model, kind, clock):
    # Any function will do for a score.
    t, x = number(T), jnp.array([0.3, -0.8])
    assert close(Predicted(noising, model, kind, clock)(t, x), t * x**2 - 1.0)


def test_the_clock_is_that_of_the_model():
    of = lambda noising, kind: lambda t, x: score_to_prediction(noising, kind, t, x, t * x**2 - 1.0)
    # An index that starts at zero, a log signal-to-noise ratio, and a flow that runs from noise to data.
    table, linear, straight = Tabulated([0.7, 0.2]), LogSnrLinear(4.0, -3.0), Interpolant()
    check_clock(table, lambda k, x: of(table, "noise")(k + 1.0, x), "noise", lambda t: t - 1.0)
    check_clock(linear, lambda level, x: of(linear, "data")((4.0 - level) / 7.0, x), "data", linear.log_snr)
    towards = lambda s, x: -of(straight, "flow")(1.0 - s, x)
    check_clock(straight, lambda s, x: -towards(s, x), "flow", lambda t: 1.0 - t)
    with pytest.raises(AssertionError):
        check_clock(straight, towards, "flow", lambda t: 1.0 - t)
    with pytest.raises(AssertionError):
        check_clock(straight, lambda s, x: -towards(s, x), "flow", None)


class Linear(eqx.Module):
    """A multiple of x, with a key for its dropout."""

    factor: jax.Array

    def __call__(self, t, x, *, key=None):
        return self.factor * (x if key is None else jnp.where(jr.bernoulli(key, 0.5, x.shape), x, 0.0))


def test_gradients_reach_the_model():
    noising, x = Interpolant(), jnp.array([0.3, -0.8])
    total = lambda score: jnp.sum(score(number(T), x) ** 2)
    slope = eqx.filter_grad(total)(Predicted(noising, Linear(number(0.5)), "noise")).model.factor
    # The score is -factor x / t.
    assert close(slope, 2 * 0.5 * jnp.sum(x**2) / T**2)


def test_a_key_reaches_the_model(key):
    noising, x = LogSnrLinear(4.0, -3.0), jnp.ones(20)
    score = Predicted(noising, Linear(number(1.0)), "noise")
    dropped = score(number(T), x, key=key) == 0.0
    assert jnp.any(dropped)
    assert not jnp.all(dropped)
    assert not jnp.any(score(number(T), x) == 0.0)


@needs_x64
@pytest.mark.slow
def test_likelihood_of_the_flow_does_not_depend_on_the_kind():
    noising, xs = VariancePreserving(), jnp.array([[0.3, -0.2]])
    late = noising.marginal(DATA, number(1.0))
    for kind in ("v", "flow"):
        score = Predicted(noising, as_model(noising, kind), kind)
        logs = flow_log_prob(noising, score, xs, prior=late, start=1e-5, rtol=1e-8, atol=1e-8)
        expected = jax.vmap(noising.marginal(DATA, number(1e-5)).log_prob)(xs)
        assert np.allclose(logs, expected, rtol=1e-6)


def test_an_unknown_kind_is_refused():
    message = r"`kind` must be one of \('noise', 'data', 'v', 'flow', 'score'\), got 'epsilon'."
    with pytest.raises(ValueError, match=message):
        Predicted(Interpolant(), lambda t, x: x, "epsilon")
    with pytest.raises(ValueError, match=message):
        prediction_to_score(Interpolant(), "epsilon", number(T), jnp.zeros(1), jnp.zeros(1))


# The check of a score.

LEVELS = np.linspace(0.01, 1.0, 100)


class Broken(eqx.Module):
    """A score that fails in an interval of time, where a coordinate is below a limit."""

    value: jax.Array = eqx.field(converter=number)
    early: jax.Array = eqx.field(converter=number)
    late: jax.Array = eqx.field(converter=number)
    below: jax.Array = eqx.field(converter=number, default=np.inf)

    def __call__(self, t, x):
        return jnp.where((t > self.early) & (t < self.late) & (x < self.below), self.value, -x)


def test_a_good_score_passes_its_check():
    noising, data = LogSnrLinear(4.0, -3.0), np.ones((10, 2))
    for score in (Predicted(noising, lambda t, x: x, "v"), Broken(np.nan, 0.5, 0.5)):
        assert np.allclose(check_score(score, noising, data, LEVELS), LEVELS)
    assert check_score(lambda t, x: -x, noising, data[:1], 0.5).shape == (1,)


def test_a_score_that_is_not_finite_is_named_with_its_noise_level():
    noising, data = LogSnrLinear(4.0, -3.0), np.ones((4, 2))
    place = r"t = 0.37 \(log signal-to-noise ratio 1.41\), and so at 4 of 100 levels."
    with pytest.raises(ValueError, match="`score` must be finite at every noise level, got nan at " + place):
        check_score(Broken(np.nan, 0.365, 0.405), noising, data, LEVELS)
    with pytest.raises(ValueError, match="got inf at t = 0.01 .* and so at 1 of 100 levels"):
        check_score(Broken(np.inf, 0.0, 0.015), noising, data, LEVELS)
    # The noise goes up in one coordinate and down in the next.
    with pytest.raises(ValueError, match="got nan at t = 0.01"):
        check_score(Broken(np.nan, 0.0, 1.0, 0.9), noising, data, LEVELS)


def test_a_score_that_is_not_finite_raises_inside_compiled_code_too():
    noising, data = LogSnrLinear(4.0, -3.0), jnp.ones((3, 2))
    checked = eqx.filter_jit(lambda factor: check_score(lambda t, x: factor * x, noising, data, LEVELS))
    assert np.allclose(checked(number(1.0)), LEVELS)
    with pytest.raises(eqx.EquinoxRuntimeError, match="`score` must be finite at every noise level."):
        jax.block_until_ready(checked(number(jnp.nan)))


WRONG_SHAPES = {
    "a number": (lambda t, x: jnp.sum(x), r"`score` must return shape \(2,\) for a configuration of that shape, got shape \(\)."),
    "a row": (lambda t, x: x[None], r"`score` must return shape \(2,\) .*, got shape \(1, 2\)."),
    "a pair": (lambda t, x: (x, x), r"`score` must return shape \(2,\) .*, got tuple."),
}


@pytest.mark.parametrize(("score", "message"), WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_a_score_of_the_wrong_shape_is_refused(score, message):
    with pytest.raises(ValueError, match=message):
        check_score(score, LogSnrLinear(), np.ones((3, 2)), LEVELS)


def test_data_for_the_check_must_be_configurations():
    with pytest.raises(ValueError, match=r"`data` must have shape \(sample, dim\), got shape \(3,\)"):
        check_score(lambda t, x: -x, LogSnrLinear(), np.ones(3), LEVELS)
