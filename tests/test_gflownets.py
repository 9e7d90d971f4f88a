import functools
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, rounding

from thermojax.estimators import bar, mean
from thermojax.gflownets import (
    AbstractEnvironment,
    AbstractPolicy,
    balanced,
    BitSequences,
    check_environment,
    exactly,
    explore,
    FlowReversal,
    GFlowNet,
    Given,
    Hypergrid,
    IsingLattice,
    log_moment,
    Modes,
    Network,
    Tabular,
    terminal_probabilities,
    Uniform,
)

# No symmetry between coordinates, sites or spins that could hide an error; sequences grow at both ends.
ENVIRONMENTS = {
    "grid": Hypergrid(4, 2),
    "bits": BitSequences(3, Modes([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])),
    "lattice": IsingLattice((2, 2), beta=0.4, field=0.3, periodic=False),
}
each = pytest.mark.parametrize("name", ENVIRONMENTS)
# What is compiled anew for each environment, or walks all paths, is looked at for some of them by default.
some = lambda *quick: pytest.mark.parametrize("name", [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in ENVIRONMENTS])


def wrong_network(environment, scale=0.7, seed=0):
    """A table of random logits, forward and backward, and of random flows."""
    table = Tabular.zeros(environment)
    leaves, structure = jax.tree.flatten(table)
    rng = np.random.default_rng(seed)
    leaves = [jnp.asarray(scale * rng.normal(size=a.shape), a.dtype) for a in leaves]
    return GFlowNet(environment, jax.tree.unflatten(structure, leaves))


@pytest.fixture(scope="module")
def graphs():
    return {name: explore(environment) for name, environment in ENVIRONMENTS.items()}


# Compiled functions know the number of paths.
N = 8000


@pytest.fixture(scope="module")
def drawn(graphs):
    """A network that is wrong, paths of either measure, and what is exactly true of it; each is drawn once, when it is first asked for."""

    @functools.cache
    def draw(name):
        environment, graph = ENVIRONMENTS[name], graphs[name]
        model = GFlowNet(environment, wrong_network(environment).policy, 0.0, graph)
        ahead = model.trajectories(N, key=jr.key(1))
        back = model.trajectories_to(graph.sample(N, key=jr.key(2)), key=jr.key(3))
        return model, ahead, back, exactly(model, graph)

    return draw


@pytest.fixture(scope="module")
def big():
    """The grid of eight by eight points, its states, and the network that knows nothing."""
    environment = Hypergrid()
    graph = explore(environment)
    return environment, graph, GFlowNet(environment, Uniform(environment.actions), 0.0, graph)


def all_paths(model):
    """Every path, move by move: where it ends, and the logarithms of its probability forward, and backward from there."""
    environment = model.environment

    @eqx.filter_jit
    def look(state):
        moves = jnp.arange(environment.actions, dtype=jnp.int32)
        children = jax.vmap(lambda a: environment.step(state, a))(moves)
        back = jax.vmap(lambda s, a: model.kernels(s).backward[a])(children, moves)
        return environment.is_terminal(state), model.kernels(state).forward, children, back

    def extend(state, ahead, back):
        ended, forward, children, undo = (np.asarray(a) for a in look(jnp.asarray(state)))
        if ended:
            yield tuple(state.tolist()), ahead, back
            return
        for action in np.flatnonzero(np.isfinite(forward)):
            yield from extend(children[action], ahead + float(forward[action]), back + float(undo[action]))

    return list(extend(np.asarray(environment.source()), 0.0, 0.0))


