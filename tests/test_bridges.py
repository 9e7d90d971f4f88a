import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding

from thermojax.bridges import (
    BridgeMatching,
    Brownian,
    ExactBridge,
    GaussianBridge,
    Guides,
    learn_bridge,
    sampled_bridge,
    Samples,
)
from thermojax.distributions import Gaussian, GaussianMixture, squared_wasserstein
from thermojax.dynamics import OrnsteinUhlenbeck, Overdamped, Reversed, VariancePreserving
from thermojax.ensemble import accumulate, simulate
from thermojax.estimators import jarzynski, mean
from thermojax.experiments import Silent
from thermojax.experiments._bridge import EXPERIMENT
from thermojax.measures import nelson_residual
from thermojax.potentials import Harmonic
from thermojax.protocols import Constant

FIRST, LAST = np.array([[1.0, 0.3], [0.3, 0.5]]), np.array([[0.4, -0.2], [-0.2, 1.5]])
REFERENCES = {"Brownian": Brownian(0.8), "OU": OrnsteinUhlenbeck(0.7, 0.5), "varying": VariancePreserving(0.5, 3.0)}
T1 = {"Brownian": 1.5, "OU": 1.5, "varying": 1.0}
every_reference = pytest.mark.parametrize("name", REFERENCES)


def bridge_of(name, **changes):
    reference = REFERENCES[name]
    ends = {"initial": Gaussian([0.5, -1.0], FIRST), "final": Gaussian([1.0, 1.0], LAST)} | changes
    return GaussianBridge(ends["initial"], ends["final"], reference, 0.0, T1[name])


def on_line(reference, first=(0.5, 0.7), last=(-0.4, 0.3), t1=1.5):
    return GaussianBridge(Gaussian([first[0]], first[1]), Gaussian([last[0]], last[1]), reference, 0.0, t1)


def relative_entropy(p, q):
    """KL of two Gaussians, by the textbook formula in NumPy."""
    (m, a), (n, b) = ((np.asarray(g.mean, float), np.asarray(g.covariance, float)) for g in (p, q))
    inverse = np.linalg.inv(b)
    logs = np.linalg.slogdet(b)[1] - np.linalg.slogdet(a)[1]
    return 0.5 * (np.trace(inverse @ a) + (n - m) @ inverse @ (n - m) - m.size + logs)


def reference_coupling(bridge):
    """The joint density of both ends of the reference, which starts from the first density."""
    alpha, v = (float(a) for a in bridge.reference.transition(bridge.t0, bridge.t1))
    m, c = np.asarray(bridge.initial.mean, float), np.asarray(bridge.initial.covariance, float)
    joint = np.block([[c, alpha * c], [alpha * c, alpha**2 * c + v * np.eye(m.size)]])
    return Gaussian(np.concatenate([m, alpha * m]), joint)


def sinkhorn_on_a_grid(bridge, nodes=360, iterations=400):
    """Cross-covariance and path KL by Sinkhorn's iteration on a grid: knows nothing of Gaussians but their densities."""
    grid = np.linspace(-7.5, 7.5, nodes)
    alpha, v = (float(a) for a in bridge.reference.transition(bridge.t0, bridge.t1))
    weigh = lambda g: np.exp(-0.5 * (grid - float(g.mean[0])) ** 2 / float(g.covariance))
    a, b = (w / w.sum() for w in (weigh(bridge.initial), weigh(bridge.final)))
    kernel = np.exp(-0.5 * (grid[None] - alpha * grid[:, None]) ** 2 / v) / np.sqrt(2 * np.pi * v) * (grid[1] - grid[0])
    left = np.ones(nodes)
    for _ in range(iterations):
        right = b / (left @ kernel)
        left = a / (kernel @ right)
    plan = left[:, None] * kernel * right[None]
    cross = grid @ plan @ grid - (a @ grid) * (b @ grid)
    # dP/dR with R from the first density.
    return cross, np.sum(plan * (np.log(left / a)[:, None] + np.log(right)[None]))


