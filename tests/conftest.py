import math
import os
import pathlib
import shutil
import sys
import tempfile
import zlib

# Most of the suite's time is compilation, and much of it is the same twice: in both workers, in processes that tests start, in functions
# made anew. One cache for this run, in which they find each other's work; empty at its start, unless one is named.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="thermojax-tests-")
else:
    CACHE = None
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# What is read from it is announced on the error stream, which tests of the command line read.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

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


def pytest_unconfigure():
    if CACHE is not None:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def key(request):
    """A key that depends on the test's name only: order of tests does not matter."""
    return jr.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="module", autouse=True)
def forget_what_was_compiled():
    """Compiled functions hold memory maps, of which a process may have some 65 000: past that the compiler crashes."""
    yield
    if memory_maps() > 15_000:
        jax.clear_caches()


def memory_maps():
    """Memory maps of this process; infinitely many where the system does not tell."""
    maps = pathlib.Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else math.inf


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Runs `thermojax` in this process, in an empty folder; returns the exit code."""
    from small_runs import TINY

    from thermojax.cli import main
    from thermojax.experiments import EXPERIMENTS

    monkeypatch.setitem(EXPERIMENTS, "tiny", TINY)
    monkeypatch.chdir(tmp_path)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["thermojax", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0

    return command
