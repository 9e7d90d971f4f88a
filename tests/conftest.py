import os
import zlib

import jax
import jax.random as jr
import pytest
from jaxtyping import install_import_hook

# Before thermojax is imported anywhere: every annotated shape is checked while the tests run.
install_import_hook("thermojax", "beartype.beartype")

X64 = os.environ.get("THERMOJAX_TEST_X64", "1") == "1"
jax.config.update("jax_enable_x64", X64)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key(request):
    """A key that depends on the test's name only: order of tests does not matter."""
    return jr.key(zlib.crc32(request.node.nodeid.encode()))