@pytest.mark.parametrize("name", ["Brownian", "OU"])
def test_closed_form_is_that_of_sinkhorn_on_a_grid(name):
    bridge = on_line(REFERENCES[name])
    cross, kl = sinkhorn_on_a_grid(bridge)
    tolerance = max(1e-9, rounding(10))
    assert abs(float(bridge.coupling.covariance[0, 1]) - cross) < tolerance
    assert abs(float(bridge.path_kl()) - kl) < tolerance
    # A kernel of half the variance is not mistaken for it.
    wrong = on_line(Brownian(0.8 / np.sqrt(2))) if name == "Brownian" else on_line(OrnsteinUhlenbeck(0.7, 0.25))
    assert abs(float(wrong.coupling.covariance[0, 1]) - cross) > 1e-2


@pytest.mark.slow
@every_reference
def test_both_guides_add_up_to_the_score(name):
    bridge = bridge_of(name)
    score = lambda t, x: bridge.marginal(t).score(x)
    xs = [jnp.array([0.3, 0.4]), jnp.array([-1.0, 2.0])]
    largest = lambda reverse: max(
        float(jnp.max(jnp.abs(nelson_residual(bridge.dynamics, reverse, score, bridge.t1)(t, x))))
        for t in bridge.t1 * jnp.array([0.0, 0.3, 0.9, 1.0])
        for x in xs
    )
    assert largest(bridge.reverse) < rounding(20)
    assert largest(Reversed(bridge.reference, lambda t, x: -bridge.reverse_guide(t, x), bridge.t1)) > 0.1
    assert jnp.allclose(bridge.score(0.3 * bridge.t1, xs[0]), score(0.3 * bridge.t1, xs[0]), rtol=rounding(10))


@every_reference
def test_marginals_begin_and_end_right_and_move_by_the_drift(name):
    bridge = bridge_of(name)
    for t, end in ((bridge.t0, bridge.initial), (bridge.t1, bridge.final)):
        assert jnp.allclose(bridge.marginal(t).mean, end.mean, atol=rounding(10))
        assert jnp.allclose(bridge.marginal(t).covariance, end.covariance, atol=rounding(10))

    def imbalance(t, factor):
        # dm/dt = b(m) and dC/dt = JC + CJ' + sigma^2.
        moments = lambda s: (bridge.marginal(s).mean, bridge.marginal(s).covariance)
        (m, c), (dm, dc) = jax.jvp(moments, (t,), (jnp.ones_like(t),))
        slope = jax.jacfwd(lambda x: bridge.dynamics.drift(t, x))(m)
        noise = factor * bridge.dynamics.noise(t) ** 2 * jnp.eye(2, dtype=m.dtype)
        return max(jnp.max(jnp.abs(dm - bridge.dynamics.drift(t, m))), jnp.max(jnp.abs(dc - slope @ c - c @ slope.T - noise)))

    for share in (0.2, 0.5, 0.9):
        assert imbalance(share * bridge.t1, 1.0) < rounding(100)
        assert imbalance(share * bridge.t1, 0.5) > 0.1


@every_reference
def test_path_kl_is_that_of_the_ends_and_the_action_of_the_guide(name):
    bridge = bridge_of(name)
    exact = float(bridge.path_kl())
    assert exact == pytest.approx(relative_entropy(bridge.coupling, reference_coupling(bridge)), rel=max(1e-9, rounding(1)))
    nodes, weights = np.polynomial.legendre.leggauss(40)

    def power(t):
        marginal = bridge.marginal(t)
        slope = jax.jacfwd(lambda x: bridge.guide(t, x))(marginal.mean)
        square = jnp.sum(bridge.guide(t, marginal.mean) ** 2) + jnp.trace(slope @ marginal.covariance @ slope.T)
        return 0.5 * bridge.reference.noise(t) ** 2 * square

    times = 0.5 * bridge.t1 * (1 + jnp.asarray(nodes, bridge.t1.dtype))
    action = 0.5 * float(bridge.t1) * np.sum(weights * np.asarray(jax.vmap(power)(times), float))
    assert action == pytest.approx(exact, rel=max(1e-8, rounding(1)))


