"""What the tests assert: statistics by measured standard errors, orders of convergence by slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

needs_x64 = pytest.mark.skipif(not jax.config.jax_enable_x64, reason="needs float64")


def assert_estimate(estimate, expected, *, k=4.0, min_ess=200.0):
    """`estimate` is within `k` of its own standard errors of `expected`, and those rest on enough samples."""
    value, stderr, ess = float(estimate.value), float(estimate.stderr), float(estimate.ess)
    assert ess > min_ess, f"only {ess:.0f} effective samples: the test has no power"
    assert stderr > 0, "an error bar of zero tests nothing"
    assert abs(value - float(expected)) < k * stderr, f"{value:.6f} ± {stderr:.6f} is not {float(expected):.6f}"


def assert_order(errors, steps, order, *, band=0.15):
    """`errors` fall as the power `order` of `steps`."""
    slope, _ = np.polyfit(np.log(np.asarray(steps, float)), np.log(np.asarray(errors, float)), 1)
    assert abs(slope - order) < band, f"order {slope:.2f}, expected {order} ± {band}"


def rounding(scale=1.0, steps=1):
    """What rounding may do to a sum of `steps` terms of size `scale`, in the precision of the tests."""
    return 20 * float(jnp.finfo(jax.dtypes.canonicalize_dtype(float)).eps) * scale * steps
