r"""Levels: $0 = \lambda_0 < \dots < \lambda_K = 1$, given or free."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from thermojax._array import as_float
from thermojax._check import ensure, library_of, require


class FreeSchedule(eqx.Module):
    r"""Levels whose increments are the shares $\mathrm{softmax}(a)$: increasing from 0 to 1, whatever the numbers $a$."""

    logits: Float[Array, " step"] = eqx.field(converter=as_float)
    """The numbers $a$, one for each increment."""

    @classmethod
    def of(cls, lams: ArrayLike | list | tuple) -> "FreeSchedule":
        """The free schedule that begins with these levels."""
        return cls(jnp.log(jnp.diff(check_lams(lams))))

    @property
    def lams(self) -> Float[Array, " level"]:
        r"""The levels $\lambda_k$, shape ``(step + 1,)``."""
        inner = jnp.cumsum(jax.nn.softmax(self.logits))[:-1]
        end = jnp.ones_like(self.logits[:1])
        return jnp.concatenate([0 * end, inner, end])


def check_lams(lams: ArrayLike | list | tuple) -> Float[Array, " level"]:
    """Return levels as an array.

    Raises:
        ValueError: unless they increase strictly from 0 to 1.
    """
    lams = as_float(lams)
    require(lams.ndim == 1 and lams.shape[0] > 1, "lams", "be a vector of at least two levels", f"shape {lams.shape}")
    xp = library_of(lams)
    # In NumPy nothing compiles.
    levels = xp.asarray(lams)
    good = (levels[0] == 0) & (levels[-1] == 1) & xp.all(xp.diff(levels) > 0)
    return ensure(lams, good, "lams", "increase strictly from 0 to 1", lams)


def as_schedule(schedule: Any) -> Any:
    """A free schedule as it is; levels as an array, checked."""
    return schedule if isinstance(schedule, FreeSchedule) else check_lams(schedule)
