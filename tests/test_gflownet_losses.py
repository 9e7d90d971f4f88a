import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from assertions import needs_x64, rounding

from thermojax.gflownets import (
    balance_optimizer,
    balanced,
    DetailedBalance,
    exactly,
    explore,
    FlowMatching,
    FlowReversal,
    GFlowNet,
    Hypergrid,
    learned,
    Network,
    SubTrajectoryBalance,
    Tabular,
    TrajectoryBalance,
)
from thermojax.optimize import fit

GRID = Hypergrid(3, 2)
LOSSES = {
    "trajectory": TrajectoryBalance(4),
    "detailed": DetailedBalance(4),
    "subtrajectory": SubTrajectoryBalance(4, 0.0, 0.8),
    "flow": FlowMatching(4),
}
each = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(scope="module")
def graph():
    return explore(GRID)


@pytest.fixture(scope="module")
def networks(graph):
    """The balanced network of a backward policy that is not uniform, and one that is off it in everything."""
    rng = np.random.default_rng(3)
    table = Tabular.zeros(GRID)
    noise = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape), a.dtype), table)
    good = balanced(GRID, graph, policy=noise)
    bad = eqx.tree_at(learned, good, (jax.tree.map(jnp.add, good.policy, noise), good.log_z + 0.3))
    return good, bad


@pytest.fixture(scope="module")
def paths(networks):
    _, bad = networks
    return bad.trajectories(4, exploration=0.5, key=jr.key(1))


@eqx.filter_jit
def on(loss, model, paths):
    return loss.on(model, paths)


@eqx.filter_jit
def slope(loss, model, paths):
    return eqx.filter_grad(lambda parts: loss.on(eqx.tree_at(learned, model, parts), paths))(learned(model))


@eqx.filter_jit
def kernels_at(model, states):
    return jax.vmap(jax.vmap(model.kernels))(states)


# The definitions, one path and one move after the other.
def by_hand(model, paths, graph, weight=0.8):
    kernels = jax.tree.map(lambda a: np.asarray(a, float), kernels_at(model, paths.states))
    table = jax.tree.map(lambda a: np.asarray(a, float), kernels_at(model, graph.states[None]))
    legal, children, states = np.asarray(graph.legal), np.asarray(graph.children), graph.states.tolist()
    inflow = np.zeros(len(states))
    for s, a in zip(*np.nonzero(legal), strict=True):
        inflow[children[s, a]] += np.exp(table.log_flow[0, s] + table.forward[0, s, a])
    rewards = np.asarray(graph.log_rewards, float)
    whole, single, stretches, flows = [], [], [], []
    for i, m in enumerate(np.asarray(paths.moves)):
        moves = [int(a) for a in paths.actions[:m, i]]
        ratio = [kernels.forward[k, i, a] - kernels.backward[k + 1, i, a] for k, a in enumerate(moves)]
        flow = kernels.log_flow[: m + 1, i]
        assert flow[-1] == pytest.approx(rewards[states.index(paths.states[-1, i].tolist())], rel=rounding())
        whole.append((float(model.log_z) + sum(ratio) - kernels.log_flow[m, i]) ** 2)
        single += [(flow[k] + ratio[k] - flow[k + 1]) ** 2 for k in range(m)]
        pairs = list(itertools.combinations(range(m + 1), 2))
        terms = [weight ** (k - j) * (flow[j] + sum(ratio[j:k]) - flow[k]) ** 2 for j, k in pairs]
        stretches.append(sum(terms) / sum(weight ** (k - j) for j, k in pairs))
        for k in range(1, m + 1):
            flows.append((np.log(inflow[states.index(paths.states[k, i].tolist())]) - flow[k]) ** 2)
    return {name: float(np.mean(list(map(float, terms)))) for name, terms in zip(LOSSES, (whole, single, stretches, flows), strict=True)}


def check_loss(found, expected):
    assert found == pytest.approx(expected, rel=rounding(5), abs=rounding(5))


def test_losses_are_what_they_are_defined_to_be(networks, paths, graph):
    expected = by_hand(networks[1], paths, graph)
    for name, loss in LOSSES.items():
        check_loss(float(on(loss, networks[1], paths)), expected[name])
    others = by_hand(networks[1], paths, graph, weight=1.2)
    with pytest.raises(AssertionError):
        check_loss(float(on(LOSSES["subtrajectory"], networks[1], paths)), others["subtrajectory"])


@each
def test_losses_vanish_for_the_balanced_network_and_not_for_others(name, networks, paths):
    good, bad = networks
    assert abs(float(on(LOSSES[name], good, paths))) < rounding() ** 2 * 100
    assert float(on(LOSSES[name], bad, paths)) > 0.01
    # A wrong normaliser alone is seen by all, a wrong backward policy by those that read it.
    shifted = eqx.tree_at(lambda m: m.log_z, good, good.log_z + 0.3)
    assert float(on(LOSSES[name], shifted, paths)) > 1e-3
    turned = eqx.tree_at(lambda m: m.policy.backward, good, bad.policy.backward)
    assert (float(on(LOSSES[name], turned, paths)) > 1e-3) == (name != "flow")