# Numbers of the untrained policy on the grid. Independent: sums over the points of the grid in rational arithmetic, with the stops
# in closed form.
def grid_by_fractions(side, rewards, order, *, stops=True):
    r"""$\langle w^n\rangle$ of the uniform policies."""
    floor, corners, modes = rewards
    a = [abs(Fraction(x, side - 1) - Fraction(1, 2)) for x in range(side)]
    total, carried = Fraction(0), {(0, 0): Fraction(1)}
    for level in range(2 * side - 1):
        for x, y in [(x, level - x) for x in range(side) if 0 <= level - x < side]:
            here = carried.get((x, y), Fraction(0))
            ups = [(x + 1, y), (x, y + 1)]
            ups = [(u, v) for u, v in ups if u < side and v < side]
            leave = Fraction(1, len(ups) + stops) if len(ups) + stops else Fraction(1)
            outer = all(a[i] > Fraction(1, 4) for i in (x, y))
            ring = all(Fraction(3, 10) < a[i] < Fraction(2, 5) for i in (x, y))
            reward = floor + corners * outer + modes * ring
            total += here * leave ** (1 - order) * reward**order
            for u, v in ups:
                undo = Fraction(1, (u > 0) + (v > 0))
                carried[u, v] = carried.get((u, v), Fraction(0)) + here * leave ** (1 - order) * undo**order
    return total


REWARDS = (Fraction(1, 10), Fraction(1, 2), Fraction(2))


def check_grid(found, graph, second):
    ratio = float(found.efficiency) ** -1
    assert float(jnp.exp(graph.log_z)) == pytest.approx(22.4, rel=rounding())
    # Dynamic programming in double precision, of another implementation.
    assert ratio == pytest.approx(137.3658596688, rel=max(1e-11, rounding(5)))
    assert ratio == pytest.approx(float(second) / 22.4**2, rel=rounding(5))
    assert float(found.elbo) == pytest.approx(1.5378073813, abs=max(1e-10, rounding(5)))
    assert float(found.divergence) == pytest.approx(1.5712535776, abs=max(1e-10, rounding(5)))


@pytest.mark.slow
def test_the_uniform_policy_on_the_grid_has_known_moments(big):
    environment, graph, model = big
    assert graph.states.shape == (128, 3)
    assert float(grid_by_fractions(8, REWARDS, 1)) == pytest.approx(22.4)
    check_grid(exactly(model, graph), graph, grid_by_fractions(8, REWARDS, 2))
    with pytest.raises(AssertionError):
        check_grid(exactly(model, graph), graph, grid_by_fractions(8, REWARDS, 2, stops=False))
    for n in (0, 3):
        exact = float(np.log(float(grid_by_fractions(8, REWARDS, n)))) if n else 0.0
        assert float(log_moment(model, graph, float(n))) == pytest.approx(exact, abs=rounding(20)), n


def test_weights_of_the_untrained_policy_average_to_the_partition_function(big, key):
    _, graph, model = big
    works = model.forward(20_000, key=key).log_ratios
    assert_estimate(mean(jnp.exp(-works)), 22.4)
    # The published dictionary turns the work round.
    with pytest.raises(AssertionError):
        assert_estimate(mean(jnp.exp(works)), 22.4)
    paths = model.trajectories(20_000, key=key)
    assert np.array_equal(model.work(paths), works)
    # Without the backward policy, which has two ways back from the inside of the grid.
    inside = np.asarray(paths.active & (paths.actions < 2)) & np.all(np.asarray(paths.states)[1:, :, :2] > 0, axis=2)
    with pytest.raises(AssertionError):
        assert_estimate(mean(jnp.exp(np.log(2.0) * inside.sum(axis=0) - np.asarray(works))), 22.4)


def check_crooks(ahead, back, delta_f):
    """Every value of the work is as much more frequent forward as Crooks' relation says, within four errors of the counts."""
    n = len(ahead)
    values, place = np.unique(np.round(np.concatenate([ahead, back]), 3), return_inverse=True)
    counts = np.stack([np.bincount(place[:n], minlength=len(values)), np.bincount(place[n:], minlength=len(values))])
    seen = np.all(counts >= 50, axis=0)
    assert np.sum(seen) >= 5
    ratio = np.log(counts[0, seen] / counts[1, seen])
    error = np.sqrt(np.sum(1 / counts[:, seen], axis=0))
    assert np.max(np.abs(ratio - (values[seen] - delta_f)) / error) < 4


