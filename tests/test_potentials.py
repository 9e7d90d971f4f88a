import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from assertions import needs_x64, rounding

from thermojax.potentials import Breathing, DoubleWell, energy, force, Harmonic, Polynomial, Tilt

POTENTIALS = {
    "harmonic": Harmonic(2.0),
    "breathing": Breathing([0.3]),
    "polynomial": Polynomial([0.0, 0.2, -1.0, 0.0, 0.5]),
    "double well": DoubleWell(3.0, 1.5),
    "tilted double well": DoubleWell(3.0) + Tilt(),
    "sum with any callable": Harmonic(1.0) + (lambda x, lam: jnp.sum(jnp.sin(x) * lam)),
}
BY_HAND = {
    "harmonic": lambda x, lam: (x - lam) ** 2,
    "breathing": lambda x, lam: lam / 2 * (x - 0.3) ** 2,
    "polynomial": lambda x, lam: 0.2 * x - x**2 + 0.5 * x**4,
    "double well": lambda x, lam: 3 * ((x / 1.5) ** 2 - 1) ** 2,
    "tilted double well": lambda x, lam: 3 * (x**2 - 1) ** 2 - lam * x,
    "sum with any callable": lambda x, lam: 0.5 * (x - lam) ** 2 + jnp.sin(x) * lam,
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_energy_is_the_formula(name):
    for x in (-1.3, 0.0, 0.4, 2.0):
        expected = BY_HAND[name](jnp.array(x), jnp.array(0.7))
        assert abs(energy(POTENTIALS[name], jnp.array([x]), jnp.array(0.7)) - expected) < rounding(20)


@needs_x64
@pytest.mark.parametrize("potential", POTENTIALS.values(), ids=POTENTIALS)
def test_force_is_minus_the_slope_of_the_energy(potential):
    x, lam, h = jnp.array([0.4]), jnp.array(0.7), 1e-5
    slope = (energy(potential, x + h, lam) - energy(potential, x - h, lam)) / (2 * h)
    assert abs(force(potential, x, lam)[0] + slope) < 1e-8


@pytest.mark.parametrize("name", ["harmonic", "breathing", "polynomial", "double well"])
def test_parameters_are_differentiable_leaves(name):
    potential = POTENTIALS[name]
    leaves = jax.tree.leaves(potential)
    assert leaves
    assert all(eqx.is_inexact_array(leaf) for leaf in leaves)
    slopes = jax.grad(lambda p: p(jnp.array([0.4]), jnp.array(0.7)))(potential)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(slopes))


def test_coordinates_add_up():
    x = jnp.array([0.4, -1.0])
    for potential in POTENTIALS.values():
        apart = sum(energy(potential, x[i : i + 1], jnp.array(0.7)) for i in (0, 1))
        assert abs(energy(potential, x, jnp.array(0.7)) - apart) < rounding(20)


def test_a_potential_that_returns_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"`potential` must return one number for one configuration, got shape \(1,\)."):
        force(lambda x, lam: x**2, jnp.array([1.0]), jnp.array(0.0))


def test_a_polynomial_that_cannot_confine_is_refused():
    with pytest.raises(ValueError, match=r"`coefficients` must be a vector of odd length, got shape \(4,\)."):
        Polynomial([0.0, 1.0, 0.0, 1.0])


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match="must be real"):
        Breathing(1j)
