import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from annealing_oracles import chain_of_kernels, mean_ratio, moments, Quartic, quartic_path
from assertions import assert_estimate, needs_x64, rounding

from thermojax.annealing import (
    Adjusted,
    Annealing,
    BlackJax,
    Driven,
    ess_schedule,
    FreeSchedule,
    Geometric,
    Langevin,
    length_schedule,
    NegativeElbo,
    Relaxation,
)
from thermojax.baths import LinearBeta
from thermojax.distributions import Gaussian, grid_equilibrium
from thermojax.estimators import exponential_mean, mean
from thermojax.measures import assess
from thermojax.optimize import fit
from thermojax.potentials import Breathing
from thermojax.protocols import Ramp


def uniform(levels):
    return jnp.linspace(0.0, 1.0, levels + 1)


def quartic_chain(kernel=None, levels=8, **options):
    path = quartic_path()
    return Annealing(path, path.initial, uniform(levels), Langevin(0.1) if kernel is None else kernel, **options)


def work_of_moments(levels):
    """Mean work of discrete annealing of the moving trap, L = k = mu = tau = 1: switch, then relax for tau / K (NumPy)."""
    mean, work, lams = 0.0, 0.0, np.linspace(0.0, 1.0, levels + 1)
    for lam0, lam1 in zip(lams[:-1], lams[1:], strict=True):
        work += 0.5 * (lam1**2 - lam0**2) - mean * (lam1 - lam0)
        mean = lam1 + (mean - lam1) * np.exp(-1 / levels)
    return work


@pytest.mark.parametrize(("levels", "exact"), [(1, 0.5), (10, 0.369239139502), (100, 0.367893042136)])
@pytest.mark.slow
def test_annealing_a_moving_trap_costs_the_work_of_its_moments(key, levels, exact):
    # Closed forms of discrete annealing with exact Ornstein-Uhlenbeck kernels; both ends have the same normaliser.
    assert work_of_moments(levels) == pytest.approx(exact, abs=1e-12)
    path = Geometric(Gaussian([0.0], 1.0), Gaussian([1.0], 1.0))
    found = assess(Annealing(path, path.initial, uniform(levels), Relaxation(1 / levels)), 4000, log_z=0.0, key=key)
    assert_estimate(found.divergence, exact)
    assert_estimate(found.log_z, 0.0)
    # The work is Gaussian: its variance is twice its mean.
    assert_estimate(found.log_variance, 2 * exact)
    with pytest.raises(AssertionError):
        assert_estimate(found.divergence, exact + (0.1 if levels > 1 else -0.1))


@needs_x64
@pytest.mark.parametrize("levels", [1, 8, 64])
def test_unadjusted_chains_are_unbiased_to_rounding(levels, monkeypatch):
    z, _ = moments()
    steps = Langevin(np.geomspace(0.05, 0.02, levels))
    average = chain_of_kernels(steps, quartic_path(), uniform(levels), monkeypatch)
    assert average(0.0) == pytest.approx(1.0, abs=1e-6)
    assert average(1.0) == pytest.approx(z, rel=1e-10)
    # Nine tenths of the shadow work are not enough.
    wrong = chain_of_kernels(steps, quartic_path(), uniform(levels), monkeypatch, shadow=lambda s: 0.9 * s)
    assert abs(wrong(1.0) / z - 1) > 1e-4


