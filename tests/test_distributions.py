"""Densities: normalised, sampled, differentiated, pushed through linear maps; and the Boltzmann density of a potential."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from assertions import assert_estimate, needs_x64, rounding
from scipy.integrate import dblquad, quad
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from thermojax import equilibrium, mean
from thermojax.distributions import (
    free_energy,
    Gaussian,
    gaussian_equilibrium,
    GaussianMixture,
    grid_equilibrium,
    GridBoltzmann,
    SampledBoltzmann,
    standard_normal,
)
from thermojax.distributions._boltzmann import cells_at
from thermojax.potentials import Breathing, DoubleWell, Harmonic, Polynomial, Tilt

SHAPES = ("scalar", "diagonal", "full")


def covariance_of(shape, dim, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim)) / np.sqrt(dim)
    return {"scalar": rng.uniform(0.3, 2.0), "diagonal": rng.uniform(0.3, 2.0, dim), "full": root @ root.T + 0.3 * np.eye(dim)}[shape]


def gaussian(shape, dim):
    return Gaussian(np.random.default_rng(7).normal(size=dim), covariance_of(shape, dim))


def mixture(shape, dim):
    means = 2 * np.random.default_rng(8).normal(size=(3, dim))
    return GaussianMixture([1.0, 0.4, 2.0], means, np.stack([covariance_of(shape, dim, seed) for seed in range(3)]))


DISTRIBUTIONS = {
    f"{make.__name__}, {shape}, {dim}": make(shape, dim) for make in (gaussian, mixture) for shape in SHAPES for dim in (1, 2, 16)
}
every_distribution = pytest.mark.parametrize("density", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
LOW = {name: density for name, density in DISTRIBUTIONS.items() if not name.endswith("16")}
low_dimensional = pytest.mark.parametrize("density", LOW.values(), ids=LOW)


def components(density):
    """Weights, means and covariance matrices, in numpy."""
    one = isinstance(density, Gaussian)
    weights = np.ones(1) if one else np.asarray(density.weights, float)
    means = np.asarray(density.mean[None] if one else density.means, float)
    covariances = np.asarray(density.covariance[None] if one else density.covariances, float)
    dim = means.shape[1]
    full = [c if c.ndim == 2 else np.diag(np.broadcast_to(c, (dim,))) for c in covariances]
    return weights / weights.sum(), means, np.stack(full)


def moments_of(density):
    weights, means, covariances = components(density)
    average = weights @ means
    spread = means - average
    return average, np.einsum("k,kij->ij", weights, covariances + spread[:, :, None] * spread[:, None, :])


estimate = jax.jit(mean)


def places(dim, n=5):
    return jnp.asarray(np.random.default_rng(3).normal(size=(n, dim)), float)


def check_normalised(density, log_prob):
    average, covariance = moments_of(density)
    widths = 9 * np.sqrt(np.diag(covariance))
    lines = [np.linspace(m - w, m + w, 601 if len(average) == 1 else 401) for m, w in zip(average, widths, strict=True)]
    grid = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(lines))
    cell = np.prod([line[1] - line[0] for line in lines])
    total = float(np.sum(np.exp(jax.jit(jax.vmap(log_prob))(jnp.asarray(grid, float))))) * cell
    assert abs(total - 1) < max(1e-8, rounding(steps=10)), f"the density integrates to {total}"


@low_dimensional
def test_density_integrates_to_one(density):
    check_normalised(density, density.log_prob)


def test_check_of_the_normaliser_can_fail():
    density = DISTRIBUTIONS["gaussian, full, 2"]
    with pytest.raises(AssertionError):
        check_normalised(density, lambda x: density.log_prob(x) + 0.5 * jnp.log(2 * jnp.pi))


def check_score(density, score):
    h, dim = 1e-5, components(density)[1].shape[1]
    xs, steps = np.asarray(places(dim, 3))[:, None], 1e-5 * np.eye(dim)
    logs = jax.jit(jax.vmap(jax.vmap(density.log_prob)))(jnp.asarray(np.concatenate([xs + steps, xs - steps], axis=1)))
    differences = (logs[:, :dim] - logs[:, dim:]) / (2 * h)
    assert jnp.allclose(jax.jit(jax.vmap(score))(places(dim, 3)), differences, rtol=1e-6, atol=1e-8)


@needs_x64
@every_distribution
def test_score_is_the_gradient_of_the_log_density(density):
    check_score(density, density.score)


WRONG_SCORES = {
    "sign": lambda density: lambda x: -density.score(x),
    "factor": lambda density: lambda x: 0.5 * density.score(x),
    "one Gaussian of the same moments": lambda density: density.moments().score,
}


@needs_x64
@pytest.mark.parametrize("wrong", WRONG_SCORES.values(), ids=WRONG_SCORES)
def test_check_of_the_score_can_fail(wrong):
    density = DISTRIBUTIONS["mixture, full, 2"]
    with pytest.raises(AssertionError):
        check_score(density, wrong(density))


@every_distribution
def test_log_density_agrees_with_scipy(density):
    weights, means, covariances = components(density)
    xs = places(means.shape[1])
    logs = [multivariate_normal(m, c).logpdf(np.asarray(xs, float)) for m, c in zip(means, covariances, strict=True)]
    expected = logsumexp(logs, b=weights[:, None], axis=0)
    assert np.allclose(jax.jit(jax.vmap(density.log_prob))(xs), expected, rtol=rounding(steps=10), atol=0)


def check_sample(density, xs):
    average, covariance = moments_of(density)
    dim = len(average)
    # Coordinates, and one direction that mixes them all.
    directions = np.concatenate([np.eye(dim)[:2], np.random.default_rng(5).normal(size=(1, dim))])
    projections = (np.asarray(xs, float) - average) @ directions.T
    expected = directions @ covariance @ directions.T
    for i in range(len(directions)):
        assert_estimate(estimate(projections[:, i]), 0.0)
        for j in range(i + 1):
            assert_estimate(estimate(projections[:, i] * projections[:, j]), expected[i, j])


@every_distribution
@pytest.mark.slow
def test_samples_have_the_right_mean_and_covariance(key, density):
    check_sample(density, jax.jit(lambda k: density.sample(20_000, key=k))(key))


@pytest.mark.parametrize("wrong", [lambda xs: xs + 0.1, lambda xs: 1.1 * xs, lambda xs: xs[:, ::-1]], ids=["shift", "scale", "order"])
def test_check_of_samples_can_fail(key, wrong):
    density = DISTRIBUTIONS["mixture, full, 2"]
    with pytest.raises(AssertionError):
        check_sample(density, wrong(density.sample(20_000, key=key)))


def a_map(kind, dim, seed):
    """Scale, covariance of the noise and shift of a linear map: numbers, vectors, or matrices with a vector."""
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=dim)
    scale = {"scalar": 0.7, "diagonal": vector, "full": rng.normal(size=(dim, dim))}[kind]
    return jnp.asarray(scale, float), jnp.asarray(covariance_of(kind, dim, seed), float), jnp.asarray(rng.normal(size=dim), float)


def matrix(a, dim):
    return np.asarray(a, float) if a.ndim == 2 else np.diag(np.broadcast_to(np.asarray(a, float), (dim,)))


def check_push(density, pushed, scale, noise, shift):
    weights, means, covariances = components(density)
    dim = means.shape[1]
    a, n = matrix(scale, dim), matrix(noise, dim)
    found = components(pushed)
    assert np.allclose(found[0], weights, rtol=rounding())
    assert np.allclose(found[1], means @ a.T + np.asarray(shift, float), rtol=rounding(steps=dim), atol=rounding(steps=dim))
    assert np.allclose(found[2], a @ covariances @ a.T + n, rtol=rounding(steps=dim), atol=rounding(10, steps=dim))


@every_distribution
@pytest.mark.parametrize("kind", SHAPES)
def test_push_is_the_linear_map_of_every_component(density, kind):
    a_step = a_map(kind, components(density)[1].shape[1], seed=1)
    check_push(density, density.push(*a_step), *a_step)


WRONG_PUSHES = {
    "scale of the covariance not squared": lambda d, scale, noise, shift: d.push(scale**0.5, noise, shift),
    "no noise": lambda d, scale, noise, shift: d.push(scale, 0.0, shift),
    "shift before scale": lambda d, scale, noise, shift: d.push(scale, noise, scale * shift),
}


@pytest.mark.parametrize("wrong", WRONG_PUSHES.values(), ids=WRONG_PUSHES)
def test_check_of_push_can_fail(wrong):
    density = DISTRIBUTIONS["mixture, diagonal, 2"]
    a_step = a_map("scalar", 2, seed=1)
    with pytest.raises(AssertionError):
        check_push(density, wrong(density, *a_step), *a_step)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", ["gaussian, scalar, 2", "mixture, full, 2"])
def test_push_is_sampling_then_the_map(key, name, kind):
    start_key, noise_key = jr.split(key)
    density = DISTRIBUTIONS[name]
    scale, noise, shift = a_map(kind, 2, seed=2)
    xs = density.sample(20_000, key=start_key)
    moved = xs @ scale.T if kind == "full" else jax.vmap(lambda x: scale * x)(xs)
    added = Gaussian(shift, noise).sample(20_000, key=noise_key)
    check_sample(density.push(scale, noise, shift), moved + added)


@pytest.mark.parametrize("second", SHAPES)
@pytest.mark.parametrize("first", SHAPES)
@pytest.mark.parametrize("name", ["gaussian, diagonal, 2", "mixture, scalar, 2", "mixture, full, 16"])
def test_pushing_twice_is_pushing_once_with_the_composed_map(name, first, second):
    density = DISTRIBUTIONS[name]
    dim = components(density)[1].shape[1]
    one, two = a_map(first, dim, seed=3), a_map(second, dim, seed=4)
    (a, n, b), (c, m, d) = ((matrix(s[0], dim), matrix(s[1], dim), np.asarray(s[2], float)) for s in (one, two))
    check_push(density, density.push(*one).push(*two), jnp.asarray(c @ a), jnp.asarray(c @ n @ c.T + m), c @ b + d)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [1, 2, 16])
def test_moments_of_a_mixture_are_those_of_its_components(shape, dim):
    density = mixture(shape, dim)
    average, covariance = moments_of(density)
    found = density.moments()
    assert np.allclose(found.mean, average, rtol=rounding(10), atol=rounding())
    assert np.allclose(found.covariance, covariance, rtol=rounding(10), atol=rounding(10))


def test_a_mixture_of_one_component_is_that_gaussian():
    single = gaussian("full", 2)
    alone = GaussianMixture([3.0], single.mean[None], single.covariance[None])
    for x in places(2):
        assert jnp.allclose(alone.log_prob(x), single.log_prob(x), rtol=rounding())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [1, 16])
def test_entropy_is_that_of_scipy_and_the_mean_surprise(key, shape, dim):
    density = gaussian(shape, dim)
    _, means, covariances = components(density)
    assert float(density.entropy()) == pytest.approx(multivariate_normal(means[0], covariances[0]).entropy(), rel=rounding(steps=10))
    surprises = jax.jit(lambda k: -jax.vmap(density.log_prob)(density.sample(5000, key=k)))
    assert_estimate(estimate(surprises(key)), density.entropy())


def test_standard_normal_is_standard():
    assert jnp.all(standard_normal(3).mean == 0)
    assert float(standard_normal(3).entropy()) == pytest.approx(1.5 * np.log(2 * np.pi * np.e), rel=rounding())


def test_parameters_of_a_mixture_are_differentiable_under_jit():
    slope = jax.jit(jax.grad(lambda means, x: GaussianMixture(jnp.ones(2), means, jnp.ones(2)).log_prob(x)))
    # The gradient in all means together is minus that in the configuration.
    means, x = jnp.array([[-1.0], [0.5]]), jnp.array([0.2])
    assert jnp.allclose(jnp.sum(slope(means, x), axis=0), -GaussianMixture(jnp.ones(2), means, jnp.ones(2)).score(x), rtol=rounding())


BAD_DENSITIES = {
    "mean": (lambda: Gaussian([[0.0]], 1.0), r"`mean` must have shape \(dim,\)"),
    "covariance shape": (lambda: Gaussian([0.0, 0.0], [1.0, 1.0, 1.0]), "`covariance` must have one of the shapes"),
    "variance": (lambda: Gaussian([0.0], -1.0), "`covariance` must be positive, got -1.0"),
    "variances": (lambda: Gaussian([0.0, 0.0], [1.0, 0.0]), "`covariance` must be positive, got"),
    "matrix": (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "`covariance` must be positive definite"),
    "weights": (lambda: GaussianMixture([1.0, -1.0], [[0.0], [1.0]], [1.0, 1.0]), "`weights` must be positive"),
    "number of weights": (lambda: GaussianMixture([1.0], [[0.0], [1.0]], [1.0, 1.0]), r"`weights` must have shape \(2,\)"),
    "means": (lambda: GaussianMixture([1.0], [0.0], [1.0]), r"`means` must have shape \(component, dim\)"),
    "number of covariances": (lambda: GaussianMixture([1.0, 1.0], [[0.0], [1.0]], [1.0]), "`covariances` must have 2 components"),
    "covariances shape": (lambda: GaussianMixture([1.0], [[0.0, 0.0]], [[1.0, 1.0, 1.0]]), "`covariances` must have one of the shapes"),
    "component variance": (lambda: GaussianMixture([1.0, 1.0], [[0.0], [1.0]], [1.0, -1.0]), "`covariances` must be positive, got"),
    "component variances": (lambda: GaussianMixture([1.0], [[0.0, 1.0]], [[1.0, 0.0]]), "`covariances` must be positive, got"),
    "component matrix": (
        lambda: GaussianMixture([1.0, 1.0], [[0.0, 1.0], [1.0, 0.0]], [np.eye(2), -np.eye(2)]),
        "`covariances` must be positive definite",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD_DENSITIES.values(), ids=BAD_DENSITIES)
def test_densities_without_meaning_are_refused(make, message):
    # jaxtyping may see the wrong shape first; it says so in its own words.
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    if isinstance(error.value, ValueError):
        error.match(message)


# Equilibrium.


@pytest.mark.parametrize("dim", [1, 3])
def test_equilibrium_of_a_trap_is_its_gaussian(dim):
    trap = equilibrium(Harmonic(2.0), 0.7, beta=1.5, dim=dim)
    assert isinstance(trap, Gaussian)
    assert jnp.allclose(trap.mean, 0.7, rtol=rounding())
    assert jnp.allclose(trap.covariance, jnp.eye(dim) / 3.0, rtol=rounding(), atol=rounding())
    breathing = equilibrium(Breathing(-0.4), 4.0, beta=0.5, dim=dim)
    assert isinstance(breathing, Gaussian)
    assert jnp.allclose(breathing.mean, -0.4, rtol=rounding())
    assert jnp.allclose(breathing.covariance, jnp.eye(dim) / 2.0, rtol=rounding(), atol=rounding())


def test_equilibrium_of_coupled_quadratic_wells_is_the_full_gaussian():
    stiffness = jnp.array([[2.0, 0.6], [0.6, 1.0]])
    density = equilibrium(lambda x, lam: 0.5 * x @ stiffness @ x - lam * x[0], 0.5, beta=2.0, dim=2)
    assert isinstance(density, Gaussian)
    assert jnp.allclose(density.covariance @ stiffness, jnp.eye(2) / 2, atol=rounding())
    assert jnp.allclose(stiffness @ density.mean, jnp.array([0.5, 0.0]), atol=rounding())


def test_gaussian_equilibrium_is_differentiable_in_the_potential():
    variance = lambda k: gaussian_equilibrium(Harmonic(k), 0.0, beta=2.0).covariance[0, 0]
    assert jax.jit(jax.grad(variance))(4.0) == pytest.approx(-1 / 32, rel=rounding())


TILTED = DoubleWell(2.0) + Tilt()
WELLS = {  # potential, control, beta, where quadrature should look
    "double well": (DoubleWell(1.0), 0.0, 1.0, (-1.0, 0.0, 1.0)),
    "tilted": (TILTED, 0.8, 1.3, (-1.0, 0.0, 1.0)),
    "high barrier": (DoubleWell(50.0), 0.0, 1.0, (-1.0, 0.0, 1.0)),
    "hot": (DoubleWell(1.0), 0.0, 1e-3, (0.0,)),
    "asymmetric polynomial": (Polynomial([0.0, 1.0, -3.0, 0.0, -2.0, 0.2, 1.0]), 0.0, 1.0, (-1.4, 0.0, 1.4)),
    "narrow": (DoubleWell(1.0, 1e-3), 0.0, 1.0, (-1e-3, 0.0, 1e-3)),
    "very narrow": (DoubleWell(1.0, 1e-8), 0.0, 1.0, (-1e-8, 0.0, 1e-8)),
    "wide": (DoubleWell(1.0, 3e3), 0.0, 1.0, (-3e3, 0.0, 3e3)),
    "far apart": (DoubleWell(20.0, 1e3), 0.0, 1.0, (-1e3, 0.0, 1e3)),
    "far from the origin": (lambda x, lam: jnp.sum(((x - lam) ** 2 - 1) ** 2 + 0.3 * (x - lam)), 1000.0, 1.0, (999.0, 1000.0, 1001.0)),
    "harmonic near the origin, linear beyond": (
        lambda x, lam: jnp.sum(jnp.where(jnp.abs(x) > 10, 10 * jnp.abs(x) - 50, 0.5 * x**2)),
        0.0,
        0.05,
        (-10.0, 0.0, 10.0),
    ),
}


def log_z_of(potential, lam, beta, where):
    """ln Z by adaptive quadrature, split where the wells are."""
    compiled = jax.jit(lambda x: potential(x[None], jnp.asarray(lam, float)))
    lowest = min(float(compiled(jnp.asarray(x, float))) for x in where)
    weight = lambda x: float(jnp.exp(-beta * (compiled(jnp.asarray(x, float)) - lowest)))
    # Out to where the weight has vanished.
    reach = max(where[-1] - where[0], 1.0 if len(where) == 1 else 0.0)
    while weight(where[0] - reach) + weight(where[-1] + reach) > 1e-16:
        reach *= 1.5
    edges = [where[0] - reach, *where, where[-1] + reach]
    total = sum(quad(weight, a, b, epsabs=0.0, epsrel=1e-11, limit=200)[0] for a, b in zip(edges[:-1], edges[1:], strict=True))
    return float(np.log(total) - beta * lowest)


def check_normaliser(log_z, expected):
    # ln Z to 1e-8 absolute is Z to 1e-8 relative.
    assert abs(float(log_z) - expected) < 1e-8, f"ln Z is {float(log_z)}, quadrature says {expected}"


@needs_x64
@pytest.mark.parametrize(("potential", "lam", "beta", "where"), WELLS.values(), ids=WELLS)
def test_grid_normaliser_agrees_with_quadrature_in_one_dimension(potential, lam, beta, where):
    density = equilibrium(potential, lam, beta=beta)
    assert isinstance(density, GridBoltzmann)
    expected = log_z_of(potential, lam, beta, where)
    check_normaliser(density.log_z, expected)
    check_normaliser(-beta * free_energy(potential, lam, beta=beta), expected)
    x = jnp.array([where[0]])
    check_normaliser(-density.log_prob(x) - beta * potential(x, jnp.asarray(lam)), expected)


@needs_x64
@pytest.mark.parametrize("name", ["asymmetric polynomial", "high barrier", "wide", "narrow"])
def test_grid_normaliser_of_separable_potentials_factorises_in_two_dimensions(name):
    potential, lam, beta, where = WELLS[name]
    density = equilibrium(potential, lam, beta=beta, dim=2)
    assert isinstance(density, GridBoltzmann)
    check_normaliser(density.log_z, 2 * log_z_of(potential, lam, beta, where))


def coupled(x, lam):
    return 2.0 * (x[0] ** 2 - 1) ** 2 + 0.5 * x[1] ** 4 + lam * x[0] * x[1] - 0.3 * x[0]


@needs_x64
def test_grid_normaliser_agrees_with_quadrature_in_two_dimensions():
    weight = lambda y, x: np.exp(-2.0 * (x**2 - 1) ** 2 - 0.5 * y**4 - x * y + 0.3 * x)
    total, _ = dblquad(weight, -3.5, 3.5, -4.5, 4.5, epsabs=1e-9, epsrel=1e-9)
    density = equilibrium(coupled, 1.0, dim=2)
    check_normaliser(density.log_z, float(np.log(total)))
    check_normaliser(-free_energy(coupled, 1.0, dim=2), float(np.log(total)))


@needs_x64
@pytest.mark.parametrize("wrong", [lambda z: -z, lambda z: z + 1e-6, lambda z: 2 * z], ids=["sign", "normaliser", "two dimensions"])
def test_check_of_the_normaliser_of_a_grid_can_fail(wrong):
    potential, lam, beta, where = WELLS["tilted"]
    with pytest.raises(AssertionError):
        check_normaliser(wrong(grid_equilibrium(potential, lam, beta=beta).log_z), log_z_of(potential, lam, beta, where))


def test_wells_that_the_grid_cannot_resolve_are_refused():
    with pytest.raises(ValueError, match="`cells` must resolve the wells of `potential`, got 4096 in each coordinate"):
        grid_equilibrium(DoubleWell(1e8, 0.7), 0.0)
    with pytest.raises(ValueError, match="`cells` must resolve the wells of `potential`, got 8 in each coordinate"):
        grid_equilibrium(DoubleWell(50.0), 0.0, dim=2, cells=8)


def test_grid_samples_have_the_moments_of_quadrature(key):
    density = equilibrium(TILTED, 0.8, beta=1.3)
    weight = lambda x: np.exp(-1.3 * (2.0 * (x**2 - 1) ** 2 - 0.8 * x))
    norm = quad(weight, -4, 4)[0]
    xs = density.sample(20_000, key=key)[:, 0]
    for power in (1, 2, 3):
        assert_estimate(estimate(xs**power), quad(lambda x, n=power: x**n * weight(x), -4, 4)[0] / norm)


def test_grid_samples_in_two_dimensions_have_the_moments_of_quadrature(key):
    density = equilibrium(coupled, 1.0, dim=2)
    line = np.linspace(-4, 4, 801)
    x, y = np.meshgrid(line, line, indexing="ij")
    weight = np.exp(-2.0 * (x**2 - 1) ** 2 - 0.5 * y**4 - x * y + 0.3 * x)
    xs = density.sample(20_000, key=key)
    for i, j in ((1, 0), (0, 1), (1, 1), (2, 0), (0, 2)):
        assert_estimate(estimate(xs[:, 0] ** i * xs[:, 1] ** j), np.sum(x**i * y**j * weight) / np.sum(weight))


def test_score_of_a_grid_density_is_its_force_over_temperature():
    x = jnp.array([0.3, -0.4])
    gradient = np.array([8 * 0.3 * (0.09 - 1) - 0.4 - 0.3, 2 * (-0.4) ** 3 + 0.3])
    assert np.allclose(equilibrium(coupled, 1.0, beta=2.0, dim=2).score(x), -2.0 * gradient, rtol=rounding())


@pytest.mark.nightly
def test_chains_find_the_moments_of_a_double_well_in_three_dimensions(key):
    density = equilibrium(DoubleWell(1.5), 0.0, dim=3)
    assert isinstance(density, SampledBoltzmann)
    weight = lambda x: np.exp(-1.5 * (x**2 - 1) ** 2)
    expected = [quad(lambda x, n=n: x**n * weight(x), -4, 4)[0] / quad(weight, -4, 4)[0] for n in (1, 2, 4)]
    # Draw k of chain c is row 32 k + c: the means of the chains are independent.
    xs = density.sample(32 * 64, key=key).reshape(64, 32, 3)
    for power, value in zip((1, 2, 4), expected, strict=True):
        assert_estimate(estimate(jnp.mean(xs**power, axis=(0, 2))), value, min_ess=30)
    with pytest.raises(ValueError, match="`log_prob` must have a normaliser, got a Boltzmann density in 3 dimensions"):
        density.log_prob(xs[0, 0])
    x = jnp.array([0.3, -0.2, 1.1])
    assert jnp.allclose(density.score(x), -6.0 * x * (x**2 - 1), rtol=rounding())


@pytest.mark.parametrize("dim", [1, 3])
def test_free_energy_of_a_trap_is_that_of_gauss(dim):
    expected = -0.5 * dim / 1.5 * np.log(2 * np.pi / (1.5 * 2.0))
    assert float(free_energy(Harmonic(2.0), 0.7, beta=1.5, dim=dim)) == pytest.approx(expected, rel=rounding())


@pytest.mark.parametrize("distance", [10.0, 1e4])
def test_free_energy_does_not_depend_on_where_the_wells_are(distance):
    assert float(free_energy(Harmonic(1.0), distance)) == pytest.approx(-0.5 * np.log(2 * np.pi), rel=rounding())
    away = lambda x, lam: DoubleWell(1.0)(x - lam, lam)
    here, there = free_energy(away, 0.0), free_energy(away, distance)
    assert float(there) == pytest.approx(float(here), rel=distance * rounding())


FLAT = {
    "quartic hill": (lambda x, lam: -jnp.sum(x**4), r"\(it must confine\)"),
    "one-sided": (lambda x, lam: jnp.sum(x**3), r"\(it must confine\)"),
    "flat": (lambda x, lam: 0.0 * jnp.sum(x), "got an eigenvalue 0.0"),
    "hill": (lambda x, lam: -0.5 * jnp.sum(x**2), "got an eigenvalue -1.0"),
    "logarithmic": (lambda x, lam: jnp.sum(jnp.log1p(x**2)), r"\(it must confine\)"),
}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize(("potential", "message"), FLAT.values(), ids=FLAT)
def test_potentials_that_cannot_be_normalised_are_refused(potential, message, dim):
    with pytest.raises(ValueError, match="`potential` must be normalisable as a Boltzmann weight.*" + message):
        equilibrium(potential, 0.0, dim=dim)


def test_questions_without_an_answer_are_refused():
    with pytest.raises(ValueError, match="`dim` must be 1 or 2 for an anharmonic potential; use `estimators.bar` otherwise, got 3"):
        free_energy(DoubleWell(), 0.0, dim=3)
    with pytest.raises(ValueError, match="`potential` must be normalisable"):
        free_energy(lambda x, lam: -jnp.sum(x**4), 0.0)
    with pytest.raises(ValueError, match="`dim` must be 1 or 2 for a grid, got 3"):
        grid_equilibrium(DoubleWell(), 0.0, dim=3)
    with pytest.raises(ValueError, match="`beta` must be positive, got -1.0"):
        equilibrium(Harmonic(), 0.0, beta=-1.0)
    with pytest.raises(ValueError, match="`potential` must be a number for"):
        grid_equilibrium(lambda x, lam: jnp.sum(jnp.sqrt(x)), 0.0)
    with pytest.raises(ValueError, match="`potential` must return one number for one configuration"):
        equilibrium(lambda x, lam: x**2, 0.0)
    with pytest.raises(ValueError, match="call `gaussian_equilibrium` under `jit`, got a traced value"):
        jax.jit(lambda k: equilibrium(Harmonic(k), 0.0).mean)(1.0)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.float64, marks=needs_x64)])
def test_draws_from_a_grid_reach_no_further_into_the_tails_than_their_number_says(dtype):
    # A Gaussian on a grid that ends ten standard deviations out: level zero is no place so far out.
    places = jnp.linspace(-10.0, 10.0, 4001, dtype=dtype)
    eps = jnp.finfo(dtype).eps
    for level in (0.0, float(eps), 1.0 - float(eps), 0.25, 0.5 - float(eps), 0.5, 0.9):
        for finer in (0.25, 0.5, 0.75):
            cell = cells_at(-0.5 * places**2, jnp.asarray([level], dtype), jnp.asarray([finer], dtype))
            below = level + finer * float(eps)
            expected = norm.ppf(below) if level < 0.5 else -norm.ppf((1.0 - level - float(eps)) + (1.0 - finer) * float(eps))
            assert abs(float(places[cell[0]]) - expected) < 0.006 + 0.02 * (abs(expected) > 5)
