r"""Kernels: moves of one configuration under one density of a path.

Each returns where it went and the shadow work of the move, $s = \ln K(x'|x)/\tilde K(x|x') - \ln\gamma(x')/\gamma(x)$ with $\tilde K$ the
reversed kernel: zero if $K$ leaves $\gamma$ invariant and $\tilde K$ is its reversal, as for kernels in detailed balance.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray as Key

from thermojax._array import as_float, as_scalar, Scalar
from thermojax._check import check_positive, require
from thermojax.annealing._paths import AbstractPath, Place
from thermojax.baths import Isothermal
from thermojax.dynamics import Overdamped
from thermojax.protocols import Constant
from thermojax.steppers import ExactLinear


class AbstractKernel(eqx.Module):
    r"""A Markov kernel for each density of a path."""

    gradients: eqx.AbstractClassVar[bool]
    """Whether it asks the path for gradients."""
    smooth: eqx.AbstractClassVar[bool]
    """Whether its moves are smooth functions of all parameters, so that gradients of expectations go through them."""

    @abc.abstractmethod
    def check(self, path: AbstractPath, x0s: Any, lams: Float[Array, " level"]) -> Any:
        """Return `x0s` if the kernel can move these states along these levels; called once, before the first move."""

    @abc.abstractmethod
    def reversal(self) -> "AbstractKernel":
        r"""The kernel $\tilde K$ of the reversed move, which is in the log-ratio; for most the kernel itself.

        Raises:
            ValueError: if it cannot be run.
        """

    @abc.abstractmethod
    def __call__(self, path: AbstractPath, place: Place, lam: Scalar, index: Array, key: Key) -> tuple[Place, Scalar]:
        """Where a move at `lam`, the level `index` counted from zero, leads; and its shadow work."""


class Langevin(AbstractKernel):
    r"""Unadjusted Langevin moves, $x' = x + h\nabla\ln\gamma_\lambda(x) + \sqrt{2h}\,z$.

    The log-ratio is that of the Gaussian kernels, exactly. One new gradient for each move. The logarithms of the steps are the leaves, so
    that steps stay positive while they are tuned.
    """

    log_step: Float[Array, "..."]
    r"""$\ln h$: one number, one for each level, or one for each level and coordinate, shape ``(level, dim)``."""
    gradients: ClassVar[bool] = True
    smooth: ClassVar[bool] = True

    def __init__(self, step: ArrayLike | list | tuple):
        """Take steps of size `step`: a number, or shape ``(level,)`` or ``(level, dim)``."""
        step = as_float(step)
        require(step.ndim <= 2, "step", "be a number, or have shape (level,) or (level, dim)", f"shape {step.shape}")
        self.log_step = jnp.log(check_positive(step, "step"))

    @property
    def step(self) -> Float[Array, "..."]:
        """The step $h$."""
        return jnp.exp(self.log_step)

    def check(self, path, x0s, lams):
        _check_levels(self.log_step, "step", lams)
        shapes = ((), x0s.shape[1:])
        of_one = self.log_step.shape[1:]
        require(of_one in shapes, "step", f"have one number or {shapes[1]} for one configuration", f"shape {of_one}")
        return x0s

    def reversal(self):
        return self

    def __call__(self, path, place, lam, index, key):
        h = jnp.exp(self.log_step if self.log_step.ndim == 0 else self.log_step[index])
        x0, ahead = place.x, h * path.gradient(place, lam)
        there = path.at(x0 + ahead + jnp.sqrt(2 * h) * jr.normal(key, x0.shape, x0.dtype), gradient=True)
        back = h * path.gradient(there, lam)
        # The large squares of the two kernels cancel on paper.
        ratio = jnp.sum((ahead + back) * (there.x - x0 + 0.5 * (back - ahead)) / (2 * h))
        return there, ratio - (path.value(there, lam) - path.value(place, lam))


class Adjusted(AbstractKernel):
    """Langevin moves accepted or rejected by the rule of Metropolis and Hastings (BlackJAX's `mala`), with the steps of `Langevin`."""

    step: Float[Array, "..."] = eqx.field(converter=as_float)
    """One number, or one for each level."""
    gradients: ClassVar[bool] = False
    smooth: ClassVar[bool] = False

    def __check_init__(self):
        require(self.step.ndim <= 1, "step", "be a number, or have shape (level,)", f"shape {self.step.shape}")
        check_positive(self.step, "step")

    def check(self, path, x0s, lams):
        _check_levels(self.step, "step", lams)
        return x0s

    def reversal(self):
        return self

    def __call__(self, path, place, lam, index, key):
        # BlackJAX starts a JAX backend when imported, which `import thermojax` must not.
        import blackjax

        step = self.step if self.step.ndim == 0 else self.step[index]
        return _blackjax_move(lambda density: blackjax.mala(density, step), path, place, lam, key)


class BlackJax(AbstractKernel):
    """Any kernel of BlackJAX that leaves a density invariant: ``BlackJax(blackjax.hmc, {"step_size": 0.1, ...})``.

    For kernels in detailed balance (`mala`, `hmc`, `nuts`, `rmh`, `barker_proposal`, ...) the reversed chain is known too.
    """

    build: Callable = eqx.field(converter=lambda build: _Same(build))
    """``build(log_density, **parameters)`` returns one of BlackJAX's algorithms; its `init` and `step` are called for each move."""
    parameters: dict[str, Any] = eqx.field(converter=lambda d: _numbers(d), default_factory=dict)
    """Those that are the same at all levels. Floating-point numbers are leaves; whole numbers and all else is structure."""
    per_level: dict[str, Any] = eqx.field(converter=lambda d: _numbers(d), default_factory=dict)
    """Those with one value for each level, along their first axis."""
    reversible: bool = eqx.field(static=True, default=True)
    """Whether the kernel is in detailed balance; else it can only be run forward."""
    gradients: ClassVar[bool] = False
    smooth: ClassVar[bool] = False

    def check(self, path, x0s, lams):
        for name, value in self.per_level.items():
            require(jnp.ndim(value) > 0, name, "have one value for each level", "one number")
            _check_levels(value, name, lams)
        return x0s

    def reversal(self):
        rule = "be in detailed balance (`reversible=True`) for the reversed chain"
        require(self.reversible, "kernel", rule, "one that is not")
        return self

    def __call__(self, path, place, lam, index, key):
        own = {name: value[index] for name, value in self.per_level.items()}
        return _blackjax_move(lambda density: self.build(density, **self.parameters, **own), path, place, lam, key)


class Relaxation(AbstractKernel):
    r"""Exact relaxation for a time in Langevin dynamics of unit mobility, for paths of Gaussians: an Ornstein-Uhlenbeck kernel.

    It leaves $\gamma_\lambda$ invariant at any duration, and is a smooth function of everything.
    """

    duration: Scalar = eqx.field(converter=as_scalar)
    """How long each move relaxes."""
    gradients: ClassVar[bool] = False
    smooth: ClassVar[bool] = True

    def __check_init__(self):
        check_positive(self.duration, "duration")

    def check(self, path, x0s, lams):
        # A path between Gaussians is one of Gaussians; the last density tells if it is.
        ts = jnp.stack([jnp.zeros_like(self.duration), self.duration])
        return ExactLinear().check(_relaxing(path, lams[-1]), ts, x0s)

    def reversal(self):
        return self

    def __call__(self, path, place, lam, index, key):
        zs = jr.normal(key, (1, *place.x.shape), place.x.dtype)
        x1 = ExactLinear()(_relaxing(path, lam), jnp.zeros_like(self.duration), self.duration, place.x, zs)
        return path.at(x1), jnp.zeros_like(lam)


class _Same:
    """A function that is the same as another if it is that one: BlackJAX's have no hash, which structure must have."""

    def __init__(self, function):
        self.function = function.function if isinstance(function, _Same) else function

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def __eq__(self, other):
        return isinstance(other, _Same) and self.function is other.function

    def __hash__(self):
        return id(self.function)


def _relaxing(path, lam):
    one = jnp.ones_like(lam)
    return Overdamped(lambda x, control: -path(x, control), Constant(lam), Isothermal(one), one)


def _blackjax_move(build, path, place, lam, key):
    init_key, step_key = jr.split(key)
    # BlackJAX is not written for strict promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        algorithm = build(lambda x: path(x, lam))
        state, _ = algorithm.step(step_key, algorithm.init(place.x, init_key))
    return path.at(state.position), jnp.zeros_like(lam)


def _numbers(parameters):
    """Floating-point parameters as arrays, so that new ones compile nothing anew."""
    floating = lambda value: isinstance(value, float) or (eqx.is_array_like(value) and jnp.issubdtype(jnp.result_type(value), jnp.floating))
    return {name: as_float(value) if floating(value) else value for name, value in parameters.items()}


def _check_levels(value, name, lams):
    moved = lams.shape[0] - 1
    fits = jnp.ndim(value) == 0 or value.shape[0] == moved
    require(fits, name, f"be one number or have one for each of the {moved} levels after the first", f"shape {jnp.shape(value)}")