def test_the_works_of_both_policies_obey_crooks(big, key):
    _, graph, model = big
    forward_key, backward_key = jr.split(key)
    ahead = model.forward(20_000, key=forward_key).log_ratios
    back = model.backward(20_000, key=backward_key).log_ratios
    delta_f = -float(np.log(22.4))
    check_crooks(np.asarray(ahead), np.asarray(back), delta_f)
    # The reversed process does the work -W.
    assert_estimate(bar(ahead, -back, beta=1.0), delta_f)
    exact = exactly(model, graph)
    assert_estimate(mean(ahead), -float(exact.elbo))
    assert_estimate(mean(back), -float(exact.eubo))
    for wrong in ((-ahead, -back, -delta_f), (ahead, back, -delta_f), (back, ahead, delta_f)):
        with pytest.raises(AssertionError):
            check_crooks(*(np.asarray(a) for a in wrong))


SIZES = {"grid": 2 * 4**2, "bits": 1 + 2 + 4 + 8, "lattice": 3**4}


@each
def test_environments_are_sound_and_have_as_many_states_as_can_be_counted(name, graphs, key):
    environment, graph = ENVIRONMENTS[name], graphs[name]
    check_environment(environment, key=key)
    check_environment(environment, limit=1, samples=50, key=key)
    assert graph.states.shape[0] == SIZES[name]
    assert graph.longest == environment.length
    assert not np.any(graph.states[0])
    # Each state after all that lead to it.
    rows = np.arange(SIZES[name])[:, None]
    assert np.all(np.asarray(graph.children)[np.asarray(graph.legal)] > np.broadcast_to(rows, graph.legal.shape)[np.asarray(graph.legal)])
    codes = np.asarray(jax.vmap(environment.code)(graph.states))
    assert len(np.unique(codes)) == SIZES[name]
    assert codes.max() < environment.codes


@pytest.mark.parametrize("side", [8, 11])
def test_no_point_of_a_grid_is_on_the_wrong_side_of_a_bound(side):
    # At eleven points to a side a = 0.3 and 0.4 exactly, which no binary fraction is.
    a = [abs(Fraction(x, side - 1) - Fraction(1, 2)) for x in range(side)]
    outer = sum(b > Fraction(1, 4) for b in a)
    ring = sum(Fraction(3, 10) < b < Fraction(2, 5) for b in a)
    grid = Hypergrid(side, 2)
    points = jnp.asarray([(x, y, 1) for x in range(side) for y in range(side)], jnp.int32)
    z = float(jax.jit(lambda xs: jnp.sum(jnp.exp(jax.vmap(grid.log_reward)(xs))))(points))
    assert z == pytest.approx(0.1 * side**2 + 0.5 * outer**2 + 2.0 * ring**2, rel=rounding(5))


def test_the_partition_function_of_a_ring_is_that_of_the_transfer_matrix():
    sites, beta, field = 6, 0.7, 0.3
    step = np.exp([[beta * (s * t + field * (s + t) / 2) for t in (1, -1)] for s in (1, -1)])
    exact = np.log(np.trace(np.linalg.matrix_power(step, sites)))
    found, without = (float(explore(IsingLattice((sites,), beta=beta, field=h)).log_z) for h in (field, 0.0))
    assert found == pytest.approx(exact, abs=rounding(10))
    assert abs(without - exact) > 0.01


@pytest.mark.parametrize("periodic", [False, True])
def test_the_energy_of_a_lattice_is_the_sum_over_its_bonds(periodic):
    lattice = IsingLattice((2, 3), coupling=0.7, field=0.2, periodic=periodic)
    bonds = [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]
    # Round the axis of three, and once more along the axis of two.
    bonds += [(2, 0), (5, 3), (3, 0), (4, 1), (5, 2)] if periodic else []
    spins = 1.0 - 2.0 * ((np.arange(64)[:, None] >> np.arange(6)) & 1)
    expected = -0.7 * sum(spins[:, i] * spins[:, j] for i, j in bonds) - 0.2 * spins.sum(axis=1)
    states = jnp.asarray((spins + 3) / 2, jnp.int32)
    found = jax.jit(jax.vmap(lambda s: lattice.energy(lattice.spins(s))))(states)
    assert np.max(np.abs(np.asarray(found) - expected)) < rounding(10)