@pytest.mark.slow
@needs_x64
def test_the_bounds_of_a_chain_are_those_of_its_transfer_matrices(key, monkeypatch):
    z, first = moments()
    chain = quartic_chain(final=grid_equilibrium(lambda x, lam: -Quartic()(x), 0.0))
    found = assess(chain, 4000, backward=True, key=key)
    average = chain_of_kernels(chain.kernel, chain.path, chain.lams, monkeypatch)
    elbo, eubo = -mean_ratio(average, 0.0), -mean_ratio(average, 1.0)
    assert elbo < np.log(z) - 0.1 < np.log(z) + 0.1 < eubo
    for estimate, exact in ((found.elbo, elbo), (found.eubo, eubo)):
        assert_estimate(estimate, exact)
    # The mean of e^l over Q has no variance here: the first density reaches where the target has long vanished.
    for estimate in (found.log_z, found.log_z_both):
        assert_estimate(estimate, np.log(z))
    assert float(found.log_z_both.stderr) < float(found.log_z.stderr)
    walks = chain.backward(4000, key=key)
    assert_estimate(mean(walks.x1s[:, 0]), first)
    with pytest.raises(AssertionError):
        assert_estimate(found.eubo, elbo)


@pytest.mark.slow
@pytest.mark.parametrize("levels", [1, 8, 64])
def test_weights_of_unadjusted_chains_average_to_the_normaliser(key, levels):
    z, first = moments()
    walks = quartic_chain(levels=levels).forward(4000, key=key)
    assert_estimate(exponential_mean(walks.log_ratios), z)
    assert_estimate(mean(walks.x1s[:, 0], weights=jnp.exp(-walks.log_ratios)), first)


def hmc(step=0.4):
    import blackjax

    return BlackJax(blackjax.hmc, {"step_size": step, "inverse_mass_matrix": jnp.ones(1), "num_integration_steps": 3})


def nuts():
    import blackjax

    return BlackJax(blackjax.nuts, {"step_size": 0.4, "inverse_mass_matrix": jnp.ones(1)})


def metropolis(**options):
    import blackjax

    build = lambda log_density, width: blackjax.rmh(log_density, lambda key, x: x + width * jr.normal(key, x.shape, x.dtype))
    return BlackJax(build, per_level={"width": jnp.asarray([1.5, 1.2, 1.0, 1.0])}, **options)


KERNELS = {
    "adjusted": lambda: Adjusted([0.4, 0.3, 0.3, 0.2]),
    "metropolis": metropolis,
    "hmc": hmc,
    "nuts": nuts,
}


@pytest.mark.parametrize("kind", [k if k == "adjusted" else pytest.param(k, marks=pytest.mark.slow) for k in KERNELS])
def test_any_kernel_in_detailed_balance_serves(key, kind):
    z, square = moments(power=2)
    chain = quartic_chain(KERNELS[kind](), levels=4, moves=2, final=grid_equilibrium(lambda x, lam: -Quartic()(x), 0.0))
    found = assess(chain, 4000, backward=True, key=key)
    ahead = chain.forward(4000, key=jr.split(key)[0])
    assert_estimate(exponential_mean(ahead.log_ratios), z)
    assert_estimate(found.log_z_both, np.log(z))
    assert_estimate(mean(ahead.x1s[:, 0] ** 2, weights=jnp.exp(-ahead.log_ratios)), square)
    with pytest.raises(AssertionError):
        assert_estimate(exponential_mean(ahead.log_ratios), 1.15 * z)


class Careless(Langevin):
    """Langevin moves taken for moves in detailed balance."""

    def __call__(self, path, place, lam, index, key):
        there, shadow = super().__call__(path, place, lam, index, key)
        return there, jnp.zeros_like(shadow)


@pytest.mark.slow
def test_shadow_work_is_needed(key):
    path = Geometric(Gaussian([0.0], 1.0), Gaussian([0.5], 0.5))
    means = [
        exponential_mean(Annealing(path, path.initial, uniform(4), kernel).forward(4000, key=key).log_ratios)
        for kernel in (Langevin(0.4), Careless(0.4))
    ]
    assert_estimate(means[0], 1.0)
    with pytest.raises(AssertionError):
        assert_estimate(means[1], 1.0)


