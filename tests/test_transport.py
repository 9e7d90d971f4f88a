"""The cost of schedules: action, length, constant speed, and the distance that bounds them."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_order, needs_x64, rounding
from scipy.stats import norm
from systems import Scaled

from thermojax.distributions import Gaussian, GaussianMixture, standard_normal
from thermojax.dynamics import (
    Cosine,
    Interpolant,
    LogSnrLinear,
    OrnsteinUhlenbeck,
    VarianceExploding,
    VariancePreserving,
)
from thermojax.generative import constant_speed_grid, MixtureScore, squared_wasserstein, transport_cost

DATA = GaussianMixture([1.0, 1.0], [[1.0], [-1.0]], [0.4, 0.4])
X64 = jax.config.jax_enable_x64
# Action and length for these data until they are N(0, 1), and the distance that bounds them: exact, quadrature.
COSTS = {
    "straight": (Interpolant(), 1.0, 0.576692071546, 0.694087710161),
    "cosine": (Cosine(), 1.0, 0.096835923695, 0.278668604439),
    "Ornstein-Uhlenbeck": (OrnsteinUhlenbeck(), 3.0, 0.325622347432, 0.278172974719),
}
DISTANCE2 = 0.065104594812
marked = [pytest.param(*cost, marks=pytest.mark.slow if name == "cosine" else (), id=name) for name, cost in COSTS.items()]
every_schedule = pytest.mark.parametrize(("noising", "horizon", "action", "length"), marked)
PROCESSES = {
    "straight": Interpolant(),
    "Ornstein-Uhlenbeck": OrnsteinUhlenbeck(1.7, 0.6),
    "linear log-SNR": LogSnrLinear(4.0, -3.0),
    "variance exploding": VarianceExploding(0.1, 3.0),
}


def scaled(factor, noising, data):
    return Scaled(MixtureScore(noising, data), jnp.asarray(factor, float))


def check_cost(found, action, length):
    tolerance = 1e-8 if X64 else 1e-5
    assert float(found.action) == pytest.approx(action, rel=tolerance)
    assert float(found.length) == pytest.approx(length, rel=tolerance)
    # Geodesic below path, path below action.
    assert DISTANCE2 <= found.length**2 <= found.action
    assert found.action_error == found.length_error == 0 == jnp.max(found.speed_errors)


@every_schedule
def test_action_and_length_agree_with_quadrature(noising, horizon, action, length):
    found = transport_cost(noising, DATA, horizon=horizon)
    check_cost(found, action, length)
    assert found.ts.shape == found.speeds.shape == found.speed_errors.shape == (128,)
    assert 0 < found.ts[0] < found.ts[-1] < horizon
    wrong = {
        "squared length": found._replace(length=found.length**2),
        "not on the unit clock": found._replace(action=found.action / (horizon if horizon > 1 else 2.0)),
        "flow and entropy production confused": found._replace(action=2.0 * found.action),
    }
    for law in wrong.values():
        with pytest.raises(AssertionError):
            check_cost(law, action, length)


@pytest.mark.slow
def test_a_score_is_taken_as_it_is():
    noising, horizon, action, length = COSTS["straight"]
    cost = lambda factor: transport_cost(noising, DATA, score=scaled(factor, noising, DATA), horizon=horizon)
    check_cost(cost(1.0), action, length)
    with pytest.raises(AssertionError):
        check_cost(cost(1.01), action, length)


def shape_of_gaussian(noising, mean, variance, ts):
    """Mean, and standard deviation, of a Gaussian datum at these times, and their rates."""
    moments = lambda t: jnp.stack([noising.alpha(t) * mean, jnp.sqrt(noising.alpha(t) ** 2 * variance + noising.variance(t))])
    return jax.vmap(moments)(ts), jax.vmap(jax.jacfwd(moments))(ts)


@pytest.mark.slow
@pytest.mark.parametrize("noising", PROCESSES.values(), ids=PROCESSES)
def test_gaussian_data_move_at_the_speed_of_their_mean_and_width(noising):
    # Closed form for every linear process.
    data = Gaussian([0.7], 0.5)
    found = transport_cost(noising, data, nodes=32)
    _, rates = shape_of_gaussian(noising, 0.7, 0.5, found.ts)
    tolerance = 1e-9 if X64 else 1e-3
    speeds = jnp.sqrt(jnp.sum(rates**2, axis=1))
    assert np.allclose(found.speeds, speeds, rtol=tolerance)
    assert not np.allclose(found.speeds, jnp.sum(jnp.abs(rates), axis=1) + 0.01, rtol=tolerance)


@pytest.mark.slow
@needs_x64
def test_a_wrong_score_moves_gaussian_data_as_its_own_closed_form_says():
    noising, data, factor = OrnsteinUhlenbeck(), Gaussian([0.7], 0.5), 0.8
    found = transport_cost(noising, data, score=scaled(factor, noising, data), nodes=16)
    (means, widths), _ = (a.T for a in shape_of_gaussian(noising, 0.7, 0.5, found.ts))
    # -x + c (x - m)/w^2 has mean -m and slope c/w^2 - 1.
    expected = jnp.sqrt(means**2 + ((factor / widths**2 - 1.0) * widths) ** 2)
    assert np.allclose(found.speeds, expected, rtol=1e-9)
    assert not np.allclose(found.speeds, transport_cost(noising, data, nodes=16).speeds, rtol=1e-2)


@pytest.mark.slow
def test_lengths_do_not_depend_on_the_clock_and_start_where_the_noise_does():
    # The cosine is the variance-preserving path to the very end; VP and log-SNR stop short of it, or start with a little noise.
    lengths = [float(transport_cost(noising, DATA).length) for noising in (VariancePreserving(), LogSnrLinear())]
    assert lengths == pytest.approx([COSTS["cosine"][3]] * 2, rel=2e-4)
    # Without a drift the path to a large width is almost a dilation: its length is close to the distance.
    exploding = VarianceExploding(0.01, 10.0)
    found, ends = transport_cost(exploding, DATA), [exploding.marginal(DATA, jnp.asarray(t, float)) for t in (0.0, 1.0)]
    least = float(squared_wasserstein(*ends))
    assert least < float(found.length) ** 2 < 1.01 * least
    assert float(found.action) > 3 * least


def clock_action(noising, grid):
    """Action of the path when each interval of the grid takes the same time, and the lengths of the intervals."""
    pieces = [transport_cost(noising, DATA, start=t0, horizon=t1, nodes=8) for t0, t1 in zip(grid[:-1], grid[1:], strict=True)]
    return float(sum(piece.action for piece in pieces)) * len(pieces), [float(piece.length) for piece in pieces]


@pytest.mark.slow
@needs_x64
def test_a_clock_of_constant_speed_reaches_the_square_of_the_length_at_second_order():
    noising, horizon, sizes, excess = OrnsteinUhlenbeck(), 1.0, (8, 16), []
    found = transport_cost(noising, DATA, horizon=horizon)
    for steps in sizes:
        grid = constant_speed_grid(found, steps)
        assert grid.shape == (steps + 1,)
        assert grid[0] == 0
        assert grid[-1] == horizon
        least, lengths = clock_action(noising, grid)
        assert np.allclose(lengths, found.length / steps, rtol=1e-5)
        excess.append(least - float(found.length) ** 2)
    assert_order(excess, [1 / steps for steps in sizes], 2)
    assert 0 < excess[-1] < 0.02 * float(found.action - found.length**2)
    # The check can fail: equal times are not equal lengths.
    equal, lengths = clock_action(noising, jnp.linspace(0.0, horizon, 9))
    assert equal - float(found.length) ** 2 > 10 * excess[0]
    assert not np.allclose(lengths, found.length / 8, rtol=0.1)


def check_near(value, error, expected):
    assert error > 0, "an error bar of zero tests nothing"
    assert abs(float(value) - expected) < 4 * float(error), f"{float(value):.5f} ± {float(error):.5f} is not {expected:.5f}"


def stacked(dim):
    """The data in the first coordinate, and a Gaussian in each of the others, independent."""
    means = jnp.zeros((2, dim)).at[:, 0].set(jnp.array([1.0, -1.0])).at[:, 1:].set(0.3)
    return GaussianMixture([1.0, 1.0], means, jnp.full((2, dim), 0.4).at[:, 1:].set(0.7))


def check_many_dimensions(dim, key, *, extra):
    noising = Interpolant()
    found, line = transport_cost(noising, stacked(dim), samples=60, key=key), transport_cost(noising, DATA)
    _, rates = shape_of_gaussian(noising, 0.3, 0.7, line.ts)
    squares = line.speeds**2 + extra * jnp.sum(rates**2, axis=1)
    for value, error, rate in ((found.action, found.action_error, squares), (found.length, found.length_error, jnp.sqrt(squares))):
        check_near(value, error, float(np.trapezoid(rate, line.ts)))
    return found


@pytest.mark.slow
def test_independent_coordinates_add_their_actions(key):
    found = check_many_dimensions(16, key, extra=15)
    assert found.length**2 < found.action
    with pytest.raises(AssertionError):
        check_many_dimensions(16, key, extra=16)


@pytest.mark.slow
def test_samples_agree_with_quadrature(key):
    noising, horizon, action, length = COSTS["Ornstein-Uhlenbeck"]
    for k in jr.split(key, 4):
        found = transport_cost(noising, DATA, horizon=horizon, samples=1000, key=k)
        check_near(found.action, found.action_error, action)
        check_near(found.length, found.length_error, length)
        with pytest.raises(AssertionError):
            check_near(found.action, found.action_error, action / horizon)


# The distance.


def test_distance_to_a_normal_agrees_with_quadrature_and_is_symmetric():
    tolerance = 1e-10 if X64 else 1e-5
    assert float(squared_wasserstein(DATA, standard_normal(1))) == pytest.approx(DISTANCE2, rel=tolerance)
    assert float(squared_wasserstein(standard_normal(1), DATA)) == pytest.approx(DISTANCE2, rel=tolerance)


@pytest.mark.slow
def test_distance_of_gaussians_is_that_of_means_and_widths():
    found = squared_wasserstein(Gaussian([1.0], 4.0), Gaussian([-0.5], 1.0))
    assert float(found) == pytest.approx(1.5**2 + (2.0 - 1.0) ** 2, rel=rounding(steps=10))


@pytest.mark.slow
@needs_x64
def test_distance_of_two_mixtures_agrees_with_tabulated_quantiles():
    other = GaussianMixture([1.0, 2.0, 1.0], [[1.5], [-0.5], [0.3]], [0.4, 0.2, 1.0])
    xs = np.linspace(-12, 12, 200_001)

    def below(mixture):
        weights = np.asarray(mixture.weights / jnp.sum(mixture.weights))
        zs = (xs[:, None] - np.asarray(mixture.means)[:, 0]) / np.sqrt(np.asarray(mixture.covariances))
        return norm.cdf(zs) @ weights, norm.pdf(zs) / np.sqrt(np.asarray(mixture.covariances)) @ weights

    (ours, density), (theirs, _) = below(DATA), below(other)
    keep = (ours > 1e-13) & (ours < 1 - 1e-13)
    mapped = np.interp(ours[keep], theirs, xs)
    expected = np.sum(density[keep] * (xs[keep] - mapped) ** 2) * (xs[1] - xs[0])
    assert float(squared_wasserstein(DATA, other)) == pytest.approx(expected, rel=1e-6)
    assert float(squared_wasserstein(other, DATA)) == pytest.approx(expected, rel=1e-6)


# The border.


WIDE = GaussianMixture([1.0, 1.0], [[1.0, 0.0], [-1.0, 0.0]], [0.4, 0.4])
REFUSED = {
    "dimension": (lambda key: transport_cost(Cosine(), WIDE), "`samples` must be given in 2 dimensions: quadrature is for one, got None."),
    "key": (lambda key: transport_cost(Cosine(), WIDE, samples=9), "`key` must be given with `samples`, got None."),
    "samples": (lambda key: transport_cost(Cosine(), WIDE, samples=1, key=key), "`samples` must be at least 2, got 1."),
    "nodes": (lambda key: transport_cost(Cosine(), DATA, nodes=0), "`nodes` must be at least 1, got 0."),
    "times": (lambda key: transport_cost(Cosine(), DATA, start=1.0), "`horizon` must be finite and later than `start`, got 1.0."),
    "distance": (lambda key: squared_wasserstein(DATA, WIDE), "`second` must be in one dimension, got 2."),
    "steps": (lambda key: constant_speed_grid(transport_cost(OrnsteinUhlenbeck(), DATA), 0), "`steps` must be at least 1, got 0."),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_meaning_is_refused(key, call, message):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        call(key)
    assert str(refusal.value) == message


def test_new_numbers_do_not_compile_again():
    traces = []

    def spy(t, x):
        traces.append(1)
        return -x

    for scale in (1.0, 2.0):
        transport_cost(OrnsteinUhlenbeck(scale), Gaussian([scale], scale), score=spy, horizon=scale, nodes=4)
        first = first if scale > 1 else len(traces)
    assert len(traces) == first > 0