def test_words_are_bits_with_the_highest_first():
    environment = BitSequences(6, Modes([[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]], 2.0), word=2, prepend=False)
    state = jnp.asarray([3, 2, 4], jnp.int32)
    assert environment.sequence(state).tolist() == [1, 0, 0, 1, 1, 1]
    assert float(environment.log_reward(state)) == 0.0
    assert float(environment.log_reward(jnp.asarray([3, 2, 3], jnp.int32))) == pytest.approx(-2.0 / 6, rel=rounding())
    # One path to each sequence: the backward policy has no choice.
    assert np.all(np.sum(np.asarray(explore(environment).legal_back)[1:], axis=1) == 1)


@eqx.filter_jit
def moves_of(environment, paths):
    """Of each move whether it is legal, forward and back, and where it leads; of each path whether it has ended."""
    every = lambda function: jax.vmap(jax.vmap(function))
    ahead = every(lambda s, a: environment.legal(s)[a])(paths.states[:-1], paths.actions)
    behind = every(lambda s, a: environment.legal_back(s)[a])(paths.states[1:], paths.actions)
    later = every(environment.step)(paths.states[:-1], paths.actions)
    return ahead, behind, later, jax.vmap(environment.is_terminal)(paths.states[-1])


@some("bits")
def test_every_move_is_legal_and_every_path_ends(name, drawn):
    environment = ENVIRONMENTS[name]
    _, ahead, back, _ = drawn(name)
    for found in (ahead, back):
        states, active = np.asarray(found.states), np.asarray(found.active)
        forth, behind, later, ended = (np.asarray(a) for a in moves_of(environment, found))
        assert not np.any(states[0])
        assert np.all(ended)
        assert np.all((forth & behind) | ~active)
        assert np.array_equal(later[active], states[1:][active])
        assert np.array_equal(states[:-1][~active], states[1:][~active])
        assert np.max(found.moves) == environment.length


@eqx.filter_jit
def kernels_of(model, graph):
    return jax.vmap(model.kernels)(graph.states)


@each
def test_no_probability_goes_to_moves_that_are_not_legal(name, graphs):
    environment, graph = ENVIRONMENTS[name], graphs[name]
    kernels = kernels_of(wrong_network(environment, 30.0), graph)
    for logs, legal in ((kernels.forward, graph.legal), (kernels.backward, graph.legal_back)):
        assert np.array_equal(np.isfinite(logs), legal)
        totals = np.sum(np.exp(np.asarray(logs)), axis=1)
        assert np.max(np.abs(totals - np.any(np.asarray(legal), axis=1))) < rounding()


def check_exact(found, paths, graph):
    """Against sums over a list of all paths, each with its two probabilities."""
    rewards = {tuple(s): float(r) for s, r in zip(graph.states.tolist(), graph.log_rewards, strict=True)}
    p, q = np.array([path[1] for path in paths]), np.array([path[2] + rewards[path[0]] for path in paths])
    log_z = np.log(np.sum(np.exp(q)))
    assert abs(np.sum(np.exp(p)) - 1) < rounding(5)
    ends = {}
    for end, ahead, _ in paths:
        ends[end] = ends.get(end, 0.0) + np.exp(ahead)
    l1 = sum(abs(ends.get(s, 0.0) - np.exp(r - log_z)) for s, r in rewards.items() if np.isfinite(r))
    expected = {
        "log_z": log_z,
        "elbo": -np.sum(np.exp(p) * (p - q)),
        "eubo": -np.sum(np.exp(q - log_z) * (p - q)),
        "divergence": np.sum(np.exp(p) * (p - q)) + log_z,
        "reverse_divergence": -np.sum(np.exp(q - log_z) * (p - q)) - log_z,
        "efficiency": np.exp(2 * log_z) / np.sum(np.exp(2 * q - p)),
        "l1": l1,
    }
    for field, value in expected.items():
        assert float(getattr(found, field)) == pytest.approx(value, abs=rounding(10)), field