@every_reference
def test_path_kl_decomposes_for_any_coupling_of_the_same_ends(name):
    bridge = bridge_of(name)
    reference = reference_coupling(bridge)

    def excess(cross, last=LAST):
        joint = Gaussian(bridge.coupling.mean, np.block([[FIRST, cross], [cross.T, last]]))
        return relative_entropy(joint, reference) - relative_entropy(joint, bridge.coupling) - float(bridge.path_kl())

    for cross in (np.zeros((2, 2)), np.array([[0.1, -0.3], [0.2, 0.1]])):
        assert abs(excess(cross)) < max(1e-9, rounding(20))
    assert abs(excess(np.zeros((2, 2)), 1.2 * LAST)) > 5e-3


@pytest.mark.slow
def test_little_noise_is_optimal_transport():
    # The map of Gaussians is linear, A^{-1/2}(A^{1/2}BA^{1/2})^{1/2}A^{-1/2}.
    sigma = 0.02
    bridge = GaussianBridge(Gaussian([0.5, -1.0], FIRST), Gaussian([1.0, 1.0], LAST), Brownian(sigma))
    values, vectors = np.linalg.eigh(FIRST)
    root = (vectors * np.sqrt(values)) @ vectors.T
    values, vectors = np.linalg.eigh(root @ LAST @ root)
    middle = (vectors * np.sqrt(values)) @ vectors.T
    slope = np.linalg.solve(root, np.linalg.solve(root, middle).T)
    squared = np.sum((np.array([1.0, 1.0]) - [0.5, -1.0]) ** 2) + np.trace(FIRST + LAST - 2 * middle)
    # The corrections are of order sigma^2.
    assert np.allclose(bridge.coupling.covariance[:2, 2:], FIRST @ slope.T, atol=2 * sigma**2)
    half = 0.5 * (np.eye(2) + slope)
    assert np.allclose(bridge.marginal(0.5).covariance, half @ FIRST @ half.T, atol=2 * sigma**2)
    assert float(bridge.entropic_cost()) == pytest.approx(0.5 * squared, abs=20 * sigma**2)
    x, m = np.array([0.7, 0.2]), np.array([0.5, -1.0])
    speed = np.array([1.0, 1.0]) + slope @ (x - m) - x
    assert np.allclose(bridge.dynamics.drift(jnp.asarray(0.0), jnp.asarray(x)), speed, atol=10 * sigma**2)
    line = on_line(Brownian(sigma), t1=1.0)
    assert float(line.entropic_cost()) == pytest.approx(0.5 * float(squared_wasserstein(line.initial, line.final)), abs=10 * sigma**2)


def test_much_noise_leaves_the_ends_independent():
    sigma = 30.0
    bridge = GaussianBridge(Gaussian([0.5, -1.0], FIRST), Gaussian([1.0, 1.0], LAST), Brownian(sigma))
    assert np.allclose(bridge.coupling.covariance[:2, 2:], FIRST @ LAST / sigma**2, atol=20 / sigma**4)
    pinned = 0.75**2 * FIRST + 0.25**2 * LAST + 0.75 * 0.25 * sigma**2 * np.eye(2)
    assert np.allclose(bridge.marginal(0.25).covariance, pinned, rtol=1e-5, atol=5e-4)


def test_exact_steps_have_the_exact_marginals_at_any_step_and_euler_steps_do_not(key):
    bridge = bridge_of("OU")
    start_key, noise_key = jr.split(key)
    x0s = bridge.initial.sample(20000, key=start_key)
    ts = jnp.array([0.0, 0.9, 1.5])
    direction = jnp.array([0.6, -0.8])

    def check(stepper):
        paths = simulate(bridge.dynamics, x0s, ts, stepper=stepper, key=noise_key)
        for t, xs in zip(ts[1:], paths[1:], strict=True):
            exact = bridge.marginal(t)
            seen = (xs - exact.mean[None]) @ direction
            assert_estimate(mean(seen), 0.0)
            assert_estimate(mean(seen**2), direction @ exact.covariance @ direction)

    check(ExactBridge())
    with pytest.raises(AssertionError):
        check(None)


