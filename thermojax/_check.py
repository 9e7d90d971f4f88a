"""Checks at the border, in one grammar: "`name` must …, got …."."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

T = TypeVar("T")


def require(condition: bool, name: str, rule: str, got: object) -> None:
    """Raise ``ValueError`` with our one sentence unless `condition` (known at trace time) holds."""
    if not condition:
        raise ValueError(f"`{name}` must {rule}, got {got}.")


def ensure(value: T, good: Any, name: str, rule: str, got: Any) -> T:
    """Return `value` if `good` holds; the same sentence at once for known numbers, at run time for traced ones."""
    if isinstance(good, Tracer):
        return eqx.error_if(value, ~jnp.all(good), f"`{name}` must {rule}.")
    # NumPy's own, which compiles nothing.
    if not np.all(np.asarray(good)):
        require(False, name, rule, _show(got))
    return value


def check_positive(value: Array, name: str) -> Array:
    """Return `value` if it is positive everywhere and finite."""
    xp = library_of(value)
    return ensure(value, xp.isfinite(value) & (xp.asarray(value) > 0), name, "be positive", value)


def check_times(ts: Any, dtype: Any = None) -> Array:
    """Return the time grid `ts` as an array, of type `dtype` if given, if it increases strictly in that precision."""
    ts = jnp.asarray(ts)
    if jnp.iscomplexobj(ts):
        raise TypeError(f"`ts` must be real, got {ts.dtype}.")
    require(ts.ndim == 1 and ts.shape[0] > 1, "ts", "be a vector of at least two times", f"shape {ts.shape}")
    ts = ts if dtype is None else ts.astype(dtype)
    return ensure(ts, library_of(ts).diff(ts) > 0, "ts", "increase strictly (every time step positive)", ts)


def library_of(value: Any) -> Any:
    """NumPy for known numbers, which compiles nothing; JAX for traced ones."""
    return jnp if isinstance(value, Tracer) else np


def _show(value: Any) -> str:
    """A short text of `value` for an error message."""
    if isinstance(value, Tracer):
        return "a traced value"
    if not isinstance(value, jax.Array):
        return str(value)
    return str(value.item()) if value.ndim == 0 else np.array2string(np.asarray(value), precision=6, threshold=6)