def test_paths_through_changing_temperatures_are_annealed(key):
    # V = k x^2 / 2 with k: 1 -> 2 and beta: 1 -> 1.5: Z = (2 pi / 3)^(1/2).
    path = Driven(Breathing(), Ramp(1.0, 2.0), LinearBeta(1.0, 1.5))
    chain = Annealing(path, Gaussian([0.0], 1.0), uniform(4), Langevin(0.1), final=Gaussian([0.0], 1 / 3))
    found = assess(chain, 4000, backward=True, key=key)
    for estimate in (found.log_z, found.log_z_backward, found.log_z_both):
        assert_estimate(estimate, 0.5 * np.log(2 * np.pi / 3))
    # The path may begin elsewhere.
    moved = eqx.tree_at(lambda c: c.initial, chain, Gaussian([0.1], 1.2))
    walks = moved.forward(4000, key=key)
    assert_estimate(exponential_mean(walks.log_ratios), np.sqrt(2 * np.pi / 3))


# From N(0, 1) to N(0, 1/100) the precision is 1 + 99 lambda: Fisher's metric is (99 / precision)^2 / 2.
NARROW = 99.0


def narrow_chain(gain=NARROW):
    path = Geometric(Gaussian([0.0], 1.0), Gaussian([0.0], 1 / (1 + gain)))
    return Annealing(path, path.initial, uniform(8), Relaxation(3.0))


def constant_speed(gain=NARROW):
    """Levels at which the precision is a geometric sequence."""
    return ((1 + gain) ** (np.arange(9) / 8) - 1) / gain


def dissipation(lams):
    """Of steps after complete relaxation: the sum of divergences from each density to the next."""
    ratios = (1 + NARROW * np.asarray(lams[1:], float)) / (1 + NARROW * np.asarray(lams[:-1], float))
    return np.sum(0.5 * (ratios - 1 - np.log(ratios)))


@pytest.mark.slow
def test_schedules_dissipate_less_than_a_uniform_one(key):
    pilot_key, length_key, ess_key, run_key = jr.split(key, 4)
    rough = length_schedule(narrow_chain(), 4000, key=pilot_key)
    found = length_schedule(narrow_chain().along(rough.lams), 4000, key=length_key)
    best = dissipation(constant_speed())
    assert best < dissipation(found.lams) < 1.05 * best
    assert dissipation(uniform(8)) > 4 * dissipation(found.lams)
    walks = narrow_chain().along(found.lams).forward(4000, key=run_key)
    assert_estimate(mean(walks.log_ratios), dissipation(found.lams))
    assert_estimate(exponential_mean(walks.log_ratios), 1.0)
    # A step to r times the precision leaves the share (2r - 1)^(1/2) / r.
    lams = ess_schedule(narrow_chain(), 4000, share=0.97, most=40, key=ess_key)
    ratios = np.diff(np.log(1 + NARROW * np.asarray(lams, float)))
    exact = np.log((1 + np.sqrt(1 - 0.97**2)) / 0.97**2)
    assert_estimate(mean(ratios[:-1]), exact, min_ess=10)
    assert dissipation(uniform(len(lams) - 1)) > 4 * dissipation(lams)
    with pytest.raises(AssertionError):
        assert_estimate(mean(ratios[:-1]), 1.2 * exact, min_ess=10)
    with pytest.raises(ValueError, match="`most` must be levels enough to reach the last density by steps that keep `share`, got lambda"):
        ess_schedule(narrow_chain(), 4000, share=0.999, most=40, key=ess_key)


@pytest.mark.slow
def test_thermodynamic_length_is_that_of_fishers_metric(key):
    pilot = narrow_chain(3.0).along(constant_speed(3.0))
    found = [length_schedule(pilot, 4000, key=k) for k in jr.split(key, 12)]
    lengths, middles = (jnp.stack(a) for a in zip(*((f.length, f.lams[4]) for f in found), strict=True))
    assert_estimate(mean(lengths), np.log(4.0) / np.sqrt(2.0), min_ess=10)
    # Half of the way is at twice the first precision.
    assert_estimate(mean(middles), 1 / 3, min_ess=10)
    with pytest.raises(AssertionError):
        assert_estimate(mean(middles), 1 / 2, min_ess=10)
    with pytest.raises(ValueError, match="`pilot` must have a density that changes along the path, got the same one at all levels."):
        length_schedule(narrow_chain(0.0), 4000, key=key)