@jax.jit
def kernel_path_kl(bridge, ts):
    """Path KL to the reference of Euler's kernels, by the recursion of their moments."""
    one = jnp.eye(2, dtype=ts.dtype)

    def step(moments, ends):
        (m, c), (t0, t1) = moments, ends
        t, h = 0.5 * (t0 + t1), t1 - t0
        guide, slope = bridge.guide(t, m), jax.jacfwd(lambda x: bridge.guide(t, x))(m)
        noise, grown = bridge.reference.noise(t) ** 2, one + h * jax.jacfwd(lambda x: bridge.dynamics.drift(t, x))(m)
        cost = 0.5 * h * noise * (guide @ guide + jnp.trace(slope @ c @ slope.T))
        return (m + h * bridge.dynamics.drift(t, m), grown @ c @ grown.T + h * noise * one), cost

    return jnp.sum(jax.lax.scan(step, (bridge.initial.mean, bridge.initial.covariance), (ts[:-1], ts[1:]))[1])


@pytest.mark.slow
def test_simulated_path_kl_is_that_of_the_kernels(key):
    near = {"initial": Gaussian([0.2, -0.2], FIRST), "final": Gaussian([0.0, 0.2], 0.8 * FIRST + 0.3 * np.eye(2))}
    bridge = bridge_of("OU", **near)
    ts = jnp.linspace(0.0, 1.5, 31)
    ratios = bridge.against(bridge.reference, ts).forward(20000, key=key).log_ratios
    exact = float(kernel_path_kl(bridge, ts))
    assert_estimate(mean(ratios), exact)
    assert_estimate(jarzynski(ratios, beta=1.0), 0.0)
    assert exact == pytest.approx(float(bridge.path_kl()), rel=0.03)
    with pytest.raises(AssertionError):
        assert_estimate(jarzynski(-ratios, beta=1.0), 0.0)
    # The log-ratio of exact paths is a function of their ends.
    xs = bridge.coupling.sample(20000, key=key)
    assert_estimate(mean(jax.vmap(bridge.log_ratio)(xs[:, :2], xs[:, 2:])), bridge.path_kl())


@pytest.mark.slow
def test_both_directions_are_one_process_up_to_the_step(key):
    bridge = bridge_of("OU")
    pair = bridge.directions(jnp.linspace(0.0, 1.5, 76))
    ahead, back = pair.forward(10000, key=key).log_ratios, pair.backward(10000, key=key).log_ratios
    assert_estimate(jarzynski(ahead, beta=1.0), 0.0)
    assert_estimate(jarzynski(-back, beta=1.0), 0.0)
    assert 0 < float(mean(ahead).value) < 0.05
    wrong = eqx.tree_at(lambda p: p.reverse.score.pull, pair, 0.8 * bridge.reverse_guide.pull)
    assert float(mean(wrong.forward(10000, key=key).log_ratios).value) > 0.1


@pytest.mark.slow
@needs_x64
@pytest.mark.parametrize("covariance", [1.0, FIRST], ids=["isotropic", "full"])
def test_path_kl_is_differentiable(covariance):
    first = Gaussian([0.0, 0.0], jnp.broadcast_to(jnp.asarray(covariance), (2, 2)) if np.ndim(covariance) else covariance)

    def value(x):
        end = Gaussian(jnp.array([x, 1.0]), (0.5 + x**2) * jnp.eye(2))
        return GaussianBridge(first, end, Brownian(0.5 + 0.2 * x)).path_kl()

    h = 1e-5
    difference = (value(0.7 + h) - value(0.7 - h)) / (2 * h)
    assert jax.grad(value)(0.7) == pytest.approx(float(difference), rel=1e-7)