@pytest.mark.slow
@each
def test_trajectory_balance_squares_the_dissipation_and_gradients_vanish_at_the_optimum(name, networks, paths):
    good, bad = networks
    if name == "trajectory":
        assert float(on(LOSSES[name], bad, paths)) == pytest.approx(float(jnp.mean(bad.dissipation(paths) ** 2)), rel=rounding())
    for leaf in jax.tree.leaves(slope(LOSSES[name], good, paths)):
        assert np.all(np.isfinite(leaf))
        assert np.max(np.abs(leaf)) < rounding(10)


@needs_x64
@each
def test_gradients_are_those_of_finite_differences(name, networks, paths):
    bad = networks[1]
    rng = np.random.default_rng(5)
    parts = learned(bad)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), parts)
    at = lambda h: float(on(LOSSES[name], eqx.tree_at(learned, bad, jax.tree.map(lambda a, d: a + h * d, parts, direction)), paths))
    grads = slope(LOSSES[name], bad, paths)
    along = sum(float(jnp.sum(g * d)) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
    h = 1e-5
    assert along == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-7)
    assert abs(along) > 0.01


def test_sub_trajectories_go_from_detailed_to_trajectory_balance(networks):
    bad = networks[1]
    # All paths of the longest length, so that means over paths and over moves are alike.
    paths = bad.trajectories(200, exploration=1.0, key=jr.key(2))
    longest = np.flatnonzero(np.asarray(paths.moves) == GRID.length)[:4]
    paths = jax.tree.map(lambda a: a[..., longest] if a.ndim < 3 else a[:, longest], paths)
    for weight, limit in ((1e-12, "detailed"), (1e12, "trajectory")):
        found = float(on(SubTrajectoryBalance(4, 0.0, weight), bad, paths))
        assert found == pytest.approx(float(on(LOSSES[limit], bad, paths)), rel=max(1e-10, rounding(5)))
    middle = float(on(SubTrajectoryBalance(4), bad, paths))
    assert abs(middle / float(on(LOSSES["detailed"], bad, paths)) - 1) > 0.01


def test_exploration_makes_moves_that_the_policy_would_not(networks, key):
    sure = eqx.tree_at(lambda m: m.policy.forward, networks[1], networks[1].policy.forward.at[:, 2].set(50.0))
    moves = [np.asarray(sure.trajectories(2000, exploration=e, key=key).moves) for e in (0.0, 0.6)]
    assert np.all(moves[0] == 1)
    # From the corner all three moves are legal: two of three uniform ones lead on.
    share, error = 0.6 * 2 / 3, np.sqrt(0.4 * 0.6 / 2000)
    assert abs(np.mean(moves[1] > 1) - share) < 4 * error


def descend(name, environment, graph, model, *, steps, batch, rate=3e-3, exploration=0.1, key):
    loss = type(LOSSES[name])(batch, exploration)
    optimizer = balance_optimizer(steps, rate=rate)
    found = fit(loss, model, optimizer=optimizer, steps=steps, where=learned, every=steps // 2, key=key)
    return found, exactly(found.model, graph)


@pytest.mark.parametrize("name", ["trajectory", *(pytest.param(n, marks=pytest.mark.slow) for n in list(LOSSES)[1:])])
def test_descent_brings_a_table_to_balance(name, graph):
    start = GFlowNet(GRID, Tabular.zeros(GRID), 0.0, graph)
    found, exact = descend(name, GRID, graph, start, steps=300, batch=16, rate=0.1, key=jr.key(0))
    before = exactly(start, graph)
    assert float(before.l1) > 0.3
    assert float(exact.l1) < 0.02
    assert abs(float(found.model.log_z - exact.log_z)) < 0.01
    assert float(found.history[-1]) < 1e-2 * float(found.history[0])
    # The rewards are numbers of the environment, and stay.
    assert eqx.tree_equal(found.model.environment, GRID)
    if name == "flow":
        # What was learned balances with the reversal of its flow.
        reversal = FlowReversal(found.model)
        assert float(exactly(eqx.tree_at(lambda m: m.policy, found.model, reversal), graph).divergence) < 1e-3
        return
    assert float(exact.divergence) < 1e-3


@pytest.mark.slow
@each
def test_thirty_two_thousand_paths_teach_a_network_the_grid_of_eight_by_eight(name):
    environment = Hypergrid()
    graph = explore(environment)
    start = GFlowNet(environment, Network(environment, key=jr.key(0)), 0.0, graph)
    found, exact = descend(name, environment, graph, start, steps=2000, batch=16, key=jr.key(100))
    assert float(exact.l1) < 0.02
    assert abs(float(jnp.exp(found.model.log_z)) / 22.4 - 1) < 0.005


def test_the_normaliser_has_a_learning_rate_of_its_own(networks):
    good, _ = networks
    params = eqx.filter(good, eqx.is_inexact_array)
    optimizer = balance_optimizer(10, rate=1e-3, log_z_rate=0.5)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
        moved = optax.apply_updates(params, updates)
    assert float(good.log_z - moved.log_z) == pytest.approx(0.5, rel=1e-3)
    assert np.max(np.abs(np.asarray(good.policy.forward - moved.policy.forward) - 1e-3)) < 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrajectoryBalance(0), "`batch` must be a whole number of at least 1, got 0."),
        (lambda: DetailedBalance(16, -0.1), r"`exploration` must lie in \[0, 1\], got -0.1"),
        (lambda: SubTrajectoryBalance(16, 0.0, 0.0), "`weight` must be positive, got 0.0."),
        (lambda: SubTrajectoryBalance(0, 0.0), "`batch` must be a whole number of at least 1, got 0."),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