def free_chain():
    path = quartic_path()
    return Annealing(path, path.initial, FreeSchedule.of(uniform(4)), Langevin(0.03 * np.ones(4)))


FREE = lambda chain: (chain.schedule, chain.kernel)


@pytest.mark.slow
@needs_x64
def test_gradients_through_unadjusted_chains_are_those_of_common_noise(key):
    loss, chain = NegativeElbo(32), free_chain()

    @jax.jit
    @jax.value_and_grad
    def at(place):
        return loss(eqx.tree_at(lambda c: (c.schedule.logits, c.kernel.log_step), chain, place), key)

    place = (chain.schedule.logits, chain.kernel.log_step)
    found = at(place)[1]
    for k, h in ((0, 1e-5), (1, 1e-5)):
        for i in range(4):
            moved = [tuple(a + (sign * h * jnp.eye(4)[i] if j == k else 0.0) for j, a in enumerate(place)) for sign in (1, -1)]
            difference = (at(moved[0])[0] - at(moved[1])[0]) / (2 * h)
            assert float(found[k][i]) == pytest.approx(float(difference), rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_tuning_schedule_and_steps_raises_the_elbo_and_keeps_the_normaliser(key):
    fit_key, judge_key = jr.split(key)
    found = fit(NegativeElbo(256), free_chain(), where=FREE, optimizer=optax.adam(0.05), steps=50, key=fit_key)
    tuned = found.model
    assert found.stopped == "steps"
    assert np.all(np.diff(tuned.lams) > 0)
    before, after = (chain.forward(4000, key=judge_key).log_ratios for chain in (free_chain(), tuned))
    # Common noise.
    gain = mean(before - after)
    assert float(gain.value) > 4 * float(gain.stderr)
    assert float(jnp.mean(before) - jnp.mean(after)) > 0.05
    assert_estimate(exponential_mean(after), moments()[0])


def test_trajectories_that_are_not_numbers_are_left_out_and_new_numbers_compile_nothing_anew(key):
    traces = []

    class Broken(Quartic):
        def __call__(self, x):
            traces.append(1)
            return jnp.where(x[0] > 1.5, jnp.nan, super().__call__(x))

    def run(step, a, lams):
        path = Geometric(Gaussian([0.2], 1.2), Broken((a, 0.8, 0.3)))
        chain = Annealing(path, path.initial, lams, Langevin(step))
        return chain, assess(chain, 4000, key=key)

    run(0.2, 0.3, uniform(3) ** 2)
    # At the start and in the one move of the loop: one look for each new state.
    first = len(traces)
    assert first <= 2
    chain, found = run(0.1, 0.25, uniform(3))
    assert len(traces) == first
    ratios = chain.forward(4000, key=jr.split(key)[0]).log_ratios
    assert int(found.log_z.excluded) == int(jnp.sum(jnp.isnan(ratios))) > 200
    assert not bool(found.log_z.trustworthy)
    assert np.isfinite(float(found.log_z.value))
    assert not np.isfinite(float(NegativeElbo(4000)(chain, key)))


def test_a_target_that_vanishes_somewhere_is_no_trouble_at_the_first_level():
    path = Geometric(Gaussian([0.0], 1.0), lambda x: jnp.where(x[0] > 0, -x[0], -jnp.inf))
    x = jnp.asarray([-1.0])
    assert float(path(x, jnp.asarray(0.0))) == float(path.initial.log_prob(x))
    assert float(path(x, jnp.asarray(0.5))) == -np.inf
    place = path.at(jnp.asarray([0.5]), gradient=True)
    assert float(path.slope(place, jnp.asarray(0.0))) == pytest.approx(float(-0.5 - path.initial.log_prob(place.x)), abs=rounding())
    assert float(path.gradient(place, jnp.asarray(0.5))[0]) == pytest.approx(0.5 * -0.5 - 0.5, abs=rounding())


def test_blackjax_kernels_of_other_numbers_have_the_same_structure():
    structure = lambda kernel: jax.tree.leaves(eqx.partition(kernel, eqx.is_array)[1])
    assert structure(hmc(0.1)) == structure(hmc(0.2))
    assert structure(hmc()) != structure(nuts())


def test_parameters_are_differentiable_leaves():
    chain = free_chain()
    leaves = jax.tree.leaves((chain.schedule, chain.kernel, chain.path, Adjusted(0.1), Relaxation(1), metropolis()))
    numbers = [leaf for leaf in leaves if not callable(leaf)]
    assert len(numbers) >= 8
    assert all(eqx.is_inexact_array(leaf) for leaf in numbers)
    assert np.allclose(np.asarray(FreeSchedule.of([0.0, 0.3, 1.0]).lams), [0.0, 0.3, 1.0])


def test_bad_input_is_refused(key):
    path = quartic_path()
    build = lambda lams=(0.0, 0.5, 1.0), kernel=None, **options: Annealing(
        path, path.initial, lams, Langevin(0.1) if kernel is None else kernel, **options
    )
    for make, message in (
        (lambda: build((0.0, 0.5, 0.5, 1.0)), "`lams` must increase strictly from 0 to 1, got "),
        (lambda: build((0.1, 1.0)), "`lams` must increase strictly from 0 to 1, got "),
        (lambda: build((0.0, 0.9)), "`lams` must increase strictly from 0 to 1, got "),
        (lambda: build((0.0, np.nan, 1.0)), "`lams` must increase strictly from 0 to 1, got "),
        (lambda: build(1.0), r"`lams` must be a vector of at least two levels, got shape \(\)."),
        (lambda: build(moves=0), "`moves` must be at least 1, got 0."),
        (lambda: Langevin(-0.1), "`step` must be positive, got -0.1."),
        (lambda: Langevin([0.1, np.inf]), "`step` must be positive, got "),
        (lambda: Langevin(np.ones((2, 2, 2))), r"`step` must be a number, or have shape \(level,\) or \(level, dim\), got shape"),
        (lambda: Adjusted(0.0), "`step` must be positive, got 0.0."),
        (lambda: Relaxation(-1.0), "`duration` must be positive, got -1.0."),
        (lambda: build(kernel=Langevin([0.1])).forward(2, key=key), "`step` must be one number or have one for each of the 2 levels"),
        (lambda: build(kernel=Langevin(np.ones((2, 3)))).forward(2, key=key), r"`step` must have one number or \(1,\) for one"),
        (lambda: build(kernel=metropolis()).forward(2, key=key), "`width` must be one number or have one for each of the 2 levels"),
        (lambda: build(kernel=Relaxation(1.0)).forward(2, key=key), "`dynamics` must have a drift that is linear in x"),
        (
            lambda: build().backward(2, key=key),
            r"`final` must have a method sample\(n, key=key\) for paths that start from it, got Quartic.",
        ),
        (lambda: build(kernel=metropolis(reversible=False)).backward(2, key=key), "`kernel` must be in detailed balance"),
        (lambda: NegativeElbo(2)(build(kernel=Adjusted(0.1)), key), "`kernel` must make moves that are smooth in all parameters"),
        (lambda: ess_schedule(build(), 10, share=1.0, key=key), "`share` must lie between 0 and 1, got 1.0."),
        (lambda: length_schedule(build(), 10, levels=0, key=key), "`levels` must be at least 1, got 0."),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    plain = Annealing(lambda x, lam: -0.5 * (1 + lam) * x**2, path.initial, uniform(2), Langevin(0.1))
    with pytest.raises(ValueError, match=r"`path` must return one number for one configuration, got shape \(1,\)."):
        plain.forward(2, key=key)