def test_new_numbers_do_not_retrace(key):
    traces = []

    def functional(step):
        traces.append(1)
        return jnp.sum(step.x1)

    for sigma in (0.5, 0.9):
        bridge = GaussianBridge(Gaussian([sigma], 1.0), Gaussian([0.0], sigma), Brownian(sigma), 0.0, 1.0 + sigma)
        accumulate(functional, bridge.dynamics, jnp.zeros((3, 1)), jnp.linspace(0.0, 1.0, 5), key=key)
        count = len(traces) if sigma == 0.5 else count
    assert len(traces) == count


@pytest.fixture(scope="module")
def clouds():
    exact = bridge_of("OU")
    first_key, last_key = jr.split(jr.key(3))
    x0s, x1s = exact.initial.sample(800, key=first_key), exact.final.sample(700, key=last_key)
    return exact, sampled_bridge(x0s, x1s, exact.reference, t1=exact.t1, threshold=1e-4)


@pytest.mark.slow
def test_sinkhorn_finds_the_coupling_and_its_cost(clouds):
    exact, found = clouds
    assert bool(found.converged)
    assert_estimate(found.entropic_cost, exact.entropic_cost())
    alpha, v = exact.reference.transition(exact.t0, exact.t1)
    away = jnp.sum((alpha * found.initial.xs[:, None] - found.final.xs[None]) ** 2, axis=-1)
    plan = jnp.exp(found.log_weights0[:, None] + found.log_weights1[None] - 0.5 * away / v)
    assert jnp.allclose(jnp.sum(plan, axis=1), 1 / 800, rtol=rounding(20))
    assert float(jnp.sum(jnp.abs(jnp.sum(plan, axis=0) - 1 / 700))) < 2e-4
    # The cost in its own words.
    cost = jnp.sum(plan * (0.5 * away + v * jnp.log(plan * 800 * 700)))
    assert float(found.entropic_cost.value) == pytest.approx(float(cost), rel=2e-4)


def check_moments(xs, clouds, t):
    """Moments at time t against the closed form; the samples that the bridge was made of are the smaller ensemble."""
    exact = clouds[0].marginal(t)
    for direction in (jnp.array([1.0, 0.0]), jnp.array([0.6, -0.8])):
        seen = (xs - exact.mean[None]) @ direction
        spread = direction @ exact.covariance @ direction
        errors = jnp.sqrt(spread / 700), spread * jnp.sqrt(2 / 700)
        for measured, expected, error in zip((jnp.mean(seen), jnp.mean(seen**2)), (0.0, spread), errors, strict=True):
            assert abs(float(measured - expected)) < 4 * float(error), (t, measured, expected)


@pytest.mark.slow
def test_sampled_bridge_has_the_marginals_of_the_closed_form(clouds, key):
    exact, found = clouds
    ts = exact.t1 * jnp.array([0.0, 0.3, 0.7, 1.0])
    paths = found.paths(ts, 4000, key=key)
    for t, xs in zip(ts, paths, strict=True):
        check_moments(xs, clouds, t)
    fine = exact.t1 * jnp.linspace(0.0, 1.0, 61)
    start_key, noise_key = jr.split(key)
    guided = simulate(found.dynamics, found.initial.sample(1000, key=start_key), fine, key=noise_key)
    for k in (20, 40, 60):
        check_moments(guided[k], clouds, fine[k])
    with pytest.raises(AssertionError):
        check_moments(guided[60], clouds, fine[20])
    # Without blur the paths end in the samples themselves.
    nearest = jnp.min(jnp.sum((paths[-1][:100, None] - found.final.xs[None]) ** 2, axis=-1), axis=1)
    assert jnp.max(nearest) < rounding(10)


