"""Gradients on several devices, in a process that has four."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from assertions import rounding

from thermojax.distributions import Gaussian
from thermojax.functionals import work
from thermojax.optimize import Mean, MonteCarlo

CODE = """
import jax
jax.config.update("jax_enable_x64", {x64})
import equinox as eqx, jax.numpy as jnp, jax.random as jr, numpy as np, optax
import thermojax as tj
from thermojax.optimize import Mean, MonteCarlo

dynamics = tj.Overdamped(tj.potentials.Harmonic(2.0), tj.protocols.ramp_with_jumps(0.0, 1.0, knots=8))
knots_of = lambda d: d.protocol.knots

def loss(devices):
    start = tj.distributions.Gaussian([0.0], 0.5)
    return MonteCarlo(Mean(tj.functionals.work), start, jnp.linspace(0.0, 1.0, 11), 100, batches=4, devices=devices)

@eqx.filter_jit
@eqx.filter_value_and_grad
def gradient(knots, loss, key):
    return loss(eqx.tree_at(knots_of, dynamics, knots), key)

value, slopes = gradient(knots_of(dynamics), loss(None), jr.key(3))
for count in (2, 4):
    v, s = gradient(knots_of(dynamics), loss(tuple(jax.devices()[:count])), jr.key(3))
    print(float(abs(v - value)), float(jnp.max(jnp.abs(s - slopes))), float(jnp.max(jnp.abs(slopes))))
if not {fit}:
    raise SystemExit
options = dict(where=knots_of, optimizer=optax.adam(0.05), steps=3, key=jr.key(1))
fits = [tj.fit(loss(devices), dynamics, **options) for devices in (None, tuple(jax.devices()))]
print(*(float(np.max(np.abs(np.asarray(fits[0].history) - np.asarray(fit.history)))) for fit in fits), 1.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fit", [False, True], ids=["gradient", "descent"])
def test_gradients_are_averaged_over_devices(fit):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    code = CODE.format(x64=jax.config.jax_enable_x64, fit=fit)
    said = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout
    rows = [[float(word) for word in line.split()] for line in said.splitlines()]
    assert len(rows) == 2 + fit
    for value, slope, size in rows:
        assert size > 0.1
        assert max(value, slope) < rounding(1, 10)


def test_devices_share_whole_batches():
    with pytest.raises(ValueError, match="`batches` must be a multiple of the number of devices, 1, got 0|`batches` must be at least 1"):
        MonteCarlo(Mean(work), Gaussian([0.0], 0.5), jnp.linspace(0.0, 1.0, 3), batches=0, devices=tuple(jax.devices()))
    with pytest.raises(ValueError, match="`batches` must be a multiple of the number of devices, 2, got 3"):
        MonteCarlo(Mean(work), Gaussian([0.0], 0.5), jnp.linspace(0.0, 1.0, 3), batches=3, devices=tuple(jax.devices()) * 2)
