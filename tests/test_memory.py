"""Memory of an ensemble: it does not grow with the number of steps."""

import json
import subprocess
import sys

import pytest

# Mebibytes above those after import, at most, after each of some numbers of steps.
GROWTH = """
import json, pathlib, resource, sys
import jax, jax.numpy as jnp, jax.random as jr, thermojax as tj
from thermojax.functionals import log_ratio, work
from thermojax.speed import quartic_trap
jax.devices()
before = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
samples, *lengths = map(int, sys.argv[1:])
peaks = []
for steps in lengths:
    ts, x0s = jnp.linspace(0.0, 1.0, steps + 1), jnp.zeros((samples, 1))
    jax.block_until_ready(tj.accumulate((work, log_ratio), quartic_trap(), x0s, ts, key=jr.key(0)))
    # Of this process alone: what `getrusage` tells may be the peak of the one that started it.
    peaks.append(int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024 - before)
print(json.dumps(peaks))
"""
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def peaks_of(samples, *lengths):
    words = [sys.executable, "-c", GROWTH, str(samples), *map(str, lengths)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@linux
def test_memory_of_an_ensemble_does_not_grow_with_its_steps():
    few, many = peaks_of(300_000, 10, 300)
    # A stored path of so many states, or their normals, would take 340.
    assert many - few < 30
    assert many < 200


@linux
@pytest.mark.nightly
def test_a_million_trajectories_of_ten_thousand_steps_stay_below_200_megabytes():
    (peak,) = peaks_of(1_000_000, 10_000)
    assert peak * 2**20 < 200e6