@pytest.mark.slow
def test_the_potential_is_carried_back_by_the_reference_and_the_guide_is_its_slope(clouds):
    _, found = clouds
    guide, x = found.guide, jnp.array([0.4, -0.2])
    s, t = jnp.asarray(0.2), jnp.asarray(0.9)
    slope = jax.grad(lambda x: guide.log_potential(s, x))(x)
    assert jnp.allclose(guide(s, x), slope, atol=rounding(100))
    a, q = found.reference.transition(s, t)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grid = jnp.asarray(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2), x.dtype)
    shares = np.outer(weights, weights).ravel() / (2 * np.pi)
    later = np.asarray(jax.vmap(lambda z: guide.log_potential(t, a * x + jnp.sqrt(q) * z))(grid), float)
    assert np.log(np.sum(shares * np.exp(later))) == pytest.approx(float(guide.log_potential(s, x)), abs=max(1e-6, rounding(100)))


@pytest.mark.slow
def test_blurred_samples_give_a_bounded_guide_and_a_finite_path_kl(clouds, key):
    exact, sharp = clouds
    blurred = sampled_bridge(sharp.initial.xs, sharp.final.xs, exact.reference, t1=exact.t1, blur=0.1, threshold=1e-4)
    ts = exact.t1 * jnp.linspace(0.0, 1.0, 61)
    walks = blurred.against(exact.reference, ts).forward(1000, key=key)
    ends = jax.vmap(blurred.log_ratio)(walks.x0s, walks.x1s)
    # Girsanov's sum and the ratio of the ends agree path by path, up to the step.
    assert float(jnp.mean(ends)) == pytest.approx(float(jnp.mean(walks.log_ratios)), abs=0.1)
    assert float(jnp.std(ends - walks.log_ratios)) < 0.25 * float(jnp.std(ends))
    assert jnp.all(jnp.isfinite(blurred.guide(exact.t1, jnp.zeros(2))))
    with pytest.raises(ValueError, match="`blur` must be positive for a log-ratio"):
        sharp.log_ratio(jnp.zeros(2), jnp.zeros(2))


@pytest.mark.slow
def test_the_loss_is_least_at_the_guides_of_the_bridge(key):
    exact = bridge_of("OU")
    ts = jnp.linspace(0.0, 1.5, 31)
    guides = Guides(exact.guide, exact.reverse_guide)

    moved = lambda guides: [guides.ahead.pull, guides.back.pull, guides.ahead.width, guides.back.width]

    @jax.jit
    def slopes(joint):
        def gradient(k):
            draw_key, own_key = jr.split(k)
            pairs = tuple(jnp.split(joint.sample(128, key=draw_key), 2, axis=1))
            loss = BridgeMatching(exact.reference, ts, pairs, pairs, 128)
            return jax.grad(lambda parts: loss(eqx.tree_at(moved, guides, parts), own_key))(moved(guides))

        return jnp.concatenate([leaf.reshape(400, -1) for leaf in jax.lax.map(gradient, jr.split(key, 400))], axis=1)

    def check(joint):
        for column in slopes(joint).T:
            assert_estimate(mean(column), 0.0)

    check(exact.coupling)
    blocks = jnp.kron(jnp.eye(2), jnp.ones((2, 2)))
    with pytest.raises(AssertionError):
        check(eqx.tree_at(lambda joint: joint.covariance, exact.coupling, blocks * exact.coupling.covariance))


@pytest.mark.slow
def test_the_first_projection_lies_between_the_bridge_and_independent_ends(key):
    exact, seen = bridge_of("Brownian"), []
    ts = jnp.linspace(0.0, 1.5, 31)
    settings = {"rounds": 1, "steps": 200, "batch": 128, "progress": seen.append}
    learned = learn_bridge(exact.initial, exact.final, exact.reference, ts, key=key, **settings)
    assert seen == [1]
    assert learned.history.shape == (200,)
    assert learned.path_kl.value.shape == (1,)
    joint = exact.coupling.covariance * jnp.kron(jnp.eye(2), jnp.ones((2, 2)))
    loose = relative_entropy(Gaussian(exact.coupling.mean, joint), reference_coupling(exact))
    value, slack = float(learned.path_kl.value[0]), 4 * float(learned.path_kl.stderr[0])
    # A few steps leave an error of the network, here up to a twentieth of a nat.
    assert float(exact.path_kl()) - 0.05 - slack < value < loose + slack