@some("bits")
def test_dynamic_programming_is_the_sum_over_all_paths(name, graphs):
    graph = graphs[name]
    model = GFlowNet(ENVIRONMENTS[name], wrong_network(ENVIRONMENTS[name]).policy, 0.0, graph)
    found, paths = exactly(model, graph), all_paths(model)
    check_exact(found, paths, graph)
    turned = [(end, back, ahead) for end, ahead, back in paths]
    with pytest.raises(AssertionError):
        check_exact(found, turned, graph)
    rewards = {tuple(s): float(r) for s, r in zip(graph.states.tolist(), graph.log_rewards, strict=True)}
    third = np.log(sum(np.exp(3 * (back + rewards[end]) - 2 * ahead) for end, ahead, back in paths))
    assert float(log_moment(model, graph, 3.0)) == pytest.approx(third, abs=rounding(10))


@some("bits")
def test_paths_end_and_weigh_as_the_exact_sums_say(name, graphs, drawn):
    environment, graph = ENVIRONMENTS[name], graphs[name]
    model, ahead, back, exact = drawn(name)

    def check_counts(states, chances):
        codes = jax.vmap(environment.code)
        counts = np.bincount(np.asarray(codes(states)), minlength=environment.codes)[np.asarray(codes(graph.states))]
        expected = N * np.asarray(chances, float)
        seen = expected > 0
        assert not np.any(counts[~seen])
        # A sum of k - 1 squared normals has the variance 2 (k - 1).
        freedom = np.sum(seen) - 1
        assert np.sum((counts - expected)[seen] ** 2 / expected[seen]) < freedom + 4 * np.sqrt(2 * freedom)

    ends = terminal_probabilities(model, graph)
    check_counts(ahead.states[-1], ends)
    check_counts(back.states[-1], graph.target)
    with pytest.raises(AssertionError):
        check_counts(ahead.states[-1], graph.target)
    forward, backward = model.work(ahead), model.work(back)
    assert_estimate(mean(-forward), float(exact.elbo))
    assert_estimate(mean(-backward), float(exact.eubo))
    assert_estimate(mean(jnp.exp(-forward)), float(jnp.exp(exact.log_z)))
    assert_estimate(mean(jnp.exp(backward)), float(jnp.exp(-exact.log_z)))


@pytest.mark.parametrize(
    ("name", "uniform"),
    [
        pytest.param("grid", True, marks=pytest.mark.slow),
        ("bits", False),
        pytest.param("lattice", False, marks=pytest.mark.slow),
    ],
)
def test_a_balanced_network_is_reversible(name, uniform, graphs, drawn, key):
    environment, graph = ENVIRONMENTS[name], graphs[name]
    model = balanced(environment, graph, policy=None if uniform else wrong_network(environment).policy)
    found = exactly(model, graph)
    for value in (found.l1, found.divergence, found.reverse_divergence, found.efficiency - 1, found.elbo - found.log_z):
        assert abs(float(value)) < rounding(5, environment.length)
    # On paths of others too.
    _, _, others, exact = drawn(name)
    for paths in (model.trajectories(N, key=key), others):
        assert np.max(np.abs(model.work(paths) - model.delta_f)) < rounding(5, environment.length)
    assert np.array_equal(model.dissipation(others), model.work(others) + graph.log_z)
    assert float(exact.l1) > 0.05
    if name == "bits":
        reversal = eqx.tree_at(lambda m: m.policy, model, FlowReversal(model))
        assert abs(float(exactly(reversal, graph).reverse_divergence)) < rounding(5, environment.length)
        # The flow decides, not the backward policy that is there.
        spoilt = eqx.tree_at(lambda m: m.policy.backward, model, wrong_network(environment, seed=1).policy.backward)
        assert float(exactly(spoilt, graph).reverse_divergence) > 0.01
        reversal = eqx.tree_at(lambda m: m.policy, model, FlowReversal(spoilt))
        assert abs(float(exactly(reversal, graph).reverse_divergence)) < rounding(5, environment.length)