@pytest.mark.slow
def test_learned_bridge_is_the_closed_form(key):
    exact = bridge_of("Brownian")
    fit_key, test_key = jr.split(key)
    ts = jnp.linspace(0.0, 1.5, 31)
    learned = learn_bridge(exact.initial, exact.final, exact.reference, ts, rounds=5, steps=400, key=fit_key)
    distance = mean(learned.against(exact.dynamics, ts).forward(8000, key=test_key).log_ratios)
    assert float(distance.value + 2 * distance.stderr) < 1e-2, distance
    cost = mean(learned.against(exact.reference, ts).forward(8000, key=test_key).log_ratios)
    assert float(cost.value) == pytest.approx(float(kernel_path_kl(exact, ts)), abs=4 * float(cost.stderr) + 0.05)
    # The bridge of another reference is seen to be another one.
    other = GaussianBridge(exact.initial, exact.final, Brownian(0.8), 0.0, 3.0)
    assert float(mean(learned.against(other.dynamics, ts).forward(2000, key=test_key).log_ratios).value) > 0.1


@pytest.mark.nightly
def test_learned_bridge_between_mixtures_keeps_the_ends_and_costs_what_sinkhorn_says(key):
    angles = np.arange(4) * np.pi / 2
    ring = GaussianMixture(jnp.ones(4), 2 * np.stack([np.cos(angles), np.sin(angles)], 1), np.full(4, 0.1))
    last = GaussianMixture(jnp.ones(2), jnp.array([[-1.0, 0.0], [1.0, 0.5]]), jnp.full(2, 0.15))
    first_key, last_key, fit_key, pair_key, test_key = jr.split(key, 5)
    reference, ts = Brownian(1.0), jnp.linspace(0.0, 1.0, 41)
    x0s, x1s = ring.sample(1500, key=first_key), last.sample(1500, key=last_key)
    static = sampled_bridge(x0s, x1s, reference)
    learned = learn_bridge(ring, last, reference, ts, pairs=static.pairs(8192, key=pair_key), rounds=4, steps=800, key=fit_key)
    walks = learned.against(reference, ts).forward(6000, key=test_key)
    for order in (1, 2):
        seen, fresh = mean(walks.x1s[:, 0] ** order), mean(last.sample(6000, key=test_key)[:, 0] ** order)
        # The network's own error is allowed for: 0.03 in a mean.
        assert abs(float(seen.value - fresh.value)) < 4 * float(jnp.hypot(seen.stderr, fresh.stderr)) + 0.03
    # KL(P || R) = cost / epsilon - S(p_1) + (d / 2) ln(2 pi epsilon), with the entropy by Monte Carlo.
    entropy = -mean(jax.vmap(last.log_prob)(last.sample(20000, key=test_key))).value
    expected = float(static.entropic_cost.value - entropy + jnp.log(2 * jnp.pi))
    cost = mean(walks.log_ratios)
    assert float(cost.value) == pytest.approx(expected, abs=4 * float(jnp.hypot(cost.stderr, static.entropic_cost.stderr)) + 0.05)


GAUSS = Gaussian([0.0, 0.0], 1.0)
POINTS, TS = np.arange(8.0).reshape(4, 2), np.array([0.0, 1.0])
BAD = {
    "`sigma` must be positive": lambda: Brownian(-1.0),
    "`covariance` must be positive definite": lambda: Gaussian([0.0, 0.0], -FIRST),
    "`t1` must be later than `t0`": lambda: GaussianBridge(GAUSS, GAUSS, Brownian(), 1.0, 1.0),
    "`final` must have the dimension of `initial`, 2, got 1": lambda: GaussianBridge(GAUSS, Gaussian([0.0], 1.0), Brownian()),
    "`initial` must be a `Gaussian`": lambda: GaussianBridge(POINTS, GAUSS, Brownian()),
    "`reference` must be a linear process": lambda: GaussianBridge(GAUSS, GAUSS, Overdamped(Harmonic(1.0), Constant(0.0))),
    "`t` must lie in the interval of the bridge, from 0 to 1, got 1.5": lambda: GaussianBridge(GAUSS, GAUSS, Brownian()).marginal(1.5),
    "`ts` must lie in the interval": lambda: GaussianBridge(GAUSS, GAUSS, Brownian()).against(Brownian(), jnp.array([0.0, 1.1])),
    "`ts` must go through the whole interval": lambda: GaussianBridge(GAUSS, GAUSS, Brownian()).directions(jnp.array([0.0, 0.9])),
    "`ts` must increase strictly": lambda: GaussianBridge(GAUSS, GAUSS, Brownian()).against(Brownian(), jnp.zeros(2)),
    "`dynamics` must be that of a `GaussianBridge`": lambda: simulate(Brownian(), POINTS, TS, stepper=ExactBridge(), key=jr.key(0)),
    "`x1s` must have the dimension of `x0s`, 2, got 1": lambda: sampled_bridge(POINTS, POINTS[:, :1], Brownian()),
    "`blur` must not be negative": lambda: sampled_bridge(POINTS, POINTS, Brownian(), blur=-0.1),
    "`t1` must be later": lambda: sampled_bridge(POINTS, POINTS, Brownian(), t1=-1.0),
    "`threshold` must be positive": lambda: sampled_bridge(POINTS, POINTS, Brownian(), threshold=0.0),
    "`final` must have the dimension": lambda: learn_bridge(POINTS, POINTS[:, :1], Brownian(), TS, key=jr.key(0)),
    "`rounds` must be at least 1": lambda: learn_bridge(POINTS, POINTS, Brownian(), TS, rounds=0, key=jr.key(0)),
    "`batch` must be at least 2": lambda: learn_bridge(POINTS, POINTS, Brownian(), TS, pool=1, key=jr.key(0)),
    "`learning_rate` must be positive": lambda: learn_bridge(POINTS, POINTS, Brownian(), TS, learning_rate=0.0, key=jr.key(0)),
    "`pairs` must have the dimension": lambda: learn_bridge(
        POINTS, POINTS, Brownian(), TS, pairs=(POINTS[:, :1], POINTS[:, :1]), key=jr.key(0)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_one_sentence(message, monkeypatch):
    # What users see, who run without the checks of the tests.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((TypeError, ValueError)) as caught:
        BAD[message]()
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(".")


def test_samples_have_no_density():
    with pytest.raises(TypeError, match="must be a distribution whose density is known"):
        Samples(POINTS).log_prob(POINTS[0])


@pytest.mark.slow
@pytest.mark.parametrize("data", ["gaussians", "moons"])
def test_the_experiment_reports_what_it_found(data):
    settings = {"steps": 30, "sinkhorn": 400, "rounds": 2, "iterations": 150, "batch": 128, "pool": 2000, "samples": 2000}
    results = EXPERIMENT.run(EXPERIMENT.parameters(data=data, coupling="entropic", **settings), jr.key(1), Silent())
    estimates = results.estimates
    assert abs(estimates["directions_theorem"].value) < 4 * estimates["directions_theorem"].stderr
    assert abs(estimates["end_sinkhorn"].value) < 6 * estimates["end_sinkhorn"].stderr
    if data == "gaussians":
        cost = estimates["entropic_cost"]
        assert abs(cost.value - cost.exact) < 4 * cost.stderr
        assert 0 < estimates["learned_to_exact"].value < 0.2
        assert abs(estimates["pythagoras"].value) < 0.1
    for picture in results.figures.values():
        assert picture.caption
        assert all(ax.get_xlabel() for ax in picture.figure.axes)