@pytest.mark.slow
def test_an_untrained_network_is_the_uniform_policy(big, key):
    environment, graph, uniform = big
    observe = lambda state: state.astype(float)
    model = GFlowNet(environment, Network(environment, width=4, depth=1, backward=True, observe=observe, key=key))
    assert model.policy.mlp.in_size == 3
    found, known = (kernels_of(m, graph) for m in (model, uniform))
    assert np.array_equal(found.forward, known.forward)
    assert np.array_equal(found.backward, known.backward)
    # Entries as ones among zeros where nothing else is asked for, and no head for a backward policy that is not learned.
    plain = Network(environment, width=4, depth=1, key=key).mlp
    assert (plain.in_size, plain.out_size) == (8 + 8 + 2, 3 + 1)


def test_numbers_of_an_environment_and_of_a_policy_do_not_compile_again(key):
    traces = []

    class Spy(AbstractPolicy):
        inner: Uniform
        bias: jax.Array

        def __call__(self, state):
            traces.append(1)
            logits = self.inner(state)
            return logits._replace(forward=logits.forward + self.bias)

    def run(floor, bias):
        model = GFlowNet(Hypergrid(3, 2, floor), Spy(Uniform(3), jnp.asarray(bias)))
        return model.forward(16, key=key)

    run(0.1, [0.0, 0.0, 0.0])
    first = len(traces)
    run(0.2, [0.1, 0.0, 0.5])
    # Construction looks at the policy once more.
    assert len(traces) <= first + 1


# What can be wrong with an environment, and what is said of it.
FAULTS = {
    "none": "",
    "dead end": r"let every state that is not terminal move on, got a dead end at \[\[3\]\]",
    "leaves": r"have no legal move from a terminal state, got one at \[\[5\]\]",
    "source": r"have no legal backward move from its source, got one at \[\[0\]\]",
    "undo": r"have backward moves that undo the forward ones, each legal where the other was made, got others at \[\[",
    "orphan": r"have backward moves that undo the forward ones, each legal where the other was made, got others at \[\[",
    "reward": r"have a finite `log_reward` at every terminal state, got another at \[\[5\]\]",
    "circle": r"`environment` must have ",
    "island": r"come back to the source from every state by any legal backward moves, got a way out at \[\[2\]\]",
}


class Ladder(AbstractEnvironment):
    """Up by one or by two rungs to the fifth, which is the end; and ways to spoil it, as numbers, to be compiled once."""

    fault: jax.Array = eqx.field(converter=lambda fault: jnp.asarray(list(FAULTS).index(fault)), default="none")
    length: int = eqx.field(static=True, default=5)
    radices = (8,)
    actions = 2

    def has(self, fault):
        return self.fault == list(FAULTS).index(fault)

    def legal(self, state):
        rungs = jnp.asarray([1, 2], state.dtype)
        good = (state[0] + rungs <= 5) & ~(self.has("dead end") & (state[0] == 3))
        good = good & ~(self.has("island") & (state[0] == 0) & (rungs == 1))
        return good | (self.has("leaves") & (state[0] == 5))

    def legal_back(self, state):
        rungs = jnp.asarray([1, 2], state.dtype)
        return ((state >= rungs) & ~(self.has("orphan") & (state[0] == 4))) | (self.has("source") & (state[0] == 0))

    def step(self, state, action):
        return jnp.where(self.has("circle") & (state == 4), 1, state + 1 + action)

    def unstep(self, state, action):
        return state - 1 - action - self.has("undo").astype(state.dtype)

    def is_terminal(self, state):
        return state[0] >= 5

    def log_reward(self, state):
        return jnp.where(self.has("reward"), jnp.inf, jnp.where(state[0] == 5, 0.5, 0.0))


# In a ladder states are reached by paths of different lengths.
def test_paths_of_different_lengths_to_one_state_are_all_counted():
    ladder = Ladder()
    graph = explore(ladder)
    assert graph.states[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    model = GFlowNet(ladder, wrong_network(ladder).policy, 0.0, graph)
    paths = all_paths(model)
    # Fibonacci: ways to write five as a sum of ones and twos.
    assert len(paths) == 8
    check_exact(exactly(model, graph), paths, graph)


@pytest.mark.parametrize("fault", list(FAULTS)[1:])
def test_environments_that_are_not_sound_are_refused_in_one_sentence(fault, key):
    # Looked at whole, and along random paths, which cannot see what is never reached.
    for limit in (100, 1) if fault != "island" else (100,):
        with pytest.raises(ValueError, match=FAULTS[fault]):
            check_environment(Ladder(fault), limit=limit, samples=200, key=key)


def test_paths_longer_than_they_may_be_are_refused(key):
    for limit in (100, 1):
        check_environment(Ladder(), limit=limit, samples=200, key=key)
        with pytest.raises(ValueError, match="`environment` must have no path of more than `length` moves, and no cycle, got one "):
            check_environment(Ladder(length=4), limit=limit, samples=200, key=key)


@pytest.mark.slow
def test_paths_of_q_start_from_what_is_known_of_the_target(graphs, key):
    environment, graph = ENVIRONMENTS["bits"], graphs["bits"]
    states = graph.sample(50, key=key)
    given = Given(states)
    found = given.sample(50, key=key)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, states.tolist()))
    with pytest.raises(ValueError, match="`samples` must be at most the 50 states that are given, got 51."):
        given.sample(51, key=key)
    model = GFlowNet(environment, Uniform(environment.actions))
    for bad, message in (
        (states.at[0, 2].set(0), "`x1s` must be terminal states, got others."),
        (states[:, :2], r"`x1s` must have shape \(sample, 3\), got shape \(50, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.trajectories_to(bad, key=key)
    with pytest.raises(ValueError, match=r"`target` must have a method sample\(n, key=key\) for paths that start from it, got float."):
        GFlowNet(environment, Uniform(environment.actions), 0.0, 3.0).backward(5, key=key)


@pytest.mark.slow
def test_an_environment_is_explored_where_no_target_is_given(graphs, key):
    environment, graph = ENVIRONMENTS["bits"], graphs["bits"]
    known, unknown = (GFlowNet(environment, Uniform(environment.actions), 0.0, target).backward(50, key=key) for target in (graph, None))
    assert np.array_equal(known.x1s, unknown.x1s)
    assert np.array_equal(known.log_ratios, unknown.log_ratios)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hypergrid(1), "`side` must be a whole number of at least 2, got 1."),
        (lambda: Hypergrid(4, 0), "`dim` must be a whole number of at least 1, got 0."),
        (lambda: Hypergrid(4, 2, 0.0), "`floor` must be positive, got 0.0."),
        (lambda: Hypergrid(4, 2, 0.1, -1.0), "`corners` must be finite and not negative, got -1.0."),
        (lambda: BitSequences(5, jnp.sum, word=2), "`word` must divide `bits`, 5, got 2."),
        (lambda: IsingLattice(()), r"`shape` must have an axis, got \(\)."),
        (lambda: GFlowNet(Hypergrid(), Uniform(4)), "`policy` must return two vectors of 3 logits and one number"),
        (lambda: Tabular.zeros(Hypergrid(), limit=100), "`environment` must have at most 100 vectors of states for a table, got 128."),
        (lambda: explore(Hypergrid(), limit=100), "`environment` must have at most 100 states to be explored"),
        (lambda: explore(Hypergrid(10, 30)), r"`environment` must have fewer than 2\^62 vectors of states to be explored"),
        (lambda: Network(Hypergrid(), width=0, key=jr.key(0)), "`width` must be a whole number of at least 1, got 0."),
        (
            lambda: GFlowNet(Hypergrid(), Uniform(3)).trajectories(2, exploration=1.5, key=jr.key(0)),
            r"`exploration` must lie in \[0, 1\], got 1.5.",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
